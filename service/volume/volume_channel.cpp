#include "volume/volume_channel.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/units.h"
#include "blob/volume.h"
#include "volume/volume_bdev.h"

namespace pollux::volume {

using bdev::IoOp;
using bdev::IoRequest;
using bdev::IoStatus;

namespace {

// Bounds how long a reactor looks at the map for one request.
constexpr std::uint64_t kMaxExtentBytes = kGiB;

}  // namespace

VolumeChannel::VolumeChannel(std::shared_ptr<VolumeBdev> volume, blob::Store& store, blob::Volume& record,
                             IoSlots& slots)
    : volume_(std::move(volume)),
      store_(store),
      record_(record),
      view_(*record.view),
      slots_(slots),
      stream_(slots.next_stream()),
      lane_(slots.lane()),
      at_home_(&slots.lane().reactor() == &store.home()),
      read_only_(volume_->read_only()),
      block_bytes_(volume_->block_bytes()),
      device_mask_(store.lanes().data_device().block_bytes() - 1),
      whole_mask_(std::max(block_bytes_ - 1, device_mask_)),
      cluster_bytes_(store.cluster_bytes()),
      cluster_mask_(cluster_bytes_ - 1),
      cluster_shift_(static_cast<std::uint32_t>(std::countr_zero(cluster_bytes_))),
      sub_block_shift_(static_cast<std::uint32_t>(std::countr_zero(blob::sub_block_bytes(cluster_bytes_)))) {
  volume_->add_channel(*this);
}

VolumeChannel::~VolumeChannel() {
  volume_->remove_channel(*this);
}

IoStatus VolumeChannel::validate(const IoRequest& request) const {
  if (request.op == IoOp::kFlush) return IoStatus::kOk;
  const bool looks = request.op == IoOp::kRead || request.op == IoOp::kExtent;
  if (!looks && read_only_) return IoStatus::kReadOnly;
  if (request.offset_bytes % block_bytes_ != 0 || request.length_bytes % block_bytes_ != 0) return IoStatus::kInvalid;
  if (!range_fits(request.offset_bytes, request.length_bytes, view_.size_bytes.load(std::memory_order_acquire))) {
    return IoStatus::kInvalid;
  }
  return IoStatus::kOk;
}

// What nearly all requests are: a read or write in place within one cluster. The request itself goes to the device,
// without the books that are kept for one in pieces; the way for all requests says what else is to be done, or what is
// wrong. Every call here is the last thing that happens: this path needs no stack.
template <bool kWriting>
[[gnu::always_inline]] inline void VolumeChannel::go_straight_as(IoRequest& request, std::uint64_t started_ns) {
  const std::uint64_t start = request.offset_bytes;
  const std::uint64_t length = request.length_bytes;
  const std::uint64_t offset = start & cluster_mask_;
  // Within one cluster nothing overflows.
  const std::uint64_t last = start + (length - 1);
  if ((kWriting && (read_only_ || (request.flags & IoRequest::kFua) != 0)) || length - 1 > cluster_mask_ - offset ||
      ((start | length) & whole_mask_) != 0 || last >= view_.size_bytes.load(std::memory_order_acquire)) [[unlikely]] {
    return submit_in_pieces(request, started_ns);
  }
  // As in step(): counted before the map is looked at.
  const unsigned epoch = lane_.begin();
  const blob::ClusterNo cluster = view_.in_place(static_cast<std::uint32_t>(start >> cluster_shift_), kWriting, [&] {
    return blob::Geometry::mask(static_cast<std::uint32_t>(offset >> sub_block_shift_),
                                static_cast<std::uint32_t>((last & cluster_mask_) >> sub_block_shift_));
  });
  if (cluster == 0) [[unlikely]] {
    if constexpr (kWriting) return send_home(request, started_ns, epoch);
    return turn_back(request, started_ns, epoch);
  }
  request.push_frame(Forwarded{this, request.complete, start, started_ns, epoch});
  request.stream = stream_;
  request.complete = &VolumeChannel::straight_done<kWriting>;
  lane_.data().submit(request, cluster, offset);
}

[[gnu::always_inline]] inline void VolumeChannel::go_straight(IoRequest& request, std::uint64_t started_ns) {
  if (request.op == IoOp::kRead) return go_straight_as<false>(request, started_ns);
  if (request.op == IoOp::kWrite) return go_straight_as<true>(request, started_ns);
  submit_in_pieces(request, started_ns);
}

void VolumeChannel::submit(IoRequest& request) {
  if (untimed_left_ == 0) [[unlikely]]
    return submit_timed(request);
  --untimed_left_;
  go_straight(request, 0);
}

[[gnu::noinline]] void VolumeChannel::submit_timed(IoRequest& request) {
  untimed_left_ = kLatencySample - 1;
  go_straight(request, monotonic_ns() - request.held_ns);
}

[[gnu::noinline]] void VolumeChannel::turn_back(IoRequest& request, std::uint64_t started_ns, unsigned epoch) {
  lane_.end(epoch);
  submit_in_pieces(request, started_ns);
}

// It lies within one cluster, so nothing is to be cut, and its range was checked. The home reactor looks at the map
// itself, also where a leaf has to be loaded first.
[[gnu::noinline]] void VolumeChannel::send_home(IoRequest& request, std::uint64_t started_ns, unsigned epoch) {
  lane_.end(epoch);
  begin_pieces(request, started_ns).status = IoStatus::kOk;
  const Place place{.index = static_cast<std::uint32_t>(request.offset_bytes >> cluster_shift_),
                    .offset = static_cast<std::uint32_t>(request.offset_bytes & cluster_mask_),
                    .length = static_cast<std::uint32_t>(request.length_bytes)};
  if (to_home(request, place, blob::HomeIo::Op::kWrite) == Step::kWait) return slots_.wait(request);
  drop(request);
}

VolumeChannel::Progress& VolumeChannel::begin_pieces(IoRequest& request, std::uint64_t started_ns) {
  Progress& p = request.push_frame(Progress{});
  request.stream = stream_;
  p.channel = this;
  p.outstanding = 1;
  p.started_ns = started_ns;
  return p;
}

void VolumeChannel::submit_in_pieces(IoRequest& request, std::uint64_t started_ns) {
  begin_pieces(request, started_ns).status = validate(request);
  cut(request);
}

inline void VolumeChannel::count_transfer(bool write, std::uint64_t bytes) {
  ChannelCounters::Transfers& transfers = write ? counters_.writes : counters_.reads;
  transfers.ops.add(1);
  transfers.bytes.add(bytes);
}

void VolumeChannel::count(const IoRequest& request) {
  if (request.status != IoStatus::kOk) counters_.errors.add(1);
  switch (request.op) {
    case IoOp::kRead:
    case IoOp::kWrite:
      count_transfer(request.op == IoOp::kWrite, request.length_bytes);
      break;
    case IoOp::kFlush:
      counters_.flush_ops.add(1);
      break;
    case IoOp::kUnmap:
    case IoOp::kWriteZeroes:
      counters_.unmap_ops.add(1);
      break;
    case IoOp::kExtent:
      break;
  }
}

template <bool kWriting>
void VolumeChannel::straight_done(IoRequest& request) {
  const Forwarded& was = request.pop_frame<Forwarded>();
  VolumeChannel& self = *was.channel;
  const std::uint64_t started_ns = was.started_ns;
  const bool answer_due = self.lane_.leave(was.epoch);
  request.offset_bytes = was.offset_bytes;
  request.complete = was.complete;
  self.count_transfer(kWriting, request.length_bytes);
  if (answer_due || started_ns != 0 || request.status != IoStatus::kOk) [[unlikely]]
    return self.straight_done_watched(request, started_ns, answer_due);
  // It may end this channel.
  request.complete(request);
}

[[gnu::noinline]] void VolumeChannel::straight_done_watched(IoRequest& request, std::uint64_t started_ns,
                                                            bool answer_due) {
  if (answer_due) lane_.answer();
  if (request.status != IoStatus::kOk) counters_.errors.add(1);
  if (started_ns != 0) count_latency(request.op, started_ns);
  request.complete(request);
}

void VolumeChannel::drive(IoRequest& request) {
  progress(request).channel->cut(request);
}

// Hands out pieces until the request is through, or has to wait for memory or for the map.
void VolumeChannel::cut(IoRequest& request) {
  Progress& p = progress(request);
  if (request.op == IoOp::kFlush && p.status == IoStatus::kOk) return start_flush(request);
  while (p.cursor < request.length_bytes && p.status == IoStatus::kOk) {
    switch (step(request)) {
      case Step::kNext:
        break;
      case Step::kWait:
        slots_.wait(request);
        return;
      case Step::kNextTurn:
        slots_.wait_for_clear(request);
        return;
      case Step::kAway:
        return;
    }
  }
  drop(request);
}

VolumeChannel::Lookup VolumeChannel::look_up(std::uint32_t index, Mapping& mapping) const {
  const blob::LeafTable* table = view_.table.load(std::memory_order_acquire);
  const std::size_t slot = index / blob::kLeafEntries;
  const std::uintptr_t at = table->slots[slot].load(std::memory_order_acquire);
  if (at == 0) {
    mapping = {};
    return Lookup::kFound;
  }
  if (at == blob::kNotLoaded) return Lookup::kAskHome;
  const auto* leaf = reinterpret_cast<const blob::Leaf*>(at & ~blob::kClosedTag);
  if (leaf->damaged) return Lookup::kDamaged;
  if (!leaf->entries[index % blob::kLeafEntries].read(mapping.entry, mapping.closed)) return Lookup::kAskHome;
  mapping.closed = mapping.closed || (at & blob::kClosedTag) != 0;
  return Lookup::kFound;
}

VolumeChannel::Step VolumeChannel::step(IoRequest& request) {
  Progress& p = progress(request);
  const std::uint64_t at = request.offset_bytes + p.cursor;
  Place place;
  place.index = static_cast<std::uint32_t>(at >> cluster_shift_);
  place.offset = static_cast<std::uint32_t>(at & cluster_mask_);
  place.length = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(request.length_bytes - p.cursor, cluster_bytes_ - place.offset));
  if (device_mask_ >= block_bytes_) [[unlikely]]
    keep_to_device_blocks(place);

