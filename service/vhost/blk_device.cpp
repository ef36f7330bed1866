#include "vhost/blk_device.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <future>
#include <sstream>

#include "base/units.h"
#include "bdev/physical_block.h"
#include "protocol/vhost_user.h"
#include "protocol/virtio_blk.h"
#include "vhost/blk_queue.h"
#include "vhost/limits.h"

namespace pollux::vhost {

using namespace protocol;

namespace {

constexpr char kChoiceHeader[] = "pollux-blk-1";

}  // namespace

Result<std::unique_ptr<BlkDevice>> BlkDevice::make(DiskSpec disk, std::uint16_t queues,
                                                   std::unique_ptr<DiskChannels> channels,
                                                   std::shared_ptr<SettingStore> settings,
                                                   std::chrono::milliseconds path_patience) {
  const std::uint32_t block = disk.bdev->block_bytes();
  if (block < kSectorBytes || !std::has_single_bit(block))
    return fail(ErrorCode::kInvalid, disk.bdev->name() + " has an impossible block size");
  std::unique_ptr<BlkDevice> device(new BlkDevice(std::move(disk), queues, std::move(settings)));
  POLLUX_TRY(device->load_choice());
  BlkShared& shared = device->shared_;
  shared.bdev = device->disk_.bdev;
  shared.path_patience = path_patience;
  shared.read_only = device->disk_.read_only || shared.bdev->read_only();
  shared.discard = shared.bdev->supports_unmap() && !shared.read_only;
  const std::string uuid = device->disk_.uuid.to_string();
  std::memcpy(shared.id, uuid.data(), std::min(uuid.size(), sizeof(shared.id)));
  device->channels_ = std::move(channels);
  return device;
}

std::uint64_t BlkDevice::features() const {
  std::uint64_t features = bit(kBlkFeatureSegMax) | bit(kBlkFeatureBlkSize) | bit(kBlkFeatureFlush) |
                           bit(kBlkFeatureTopology) | bit(kBlkFeatureConfigWce) | bit(kBlkFeatureMq);
  if (shared_.read_only) return features | bit(kBlkFeatureReadOnly);
  if (shared_.discard) features |= bit(kBlkFeatureDiscard);
  return features | bit(kBlkFeatureWriteZeroes);
}

std::vector<std::byte> BlkDevice::config() const {
  const std::uint32_t block = shared_.bdev->block_bytes();
  const std::uint32_t preferred = std::max(block, std::bit_floor(shared_.bdev->optimal_io_bytes()));
  const std::uint32_t granularity = std::max(shared_.bdev->unmap_granularity_bytes(), block);
  BlkConfig config{};
  config.capacity_sectors = shared_.bdev->size_bytes() / kSectorBytes;
  config.seg_max = kMaxSegments;
  config.blk_size = block;
  config.physical_block_exp =
      static_cast<std::uint8_t>(std::countr_zero(bdev::physical_block_bytes(*shared_.bdev) / block));
  config.min_io_blocks = static_cast<std::uint16_t>(std::min<std::uint32_t>(preferred / block, UINT16_MAX));
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

void BlkDevice::negotiated(std::uint64_t features) {
  if ((features & bit(kBlkFeatureConfigWce)) == 0) return;
  std::lock_guard lock(mutex_);
  flush_negotiated_ = (features & bit(kBlkFeatureFlush)) != 0;
  const bool chosen = choice_ && choice_->flush == flush_negotiated_;
  shared_.writeback.store(chosen ? choice_->writeback : flush_negotiated_, std::memory_order_relaxed);
}

Status BlkDevice::write_config(std::uint32_t offset, std::span<const std::byte> bytes) {
  if (offset != offsetof(BlkConfig, writeback) || bytes.size() != 1 || std::to_integer<unsigned>(bytes[0]) > 1)
    return fail(ErrorCode::kInvalid, "a configuration field that is not writable");
  std::lock_guard lock(mutex_);
  return choose({.writeback = bytes[0] != std::byte{0}, .flush = flush_negotiated_});
}

Status BlkDevice::choose(const CacheChoice& choice) {
  const bool before = shared_.writeback.load(std::memory_order_relaxed);
  // Writethrough holds from before it is recorded, writeback from after: whichever of the two a crash leaves recorded,
  // the guest has got that or the safer of the two.
  if (!choice.writeback) shared_.writeback.store(false, std::memory_order_relaxed);
  auto kept = choice_ == choice ? Status{} : keep_choice(choice);
  // A guest that has turned the cache off flushes no more: what the cache holds goes first.
  if (kept && before && !choice.writeback) kept = channels_->flush();
  shared_.writeback.store(kept ? choice.writeback : before, std::memory_order_relaxed);
  return kept;
}

Status BlkDevice::keep_choice(const CacheChoice& choice) {
  if (settings_) {
    std::ostringstream state;
    state << kChoiceHeader << " writeback " << choice.writeback << " flush " << choice.flush << '\n';
    auto kept = std::make_shared<std::promise<Status>>();
    auto done = kept->get_future();
    settings_->save(disk_.uuid, disk_.guest, std::move(state).str(), true,
                    [kept](Status status) { kept->set_value(std::move(status)); });
    POLLUX_TRY(done.get());
  }
  choice_ = choice;
  return {};
}

Status BlkDevice::load_choice() {
  if (!settings_) return {};
  const auto saved = settings_->load(disk_.uuid, disk_.guest);
  if (!saved) return fail(saved.error());
  if (saved->empty()) return {};
  std::istringstream in(*saved);
  std::string header;
  std::string words[2];
  CacheChoice choice{};
  if (!(in >> header >> words[0] >> choice.writeback >> words[1] >> choice.flush) || header != kChoiceHeader ||
      words[0] != "writeback" || words[1] != "flush") {
    return fail(ErrorCode::kCorrupt, "the saved cache mode of " + disk_.bdev->name() + " cannot be read");
  }
  choice_ = choice;
  flush_negotiated_ = choice.flush;
  shared_.writeback.store(choice.writeback, std::memory_order_relaxed);
  return {};
}

std::unique_ptr<VhostQueue> BlkDevice::make_queue(std::uint16_t /*index*/, std::unique_ptr<virtio::Virtqueue> ring,
                                                  QueueFds fds, std::uint64_t features, reactor::Reactor& reactor) {
  // 5.2.6.2: a driver that took neither feature cannot flush, so that its writes must be durable by themselves.
  const bool may_cache = (features & (bit(kBlkFeatureFlush) | bit(kBlkFeatureConfigWce))) != 0;
  return std::make_unique<BlkQueue>(std::move(ring), std::move(fds), shared_, channels_->on(reactor), reactor,
                                    may_cache);
}

}  // namespace pollux::vhost
