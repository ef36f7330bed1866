#include "volume/volume_bdev.h"

#include <algorithm>

#include "blob/volume.h"
#include "volume/volume_service.h"

namespace pollux::volume {

namespace {

void add(VolumeStats& to, const ChannelCounters& from) {
  to.read_ops += from.reads.ops.get();
  to.write_ops += from.writes.ops.get();
  to.flush_ops += from.flush_ops.get();
  to.unmap_ops += from.unmap_ops.get();
  to.read_bytes += from.reads.bytes.get();
  to.write_bytes += from.writes.bytes.get();
  to.errors += from.errors.get();
  to.read_latency.resize(kLatencyBuckets);
  to.write_latency.resize(kLatencyBuckets);
  for (std::size_t i = 0; i < kLatencyBuckets; ++i) {
    to.read_latency[i] += from.reads.latency[i].get();
    to.write_latency[i] += from.writes.latency[i].get();
  }
}

}  // namespace

VolumeBdev::VolumeBdev(blob::Store& store, blob::Volume& record)
    : store_(store),
      record_(record),
      view_(*record.view),
      name_(record.name),
      block_bytes_(record.block_bytes(store.lanes().data_device().block_bytes())),
      sub_block_bytes_(blob::sub_block_bytes(store.cluster_bytes())),
      read_only_(record.snapshot()),
      gone_(std::make_unique<VolumeStats>()) {}

VolumeBdev::~VolumeBdev() {
  store_.home().post([&store = store_, &record = record_] { store.unview(record); });
}

std::uint32_t VolumeBdev::frame_bytes() const {
  return store_.lanes().data_device().frame_bytes() + VolumeChannel::kFrameBytes;
}

bdev::Opening VolumeBdev::open_channel(reactor::Reactor& reactor) {
  auto lane = co_await store_.lanes().open(reactor);
  if (!lane) co_return fail(std::move(lane.error()));
  co_return std::make_unique<VolumeChannel>(shared_from_this(), store_, record_, IoSlots::of(**lane));
}

void VolumeBdev::add_channel(VolumeChannel& channel) {
  std::lock_guard lock(mutex_);
  channels_.push_back(&channel);
}

void VolumeBdev::remove_channel(VolumeChannel& channel) {
  std::lock_guard lock(mutex_);
  add(*gone_, channel.counters());
  std::erase(channels_, &channel);
}

void VolumeBdev::add_stats(VolumeStats& stats) const {
  std::lock_guard lock(mutex_);
  stats = *gone_;
  for (const VolumeChannel* channel : channels_) add(stats, channel->counters());
}

}  // namespace pollux::volume