  // Counted before the map is looked at, so that a grace period covers what follows from it.
  const unsigned epoch = lane_.begin();
  const bool frozen = view_.frozen.load(std::memory_order_acquire);
  Mapping mapping;
  const Lookup found = look_up(place.index, mapping);
  if (found == Lookup::kFound && request.op == IoOp::kRead) {
    return read_step(request, place, mapping.entry, epoch);
  }
  if (found == Lookup::kFound && request.op == IoOp::kWrite) {
    return write_step(request, place, mapping, frozen, epoch);
  }
  lane_.end(epoch);
  switch (found) {
    case Lookup::kFound:
      return request.op == IoOp::kExtent ? extent_step(request, place, mapping.entry)
                                         : zero_step(request, place, mapping.entry);
    case Lookup::kAskHome:
      return to_home(request, place, blob::HomeIo::Op::kLoad);
    case Lookup::kDamaged:
      break;
  }
  p.status = IoStatus::kMediumError;
  return Step::kNext;
}

// Where the volume has smaller blocks than its device: a part of one of the device's blocks, or as many as are whole.
void VolumeChannel::keep_to_device_blocks(Place& place) const {
  const std::uint32_t block_bytes = device_mask_ + 1;
  const std::uint32_t within = place.offset & device_mask_;
  if (within != 0 || place.length < block_bytes) {
    place.length = std::min(place.length, block_bytes - within);
  } else {
    place.length &= ~device_mask_;
  }
}

