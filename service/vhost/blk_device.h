#pragma once
// BlkDevice: one volume as a virtio-blk device (VIRTIO 1.2 5.2): its features, its configuration space and its queues.

#include <atomic>
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

// VIRTIO 1.2 5.2.4.
struct __attribute__((packed)) BlkConfig {
  std::uint64_t capacity_sectors;
  std::uint32_t size_max;
  std::uint32_t seg_max;
  std::uint16_t cylinders;
  std::uint8_t heads;
  std::uint8_t sectors;
  std::uint32_t blk_size;
  std::uint8_t physical_block_exp;
  std::uint8_t alignment_offset;
  std::uint16_t min_io_blocks;
  std::uint32_t opt_io_blocks;
  std::uint8_t writeback;
  std::uint8_t unused0;
  std::uint16_t num_queues;
  std::uint32_t max_discard_sectors;
  std::uint32_t max_discard_seg;
  std::uint32_t discard_sector_alignment;
  std::uint32_t max_write_zeroes_sectors;
  std::uint32_t max_write_zeroes_seg;
  std::uint8_t write_zeroes_may_unmap;
  std::uint8_t unused1[3];
};
static_assert(sizeof(BlkConfig) == 60);

// 5.2.3.
inline constexpr unsigned kBlkSegMax = 2;
inline constexpr unsigned kBlkReadOnly = 5;
inline constexpr unsigned kBlkBlkSize = 6;
inline constexpr unsigned kBlkFlush = 9;
inline constexpr unsigned kBlkTopology = 10;
inline constexpr unsigned kBlkConfigWce = 11;
inline constexpr unsigned kBlkMq = 12;
inline constexpr unsigned kBlkDiscard = 13;
inline constexpr unsigned kBlkWriteZeroes = 14;

// Bounds of one request, announced to guests and enforced.
inline constexpr std::uint32_t kBlkMaxDiscardSectors = 4U << 20;        // 2 GiB
inline constexpr std::uint32_t kBlkMaxWriteZeroesSectors = 256U << 10;  // 128 MiB

// What the queues of a device share with it.
struct BlkShared {
  std::shared_ptr<bdev::Bdev> bdev;
  bool read_only = false;
  bool discard = false;
  char id[20] = {};
  // The cache mode (5.2.5); false makes every write durable before it is answered.
  std::atomic<bool> writeback{true};
};

class BlkDevice final : public Device {
 public:
  // On a control thread. kInvalid for a device that cannot be served; what open_channel() says; errors of
  // SettingStore::load, and kCorrupt. Without settings a guest's choice ends with the device.
  static Result<std::unique_ptr<BlkDevice>> make(DiskSpec disk, std::uint16_t queues, Placement& placement,
                                                 std::shared_ptr<SettingStore> settings = nullptr);

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
