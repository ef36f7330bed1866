#pragma once
// BlkDevice: one volume as a virtio-blk device (VIRTIO 1.2 5.2): its features, its configuration space and its queues.

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "vhost/device.h"
#include "vhost/disk_channels.h"
#include "vhost/setting_store.h"
#include "vhost/vhost_service.h"

namespace pollux::vhost {

// Bounds of one request, announced to guests and enforced.
inline constexpr std::uint32_t kBlkMaxDiscardSectors = 4U << 20;        // 2 GiB
inline constexpr std::uint32_t kBlkMaxWriteZeroesSectors = 256U << 10;  // 128 MiB

// What the queues of a device share with it.
struct BlkShared {
  std::shared_ptr<bdev::Bdev> bdev;
  std::chrono::milliseconds path_patience = kPathPatience;
  bool read_only = false;
  bool discard = false;
  char id[20] = {};
  // The cache mode (5.2.5); false makes every write durable before it is answered.
  std::atomic<bool> writeback{true};
};

class BlkDevice final : public Device {
 public:
  // On a control thread. `channels`: of the disk's device. kInvalid for a device that cannot be served; errors of
  // SettingStore::load, and kCorrupt. Without settings a guest's choice ends with the device.
  static Result<std::unique_ptr<BlkDevice>> make(DiskSpec disk, std::uint16_t queues,
                                                 std::unique_ptr<DiskChannels> channels,
                                                 std::shared_ptr<SettingStore> settings = nullptr,
                                                 std::chrono::milliseconds path_patience = kPathPatience);

  std::uint64_t features() const override;
  std::uint16_t virtqueues() const override { return queues_; }
  bool carries_requests(std::uint16_t /*index*/) const override { return true; }
  std::vector<std::byte> config() const override;
  void negotiated(std::uint64_t features) override;
  Status write_config(std::uint32_t offset, std::span<const std::byte> bytes) override;
  std::unique_ptr<VhostQueue> make_queue(std::uint16_t index, std::unique_ptr<virtio::Virtqueue> ring, QueueFds fds,
                                         std::uint64_t features, reactor::Reactor& reactor) override;

  const DiskSpec& disk() const { return disk_; }

 private:
  // What a guest wrote to the field `writeback`, and whether it could flush then: 5.2.5.2 has a driver that cannot
  // start with writethrough, whatever one before it chose.
  struct CacheChoice {
    bool writeback;
    bool flush;

    bool operator==(const CacheChoice&) const = default;
  };
  BlkDevice(DiskSpec disk, std::uint16_t queues, std::shared_ptr<SettingStore> settings)
      : disk_(std::move(disk)), queues_(queues), settings_(std::move(settings)) {}
  Status load_choice();
  Status keep_choice(const CacheChoice& choice);
  Status choose(const CacheChoice& choice);

  DiskSpec disk_;
  std::uint16_t queues_;
  // May be null.
  const std::shared_ptr<SettingStore> settings_;
  BlkShared shared_;
  // Of the sessions' threads.
  std::mutex mutex_;
  std::optional<CacheChoice> choice_;
  bool flush_negotiated_ = true;
  std::unique_ptr<DiskChannels> channels_;
};

}  // namespace pollux::vhost