// How much of the request, from `place` on, lies in one piece on the device, in whole blocks of it.
std::uint64_t VolumeChannel::extend(const IoRequest& request, const Place& place, const Mapping& first,
                                    bool writing) const {
  const std::uint64_t start = (std::uint64_t{place.index} << cluster_shift_) + place.offset;
  const std::uint64_t left =
      (request.offset_bytes + request.length_bytes - start) & ~static_cast<std::uint64_t>(device_mask_);
  std::uint64_t length = place.length;
  std::uint32_t index = place.index;
  blob::ClusterNo next = first.entry.own;
  while (length < left) {
    Mapping mapping;
    ++next;
    if (look_up(++index, mapping) != Lookup::kFound || !mapping.entry.full() || mapping.entry.own != next) break;
    if (writing && mapping.closed) break;
    length = std::min<std::uint64_t>(left, length + cluster_bytes_);
  }
  return length;
}

// Where what is read at `place` lies, and how much of `place` lies there; cluster 0: nowhere, it is zeros.
VolumeChannel::Run VolumeChannel::run_at(const Place& place, const blob::MapEntry& entry) const {
  if (entry.own == 0 || entry.full()) return {entry.own, place.length};
  // As far as the sub-blocks lie in the same cluster.
  const std::uint32_t first = place.offset >> sub_block_shift_;
  const std::uint64_t bits = entry.bits >> first;
  const bool written = (bits & 1) != 0;
  const std::uint64_t run_end =
      std::uint64_t{first + static_cast<std::uint32_t>(written ? std::countr_one(bits) : std::countr_zero(bits))}
      << sub_block_shift_;
  return {written ? entry.own : entry.base, std::min<std::uint64_t>(place.length, run_end - place.offset)};
}

