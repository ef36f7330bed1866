// Changes of less than a block of the device, in place: the block is read, changed and written back. A coroutine that
// has the cluster for itself.

#include <cassert>
#include <cstring>

#include "blob/aligned_buffer.h"
#include "blob/volume.h"
#include "blob/writer.h"

namespace pollux::blob {

using bdev::IoStatus;

// The next in line for the cluster goes on with it when it does the same kind of change: they share the grace period.
reactor::Task<void> Writer::change_blocks(HomeIo& first, OpenCluster& cluster) {
  Volume& volume = *first.volume;
  const std::uint32_t index = first.index;
  // What the data path has under way to whole blocks ends before one is read here, and nothing new begins.
  hold(first, cluster);
  lane_.end(first.epoch_);
  co_await lane_.lanes().grace();

  HomeIo* io = &first;
  while (io != nullptr) {
    io->epoch_ = lane_.begin();
    // A snapshot may have come between, or be about to: then the cluster is not the volume's alone.
    if (Publication::frozen(volume) || !changes_block(*io)) {
      lane_.end(io->epoch_);
      publication_.release(volume, index);
      ready_.push(*io);
      break;
    }
    IoStatus status = co_await change_block(*io);
    lane_.end(io->epoch_);
    // What leads to the cluster may have failed to become durable meanwhile.
    if (status == IoStatus::kOk && journal_.failed()) status = IoStatus::kIoError;
    HomeIo& changed = *io;
    io = !cluster.waiting.empty() && changes_block(*cluster.waiting.front()) ? cluster.waiting.pop() : nullptr;
    const bool committed = !publication_.uncommitted(volume, index);
    if (io == nullptr) publication_.release(volume, index);
    // The volume may be closed after the last answer.
    if (committed || status != IoStatus::kOk) {
      finish(changed, status);
    } else {
      finish_when_committed(changed);
    }
  }
  cluster.in_flight = 0;
  --slow_running_;
  release(cluster);
  drain();
}

// The piece lies within one block: the data path cuts requests so.
reactor::Task<IoStatus> Writer::change_block(HomeIo& io) {
  const std::uint32_t within = io.offset % device_block_bytes_;
  assert(within + io.length <= device_block_bytes_);
  const ClusterNo own = state_.entry(*io.volume, io.index).own;
  const std::uint32_t begin = io.offset - within;
  AlignedBuffer block(device_block_bytes_);
  if (auto s = co_await lane_.data().read(own, begin, block.data(), block.size()); s != IoStatus::kOk) co_return s;
  if (io.op == HomeIo::Op::kWrite) {
    io.gather(block.data() + within);
  } else {
    std::memset(block.data() + within, 0, io.length);
  }
  co_return co_await lane_.data().write(own, begin, block.data(), block.size());
}

}  // namespace pollux::blob
