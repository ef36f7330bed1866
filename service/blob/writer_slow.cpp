// The writes that need more than one step, as coroutines that have their cluster for themselves.

#include <algorithm>
#include <bit>
#include <cstring>

#include "blob/aligned_buffer.h"
#include "blob/space.h"
#include "blob/volume.h"
#include "blob/writer.h"

namespace pollux::blob {

using bdev::IoStatus;

void Writer::start_slow(HomeIo& io) {
  // The places are given in turns, not to who has the next request of the same cluster.
  if (slow_running_ >= kSlowAtOnce || (!slow_backlog_.empty() && !slow_turn_)) {
    lane_.end(io.epoch_);
    slow_backlog_.push(io, io.volume->number);
    return;
  }
  ++slow_running_;
  OpenCluster& cluster = open_.insert(io.volume->number, io.index);
  cluster.exclusive = true;
  cluster.in_flight = 1;
  reactor::spawn(changes_block(io) ? change_blocks(io, cluster) : slow(io, cluster));
}

reactor::Task<void> Writer::slow(HomeIo& io, OpenCluster& cluster) {
  const IoStatus status = co_await slow_steps(io, cluster);
  if (status == IoStatus::kOk) note_change(io);
  if (cluster.held) publication_.release(*io.volume, io.index);
  cluster.in_flight = 0;
  --slow_running_;
  lane_.end(io.epoch_);
  release(cluster);
  if (status == IoStatus::kNoSpace && space_.reclaim()) {
    space_waiters_.push(io);
  } else if (status == IoStatus::kOk) {
    finish_when_committed(io);
  } else {
    finish(io, status);
  }
  drain();
}

bool Writer::take_cluster(HomeIo& io, OpenCluster& cluster) {
  // The sharer may go while this copies, and a neighbour's change then publishes the leaf as unshared: the entry itself
  // must keep the data path out of the old cluster until the new one has taken its place.
  hold(io, cluster);
  const auto fresh = space_.allocate(*io.volume);
  if (!fresh) return false;
  cluster.own = *fresh;
  cluster.fresh = true;
  return true;
}

// What the volume shares here moves to a cluster of its own; sub-blocks that were never written stay so.
reactor::Task<IoStatus> Writer::own_steps(HomeIo& io, OpenCluster& cluster) {
  Volume& volume = *io.volume;
  const std::uint64_t unused = state_.geometry.unused_bits();
  const bool own_it = state_.alone(volume, io.index);
  const MapEntry old = state_.entry(volume, io.index);
  if (old.own == 0 || (own_it && old.base == 0)) co_return IoStatus::kOk;
  MapEntry target{.own = old.own, .base = 0, .bits = old.base != 0 ? kAllBits : old.bits};
  if (!own_it) {
    if (!take_cluster(io, cluster)) co_return IoStatus::kNoSpace;
    target.own = cluster.own;
    if (auto s = co_await copy_sub_blocks(old.own, target.own, old.bits & ~unused); s != IoStatus::kOk) co_return s;
  }
  if (old.base != 0) {
    // The data path writes in place where bits are set, and comes here for the others.
    if (auto s = co_await copy_sub_blocks(old.base, target.own, ~old.bits); s != IoStatus::kOk) co_return s;
  }
  const IoStatus status = publish(volume, io.index, target);
  if (status == IoStatus::kOk) cluster.fresh = false;
  co_return status;
}

reactor::Task<IoStatus> Writer::slow_steps(HomeIo& io, OpenCluster& cluster) {
  if (io.op == HomeIo::Op::kOwn) co_return co_await own_steps(io, cluster);
  Volume& volume = *io.volume;
  const std::uint64_t unused = state_.geometry.unused_bits();
  const Masks range = masks(io.offset, io.length);
  const bool own_it = state_.alone(volume, io.index);
  const MapEntry old = state_.entry(volume, io.index);

  if (io.op == HomeIo::Op::kZero && own_it && old.base == 0) {
    // Whole sub-blocks by their bits, the pieces at the ends by writing.
    if (auto status = co_await zero_edges(io, old, range.covered); status != IoStatus::kOk) co_return status;
    MapEntry cleared = old;
    cleared.bits = (old.bits & ~range.covered) | unused;
    if (cleared.bits == unused) cleared = {};
    co_return cleared.bits == old.bits ? IoStatus::kOk : publish(volume, io.index, cleared);
  }

  MapEntry target = old;
  std::uint64_t copied = 0;
  if (!own_it) {
    if (!take_cluster(io, cluster)) co_return IoStatus::kNoSpace;
    target = {.own = cluster.own, .base = old.full() ? old.own : old.base, .bits = unused};
    // Never own upon own: what the half-written cluster holds beyond this write moves to the new one.
    if (!old.full() && old.own != 0) copied = old.bits & ~unused & ~range.touched;
  }
  if (copied != 0) {
    if (auto s = co_await copy_sub_blocks(old.own, target.own, copied); s != IoStatus::kOk) co_return s;
  }
  if (auto s = co_await write_padded(io, old, target.own, own_it ? old.bits : 0); s != IoStatus::kOk) co_return s;
  target.bits |= copied | range.touched;
  if (target.full()) target.base = 0;
  const IoStatus status = publish(volume, io.index, target);
  if (status == IoStatus::kOk) cluster.fresh = false;
  co_return status;
}

reactor::Task<IoStatus> Writer::read_sub_block(const MapEntry& entry, std::uint32_t sub_block, std::byte* to) {
  ClusterNo from = entry.base;
  if (entry.own != 0 && ((entry.bits >> sub_block) & 1)) from = entry.own;
  if (from == 0) {
    std::memset(to, 0, sub_block_bytes_);
    co_return IoStatus::kOk;
  }
  co_return co_await lane_.data().read(from, std::uint64_t{sub_block} * sub_block_bytes_, to, sub_block_bytes_);
}

reactor::Task<IoStatus> Writer::copy_sub_blocks(ClusterNo from, ClusterNo to, std::uint64_t mask) {
  while (mask != 0) {
    const auto first = static_cast<std::uint32_t>(std::countr_zero(mask));
    const auto count = static_cast<std::uint32_t>(std::countr_one(mask >> first));
    const IoStatus status = co_await lane_.data().copy(from, to, std::uint64_t{first} * sub_block_bytes_,
                                                       std::size_t{count} * sub_block_bytes_);
    if (status != IoStatus::kOk) co_return status;
    mask &= ~Geometry::mask(first, first + count - 1);
  }
  co_return IoStatus::kOk;
}

// Writes the range; where it begins or ends within a sub-block that `own` does not hold yet (`have`), the rest of that
// sub-block is written with it, from what the cluster held before.
reactor::Task<IoStatus> Writer::write_padded(HomeIo& io, const MapEntry& old, ClusterNo own, std::uint64_t have) {
  const std::uint32_t end = io.offset + io.length;
  const std::uint32_t first = io.offset / sub_block_bytes_;
  const std::uint32_t last = (end - 1) / sub_block_bytes_;
  const bool pad_first = io.offset % sub_block_bytes_ != 0 && !((have >> first) & 1);
  const bool pad_last = end % sub_block_bytes_ != 0 && !((have >> last) & 1);
  const std::uint32_t from = pad_first ? first * sub_block_bytes_ : io.offset;
  const std::uint32_t to = pad_last ? (last + 1) * sub_block_bytes_ : end;
  // Room for whole sub-blocks at both ends, whatever is written of them.
  const std::uint32_t base = first * sub_block_bytes_;
  AlignedBuffer bytes(std::size_t{last - first + 1} * sub_block_bytes_);
  if (pad_first) {
    if (auto s = co_await read_sub_block(old, first, bytes.data()); s != IoStatus::kOk) co_return s;
  }
  if (pad_last && (last != first || !pad_first)) {
    std::byte* at = bytes.data() + (last * sub_block_bytes_ - base);
    if (auto s = co_await read_sub_block(old, last, at); s != IoStatus::kOk) co_return s;
  }
  if (io.op == HomeIo::Op::kWrite) {
    io.gather(bytes.data() + (io.offset - base));
  } else {
    std::memset(bytes.data() + (io.offset - base), 0, io.length);
  }
  co_return co_await lane_.data().write(own, from, bytes.data() + (from - base), to - from);
}

// Zeros into those parts of the range that do not cover a sub-block whole and that were written before.
reactor::Task<IoStatus> Writer::zero_edges(HomeIo& io, const MapEntry& entry, std::uint64_t covered) {
  const std::uint32_t end = io.offset + io.length;
  const AlignedBuffer zeros(sub_block_bytes_);
  for (std::uint32_t at = io.offset; at < end;) {
    const std::uint32_t sub_block = at / sub_block_bytes_;
    const std::uint32_t stop = std::min(end, (sub_block + 1) * sub_block_bytes_);
    if (!((covered >> sub_block) & 1) && ((entry.bits >> sub_block) & 1)) {
      const IoStatus status = co_await lane_.data().write(entry.own, at, zeros.data(), stop - at);
      if (status != IoStatus::kOk) co_return status;
    }
    at = stop;
  }
  co_return IoStatus::kOk;
}

}  // namespace pollux::blob