VolumeChannel::Step VolumeChannel::read_step(IoRequest& request, const Place& place, const blob::MapEntry& entry,
                                             unsigned epoch) {
  auto [from, length] = run_at(place, entry);
  if (from != 0 && part_of_block(place)) [[unlikely]]
    return read_part(request, place, from, epoch);
  if (entry.full()) length = extend(request, place, {.entry = entry, .closed = false}, /*writing=*/false);
  if (from == 0) {
    lane_.end(epoch);
    fill_zeros(request, length);
    return Step::kNext;
  }
  return to_device(request, from, place.offset, length, epoch);
}

// The whole block into memory of the channel's own, and from there what is asked for. The run that was found holds all
// of the piece, since it lies within one sub-block.
VolumeChannel::Step VolumeChannel::read_part(IoRequest& request, const Place& place, blob::ClusterNo from,
                                             unsigned epoch) {
  Progress& p = progress(request);
  IoSlot* slot = slots_.take();
  BlockPart* part = slot == nullptr ? nullptr : slots_.take_part();
  if (part == nullptr || !slice(request, place.length, *slot, part->iov, part->iov_count)) {
    if (part != nullptr) slots_.give_back_part(*part);
    if (slot != nullptr) slots_.give_back(*slot);
    lane_.end(epoch);
    return p.status == IoStatus::kOk ? Step::kWait : Step::kNext;
  }
  part->offset = place.offset & device_mask_;
  part->length = place.length;
  slot->part = part;
  slot->parent = &request;
  slot->resumes = false;
  slot->epoch = epoch;
  slot->device.op = IoOp::kRead;
  slot->device.flags = 0;
  slot->device.stream = stream_;
  slot->device.length_bytes = part->whole.iov_len;
  slot->device.iov = &part->whole;
  slot->device.iov_count = 1;
  slot->device.complete = &VolumeChannel::part_read;
  p.cursor += place.length;
  ++p.outstanding;
  lane_.data().submit(slot->device, from, place.offset - part->offset);
  return Step::kNext;
}

