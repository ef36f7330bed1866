#include "vhost/blk_device.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "base/units.h"
#include "vhost/blk_queue.h"
#include "vhost/limits.h"
#include "vhost/vhost_user.h"

namespace pollux::vhost {

Result<std::unique_ptr<BlkDevice>> BlkDevice::make(DiskSpec disk, std::uint16_t queues, Placement& placement) {
  const std::uint32_t block = disk.bdev->block_bytes();
  if (block < kSectorBytes || !std::has_single_bit(block))
    return fail(ErrorCode::kInvalid, disk.bdev->name() + " has an impossible block size");
  std::unique_ptr<BlkDevice> device(new BlkDevice(std::move(disk), queues));
  BlkShared& shared = device->shared_;
  shared.bdev = device->disk_.bdev;
  shared.read_only = device->disk_.read_only || shared.bdev->read_only();
  shared.discard = shared.bdev->supports_unmap() && !shared.read_only;
  const std::string uuid = device->disk_.uuid.to_string();
  std::memcpy(shared.id, uuid.data(), std::min(uuid.size(), sizeof(shared.id)));
  auto channels = DiskChannels::open(*shared.bdev, placement);
  if (!channels) return fail(std::move(channels.error()));
  device->channels_ = std::move(*channels);
  return device;
}

std::uint64_t BlkDevice::features() const {
  std::uint64_t features =
      bit(kBlkSegMax) | bit(kBlkBlkSize) | bit(kBlkFlush) | bit(kBlkTopology) | bit(kBlkConfigWce) | bit(kBlkMq);
  if (shared_.read_only) return features | bit(kBlkReadOnly);
  if (shared_.discard) features |= bit(kBlkDiscard);
  return features | bit(kBlkWriteZeroes);
}

std::vector<std::byte> BlkDevice::config() const {
  const std::uint32_t block = shared_.bdev->block_bytes();
  const std::uint32_t physical = std::max(block, std::bit_floor(shared_.bdev->optimal_io_bytes()));
  const std::uint32_t granularity = std::max(shared_.bdev->unmap_granularity_bytes(), block);
  BlkConfig config{};
  config.capacity_sectors = shared_.bdev->size_bytes() / kSectorBytes;
  config.seg_max = kMaxSegments;
  config.blk_size = block;
  // Physical blocks beyond a page are a hint that no guest expects; the rest of it is the preferred size.
  config.physical_block_exp =
      static_cast<std::uint8_t>(std::countr_zero(std::min(physical, std::max(block, 4096U)) / block));
  config.min_io_blocks = static_cast<std::uint16_t>(std::min<std::uint32_t>(physical / block, UINT16_MAX));
  config.opt_io_blocks = 0;
  config.writeback = shared_.writeback.load(std::memory_order_relaxed) ? 1 : 0;
  config.num_queues = queues_;
  if (shared_.discard) {
    config.max_discard_sectors = kBlkMaxDiscardSectors;
    config.max_discard_seg = 1;
    config.discard_sector_alignment = granularity / kSectorBytes;
  }
  if (!shared_.read_only) {
    config.max_write_zeroes_sectors = kBlkMaxWriteZeroesSectors;
    config.max_write_zeroes_seg = 1;
    config.write_zeroes_may_unmap = shared_.discard ? 1 : 0;
  }
  std::vector<std::byte> bytes(sizeof(config));
  std::memcpy(bytes.data(), &config, sizeof(config));
  return bytes;
}

bool BlkDevice::write_config(std::uint32_t offset, std::span<const std::byte> bytes) {
  if (offset != offsetof(BlkConfig, writeback) || bytes.size() != 1 || std::to_integer<unsigned>(bytes[0]) > 1)
    return false;
  shared_.writeback.store(bytes[0] != std::byte{0}, std::memory_order_relaxed);
  return true;
}

std::unique_ptr<VhostQueue> BlkDevice::make_queue(std::uint16_t /*index*/, std::unique_ptr<virtio::Virtqueue> ring,
                                                  QueueFds fds, std::uint64_t features, reactor::Reactor& reactor) {
  // 5.2.6.2: a driver that took neither feature cannot flush, so that its writes must be durable by themselves.
  const bool may_cache = (features & (bit(kBlkFlush) | bit(kBlkConfigWce))) != 0;
  return std::make_unique<BlkQueue>(std::move(ring), std::move(fds), shared_, channels_->on(reactor), may_cache);
}

}  // namespace pollux::vhost
