#pragma once
// BlkDevice: one volume as a virtio-blk device (VIRTIO 1.2 5.2): its features, its configuration space and its queues.

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "vhost/device.h"
#include "vhost/disk_channels.h"
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
  // The guest's choice through CONFIG_WCE; false makes every write durable before it is answered.
  std::atomic<bool> writeback{true};
};

class BlkDevice final : public Device {
 public:
  // On a control thread. kInvalid for a device that cannot be served, or what open_channel() says.
  static Result<std::unique_ptr<BlkDevice>> make(DiskSpec disk, std::uint16_t queues, Placement& placement);

  std::uint64_t features() const override;
  std::uint16_t virtqueues() const override { return queues_; }
  bool carries_requests(std::uint16_t /*index*/) const override { return true; }
  std::vector<std::byte> config() const override;
  bool write_config(std::uint32_t offset, std::span<const std::byte> bytes) override;
  std::unique_ptr<VhostQueue> make_queue(std::uint16_t index, std::unique_ptr<virtio::Virtqueue> ring, QueueFds fds,
                                         std::uint64_t features, reactor::Reactor& reactor) override;

  const DiskSpec& disk() const { return disk_; }

 private:
  BlkDevice(DiskSpec disk, std::uint16_t queues) : disk_(std::move(disk)), queues_(queues) {}

  DiskSpec disk_;
  std::uint16_t queues_;
  BlkShared shared_;
  std::unique_ptr<DiskChannels> channels_;
};

}  // namespace pollux::vhost