VolumeChannel::Step VolumeChannel::write_step(IoRequest& request, const Place& place, const Mapping& mapping,
                                              bool frozen, unsigned epoch) {
  const blob::MapEntry& entry = mapping.entry;
  if (!frozen && entry.own != 0 && !mapping.closed && !part_of_block(place)) {
    std::uint64_t length = 0;
    if (entry.full()) {
      length = extend(request, place, mapping, /*writing=*/true);
    } else {
      const std::uint64_t touched =
          blob::Geometry::mask(place.offset >> sub_block_shift_, (place.offset + place.length - 1) >> sub_block_shift_);
      if ((entry.bits & touched) == touched) length = place.length;
    }
    if (length != 0) {
      return to_device(request, entry.own, place.offset, length, epoch);
    }
  }
  lane_.end(epoch);
  return to_home(request, place, blob::HomeIo::Op::kWrite);
}

VolumeChannel::Step VolumeChannel::zero_step(IoRequest& request, const Place& place, const blob::MapEntry& entry) {
  if (entry.own == 0) {
    // Nothing here; nor perhaps for a long way: a whole leaf at a time.
    std::uint64_t length = place.length;
    const blob::LeafTable* table = view_.table.load(std::memory_order_acquire);
    if (table->slots[place.index / blob::kLeafEntries].load(std::memory_order_acquire) == 0) {
      const std::uint64_t end = (std::uint64_t{place.index / blob::kLeafEntries} + 1) * blob::kLeafEntries;
      length = (end << cluster_shift_) - ((std::uint64_t{place.index} << cluster_shift_) + place.offset);
    }
    Progress& p = progress(request);
    p.cursor += std::min(length, request.length_bytes - p.cursor);
    return Step::kNext;
  }
  if (!slots_.take_clear()) return Step::kNextTurn;
  return to_home(request, place, blob::HomeIo::Op::kZero);
}

// Goes on for as long as the blocks are like the first, and ends the request where they are not.
VolumeChannel::Step VolumeChannel::extent_step(IoRequest& request, const Place& place, const blob::MapEntry& entry) {
  Progress& p = progress(request);
  const Run run = run_at(place, entry);
  const std::uint8_t state = run.from == 0 ? 0 : IoRequest::kMapped;
  if (p.cursor == 0) {
    request.flags = state;
    request.length_bytes = std::min(request.length_bytes, kMaxExtentBytes);
  }
  if (state != request.flags) {
    request.length_bytes = p.cursor;
  } else {
    p.cursor += std::min(run.length, request.length_bytes - p.cursor);
  }
  return Step::kNext;
}

// Cuts the next `length` bytes out of the request's iovecs. False: no memory for the slice now.
bool VolumeChannel::slice(IoRequest& request, std::uint64_t length, IoSlot& slot, const iovec*& iov,
                          std::uint16_t& iov_count) {
  Progress& p = progress(request);
  if (p.cursor == 0 && length == request.length_bytes) {
    iov = request.iov;
    iov_count = request.iov_count;
    return true;
  }
  std::size_t needed = 0;
  std::uint64_t covered = 0;
  for (std::size_t i = p.iov_index; covered < length; ++i) {
    covered += request.iov[i].iov_len - (needed == 0 ? p.iov_offset : 0);
    ++needed;
  }
  iovec* out = slot.small.data();
  if (needed > kSmallSlice) {
    if (needed > kMaxIovecs) {
      p.status = IoStatus::kInvalid;
      return false;
    }
    slot.large = slots_.take_large();
    if (slot.large == nullptr) return false;
    out = slot.large->iov.data();
  }
  iov = out;
  iov_count = static_cast<std::uint16_t>(needed);
  std::uint64_t left = length;
  while (left > 0) {
    const iovec& from = request.iov[p.iov_index];
    const std::uint64_t now = std::min<std::uint64_t>(left, from.iov_len - p.iov_offset);
    *out++ = {.iov_base = static_cast<std::byte*>(from.iov_base) + p.iov_offset, .iov_len = now};
    left -= now;
    p.iov_offset += now;
    if (p.iov_offset == from.iov_len) {
      ++p.iov_index;
      p.iov_offset = 0;
    }
  }
  return true;
}

void VolumeChannel::fill_zeros(IoRequest& request, std::uint64_t length) {
  Progress& p = progress(request);
  p.cursor += length;
  while (length > 0) {
    const iovec& to = request.iov[p.iov_index];
    const std::uint64_t now = std::min<std::uint64_t>(length, to.iov_len - p.iov_offset);
    std::memset(static_cast<std::byte*>(to.iov_base) + p.iov_offset, 0, now);
    length -= now;
    p.iov_offset += now;
    if (p.iov_offset == to.iov_len) {
      ++p.iov_index;
      p.iov_offset = 0;
    }
  }
}

VolumeChannel::Step VolumeChannel::to_device(IoRequest& request, blob::ClusterNo cluster, std::uint32_t offset,
                                             std::uint64_t length, unsigned epoch) {
  Progress& p = progress(request);
  IoSlot* slot = slots_.take();
  if (slot == nullptr || !slice(request, length, *slot, slot->device.iov, slot->device.iov_count)) {
    if (slot != nullptr) slots_.give_back(*slot);
    lane_.end(epoch);
    return p.status == IoStatus::kOk ? Step::kWait : Step::kNext;
  }
  slot->parent = &request;
  slot->resumes = false;
  slot->epoch = epoch;
  slot->device.op = request.op;
  slot->device.flags = 0;
  slot->device.stream = stream_;
  slot->device.length_bytes = length;
  slot->device.complete = &VolumeChannel::device_done;
  p.cursor += length;
  ++p.outstanding;
  lane_.data().submit(slot->device, cluster, offset);
  return Step::kNext;
}

VolumeChannel::Step VolumeChannel::to_home(IoRequest& request, const Place& place, blob::HomeIo::Op op) {
  Progress& p = progress(request);
  IoSlot* slot = slots_.take();
  if (slot == nullptr) return Step::kWait;
  blob::HomeIo& io = slot->home;
  if (op == blob::HomeIo::Op::kWrite && !slice(request, place.length, *slot, io.iov, io.iov_count)) {
    slots_.give_back(*slot);
    return p.status == IoStatus::kOk ? Step::kWait : Step::kNext;
  }
  slot->parent = &request;
  io.volume = &record_;
  io.stream = stream_;
  io.op = op;
  io.index = place.index;
  io.offset = place.offset;
  io.length = place.length;
  io.done = &VolumeChannel::home_done;
  // A load brings the map; the request's own count moves to it, and it is cut further afterwards.
  const bool load = op == blob::HomeIo::Op::kLoad;
  slot->resumes = load;
  if (!load) {
    p.cursor += place.length;
    ++p.outstanding;
  }
  if (at_home_) {
    store_.writer().start(io);
  } else {
    io.run = [](reactor::Message& message) {
      auto& self = static_cast<IoSlot::Home&>(static_cast<blob::HomeIo&>(message));
      progress(*self.slot->parent).channel->store_.writer().start(self);
    };
    store_.home().post(io);
  }
  return load ? Step::kAway : Step::kNext;
}

void VolumeChannel::device_done(IoRequest& device) {
  IoSlot& slot = *static_cast<IoSlot::Device&>(device).slot;
  VolumeChannel& self = *progress(*slot.parent).channel;
  self.lane_.end(slot.epoch);
  self.piece_done(slot, device.status);
}

void VolumeChannel::part_read(IoRequest& device) {
  IoSlot& slot = *static_cast<IoSlot::Device&>(device).slot;
  BlockPart& part = *std::exchange(slot.part, nullptr);
  if (device.status == IoStatus::kOk) {
    const std::byte* from = part.block + part.offset;
    std::size_t left = part.length;
    for (std::uint16_t i = 0; left > 0; ++i) {
      const std::size_t now = std::min(left, part.iov[i].iov_len);
      std::memcpy(part.iov[i].iov_base, from, now);
      from += now;
      left -= now;
    }
  }
  slot.owner->give_back_part(part);
  device_done(device);
}

// On the home reactor: back to where the request came from.
void VolumeChannel::home_done(blob::HomeIo& io) {
  VolumeChannel& self = *progress(*static_cast<IoSlot::Home&>(io).slot->parent).channel;
  const auto back = [](reactor::Message& message) {
    auto& home = static_cast<IoSlot::Home&>(static_cast<blob::HomeIo&>(message));
    progress(*home.slot->parent).channel->piece_done(*home.slot, home.status);
  };
  if (self.at_home_) {
    back(io);
  } else {
    io.run = back;
    self.lane_.reactor().post(io);
  }
}

void VolumeChannel::piece_done(IoSlot& slot, IoStatus status) {
  IoRequest& request = *slot.parent;
  Progress& p = progress(request);
  if (status != IoStatus::kOk && p.status == IoStatus::kOk) p.status = status;
  // The request's completion may end this channel, but not its slots.
  IoSlots& slots = slots_;
  const bool resumes = slot.resumes;
  slots.give_back(slot);
  if (resumes) {
    cut(request);
  } else {
    drop(request);
  }
  slots.wake_waiting();
}

void VolumeChannel::start_flush(IoRequest& request) {
  IoSlot* slot = slots_.take();
  if (slot == nullptr) return slots_.wait(request);
  progress(request).synced = true;
  slot->parent = &request;
  slot->resumes = false;
  slot->flush.done = [](blob::Journal::Waiter& waiter, bool ok) {
    IoSlot& mine = *static_cast<IoSlot::Flush&>(waiter).slot;
    const IoRequest& parent = *mine.parent;
    VolumeChannel& self = *progress(*mine.parent).channel;
    if (parent.op == IoOp::kFlush && !self.store_.knows_all(self.record_)) {
      ok = false;
      if ((parent.flags & IoRequest::kAside) == 0) self.store_.tell(self.record_, self.lane_.reactor());
    }
    mine.home.status = ok ? IoStatus::kOk : IoStatus::kIoError;
    home_done(mine.home);
  };
  const auto sync = [](reactor::Message& message) {
    IoSlot& mine = *static_cast<IoSlot::Home&>(static_cast<blob::HomeIo&>(message)).slot;
    progress(*mine.parent).channel->store_.journal().sync(mine.flush);
  };
  if (at_home_) {
    sync(slot->home);
  } else {
    slot->home.run = sync;
    store_.home().post(slot->home);
  }
}

void VolumeChannel::drop(IoRequest& request) {
  Progress& p = progress(request);
  if (--p.outstanding != 0) return;
  if (request.durable_change() && p.status == IoStatus::kOk && !p.synced) {
    // It is done; now the data and the map that leads to it become durable.
    p.outstanding = 1;
    return start_flush(request);
  }
  finish(request);
}

void VolumeChannel::finish(IoRequest& request) {
  const Progress& p = request.pop_frame<Progress>();
  request.status = p.status;
  count(request);
  if (p.started_ns != 0) count_latency(request.op, p.started_ns);
  request.complete(request);
}

void VolumeChannel::count_latency(IoOp op, std::uint64_t started_ns) {
  const std::uint64_t took_us = (monotonic_ns() - started_ns) / 1000;
  const std::size_t bucket = std::min<std::size_t>(std::bit_width(took_us), kLatencyBuckets - 1);
  if (op == IoOp::kRead) counters_.reads.latency[bucket].add(kLatencySample);
  if (op == IoOp::kWrite) counters_.writes.latency[bucket].add(kLatencySample);
}

}  // namespace pollux::volume
