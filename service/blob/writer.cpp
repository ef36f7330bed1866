#include "blob/writer.h"

#include <algorithm>
#include <cassert>

#include "blob/space.h"
#include "blob/volume.h"

namespace pollux::blob {

namespace {

// Leaf and index page: what one map change may have to make.
constexpr std::uint32_t kPagesPerChange = 2;

}  // namespace

Writer::Writer(State& state, Publication& publication, Journal& journal, Loader& loader, Space& space, Lane& lane,
               std::uint64_t longest_queued_us)
    : state_(state),
      publication_(publication),
      journal_(journal),
      loader_(loader),
      space_(space),
      lane_(lane),
      cluster_bytes_(state.geometry.cluster_bytes),
      sub_block_bytes_(1U << state.geometry.sub_block_shift),
      device_block_bytes_(lane.lanes().data_device().block_bytes()),
      longest_queued_us_(longest_queued_us),
      open_(kClusters) {
  commit_turn_.writer = this;
  commit_turn_.run = [](reactor::Message& message) {
    Writer& self = *static_cast<CommitTurn&>(message).writer;
    self.committing_.append(self.published_);
    self.journal_.sync(self.commit_waiter_);
  };
  commit_waiter_.writer = this;
  commit_waiter_.flush = false;
  commit_waiter_.done = [](Journal::Waiter& waiter, bool ok) {
    static_cast<CommitWaiter&>(waiter).writer->committed(ok);
  };
}

Writer::Masks Writer::masks(std::uint32_t offset, std::uint32_t length) const {
  const std::uint32_t shift = state_.geometry.sub_block_shift;
  const std::uint32_t end = offset + length;
  const std::uint32_t first_covered = (offset + sub_block_bytes_ - 1) >> shift;
  const std::uint32_t end_covered = end >> shift;
  return {.touched = Geometry::mask(offset >> shift, (end - 1) >> shift),
          .covered = end_covered > first_covered ? Geometry::mask(first_covered, end_covered - 1) : 0};
}

bool Writer::whole_cluster(const HomeIo& io) const {
  // The volume's end may cut its last cluster short.
  const std::uint64_t start = std::uint64_t{io.index} * cluster_bytes_;
  return io.offset == 0 && io.length >= std::min<std::uint64_t>(cluster_bytes_, io.volume->size_bytes - start);
}

bool Writer::changes_block(const HomeIo& io, const ClusterState& now) const {
  if (((io.offset | io.length) & (device_block_bytes_ - 1)) == 0) return false;
  const std::uint64_t touched = masks(io.offset, io.length).touched;
  return now.alone() && (now.entry.bits & touched) == touched;
}

bool Writer::changes_block(const HomeIo& io) const {
  return changes_block(io, state_.cluster(*io.volume, io.index));
}

void Writer::start(HomeIo& io) {
  if (held_ != nullptr) return held_->push(io);
  ready_.push(io);
  drain();
}

bool Writer::idle() const {
  return open_.size() + publication_.at_work() + loading_ + slow_running_ == 0 && !commit_started_ && ready_.empty() &&
         backlog_.empty() && space_waiters_.empty() && settle_waiters_.empty() && slow_backlog_.empty();
}

void Writer::resume(HomeIoList& ios) {
  ready_.append(ios);
  drain();
}

void Writer::resume_backlog() {
  if (backlog_.empty() || journal_.congested()) return;
  resume(backlog_);
}

void Writer::resume_space_waiters() {
  resume(space_waiters_);
}

void Writer::resume_settle_waiters() {
  resume(settle_waiters_);
}

// One loop for all, so that a device that completes within submit() does not nest requests without bound.
void Writer::drain() {
  if (draining_) return;
  draining_ = true;
  while (true) {
    HomeIo* io = ready_.pop();
    // One that waited among the slow ones may need no place of theirs by now: the next has it then.
    const bool slow_turn = io == nullptr && slow_running_ < kSlowAtOnce && !slow_backlog_.empty();
    if (slow_turn) io = &slow_backlog_.pop();
    if (io == nullptr) break;
    slow_turn_ = slow_turn;
    dispatch(*io);
  }
  slow_turn_ = false;
  draining_ = false;
}

void Writer::finish(HomeIo& io, bdev::IoStatus status) {
  io.status = status;
  io.done(io);
}

void Writer::note_change(HomeIo& io) {
  io.uncommitted_ = publication_.changed(*io.volume, io.index, journal_.outlives_process());
}

void Writer::finish_published(HomeIo& io) {
  if (!age_.running()) age_.start(lane_.reactor(), longest_queued_us_);
  finish(io, bdev::IoStatus::kOk);
}

void Writer::finish_when_committed(HomeIo& io) {
  if (!io.uncommitted_ && journal_.outlives_process()) return finish_published(io);
  published_.push(io);
  start_commit();
}

void Writer::start_commit() {
  if (commit_started_ || published_.empty()) return;
  commit_started_ = true;
  lane_.reactor().post(commit_turn_);
}

void Writer::committed(bool ok) {
  commit_started_ = false;
  HomeIoList done;
  done.append(committing_);
  start_commit();
  while (HomeIo* io = done.pop()) {
    if (std::exchange(io->uncommitted_, false)) publication_.committed(*io->volume, io->index, ok);
    finish(*io, ok ? bdev::IoStatus::kOk : bdev::IoStatus::kIoError);
  }
}

void Writer::dispatch(HomeIo& io) {
  Volume& volume = *io.volume;
  if (journal_.failed() && io.op != HomeIo::Op::kLoad) return finish(io, bdev::IoStatus::kIoError);
  if (io.op != HomeIo::Op::kLoad && Publication::frozen(volume)) {
    volume.parked.push(io);
    return;
  }
  const std::size_t slot = io.index / kLeafEntries;
  // A growth that did not become durable may have been taken back.
  if (slot >= volume.leaves.size()) return finish(io, bdev::IoStatus::kInvalid);
  const PageNo page = volume.leaves[slot];
  if (page != 0) {
    const Leaf* leaf = state_.leaf(page);
    if (leaf == nullptr) return reactor::spawn(load_and_start(io));
    publication_.refresh(volume, slot);
    if (leaf->damaged) return finish(io, bdev::IoStatus::kMediumError);
  }
  if (io.op == HomeIo::Op::kLoad) return finish(io, bdev::IoStatus::kOk);
  // Something open may come to be under way at the Publication as well.
  if (journal_.congested() || open_.size() + publication_.at_work() >= kClusters) {
    backlog_.push(io);
    journal_.kick();
    return;
  }
  const ClusterState now = state_.cluster(volume, io.index);
  if (now.sharing == Sharing::kContested) {
    settle_waiters_.push(io);
    return space_.settle();
  }
  io.epoch_ = lane_.begin();
  if (changes_block(io, now)) {
    OpenCluster* cluster = open_.find(volume.number, io.index);
    if (cluster == nullptr) return start_slow(io);
    lane_.end(io.epoch_);
    cluster->waiting.push(io);
    return;
  }
  if (io.op == HomeIo::Op::kWrite) return write(io, now);
  io.op == HomeIo::Op::kZero ? zero(io, now) : own(io, now);
}

reactor::Task<void> Writer::load_and_start(HomeIo& io) {
  ++loading_;
  const auto loaded = co_await loader_.leaf_of(*io.volume, io.index / kLeafEntries);
  --loading_;
  if (loaded) {
    start(io);
  } else {
    finish(io, bdev::IoStatus::kIoError);
  }
}

void Writer::write(HomeIo& io, const ClusterState& now) {
  Volume& volume = *io.volume;
  const Masks range = masks(io.offset, io.length);
  OpenCluster* cluster = open_.find(volume.number, io.index);
  if (cluster != nullptr && (cluster->exclusive || !cluster->waiting.empty())) {
    lane_.end(io.epoch_);
    cluster->waiting.push(io);
    return;
  }
  const bool own_it = now.alone();
  const MapEntry& entry = now.entry;

  // All of it was written before and is ours alone: nothing about the map changes.
  if (own_it && (entry.bits & range.touched) == range.touched) return write_in_place(io, entry.own);

  const bool aligned = range.touched == range.covered;
  // Sub-blocks that only a half-written cluster shared with another map holds; a new cluster must get them too, unless
  // this write replaces them.
  const std::uint64_t inherited =
      entry.own != 0 && !own_it && !entry.full() ? entry.bits & ~state_.geometry.unused_bits() & ~range.covered : 0;
  const bool settled = cluster != nullptr || own_it;
  if (cluster != nullptr && (!aligned || (cluster->busy & range.touched) != 0)) {
    lane_.end(io.epoch_);
    cluster->waiting.push(io);
    return;
  }
  if (!aligned || (!settled && inherited != 0)) return start_slow(io);

  if (cluster == nullptr) {
    ClusterNo own = entry.own;
    ClusterNo base = entry.base;
    if (!own_it) {
      const auto fresh = space_.allocate(volume);
      if (!fresh) return no_space(io);
      if (entry.full()) base = entry.own;
      own = *fresh;
    }
    cluster = &open_.insert(volume.number, io.index);
    cluster->own = own;
    cluster->base = base;
    cluster->fresh = !own_it;
    // All that a half-written shared cluster holds is replaced by this write: until it is there no other write may
    // publish the new cluster, which would hide the old one.
    if (!own_it && entry.own != 0 && !entry.full()) {
      cluster->exclusive = true;
      hold(io, *cluster);
    }
  }
  fill(io, *cluster, range.touched);
}

void Writer::no_space(HomeIo& io) {
  lane_.end(io.epoch_);
  if (space_.reclaim()) {
    space_waiters_.push(io);
  } else {
    finish(io, bdev::IoStatus::kNoSpace);
  }
}

void Writer::submit_data(HomeIo& io, ClusterNo own, void (*complete)(bdev::IoRequest&)) {
  io.data_.op = bdev::IoOp::kWrite;
  io.data_.flags = 0;
  io.data_.stream = io.stream;
  io.data_.iov = io.iov;
  io.data_.iov_count = io.iov_count;
  io.data_.length_bytes = io.length;
  io.data_.complete = complete;
  io.writer_ = this;
  io.data_.io = &io;
  lane_.data().submit(io.data_, own, io.offset);
}

void Writer::write_in_place(HomeIo& io, ClusterNo own) {
  publication_.looked(*io.volume, io.index);
  submit_data(io, own, [](bdev::IoRequest& data) {
    HomeIo& self = HomeIo::of(data);
    self.writer_->written_in_place(self);
  });
}

void Writer::written_in_place(HomeIo& io) {
  lane_.end(io.epoch_);
  if (io.data_.status != bdev::IoStatus::kOk) return finish(io, io.data_.status);
  // What leads to the cluster may have failed to become durable meanwhile.
  if (journal_.failed()) return finish(io, bdev::IoStatus::kIoError);
  if (publication_.uncommitted(*io.volume, io.index)) return finish_when_committed(io);
  finish(io, bdev::IoStatus::kOk);
}

void Writer::hold(HomeIo& io, OpenCluster& cluster) {
  publication_.hold(*io.volume, io.index);
  cluster.held = true;
}

void Writer::fill(HomeIo& io, OpenCluster& cluster, std::uint64_t mask) {
  io.mask_ = mask;
  io.cluster_ = &cluster;
  cluster.busy |= mask;
  ++cluster.in_flight;
  submit_data(io, cluster.own, [](bdev::IoRequest& data) {
    HomeIo& self = HomeIo::of(data);
    self.writer_->filled(self);
  });
}

void Writer::filled(HomeIo& io) {
  OpenCluster& cluster = *io.cluster_;
  bdev::IoStatus status = io.data_.status;
  if (status == bdev::IoStatus::kOk) {
    const MapEntry now = state_.entry(*io.volume, io.index);
    MapEntry entry{.own = cluster.own, .base = cluster.base, .bits = io.mask_ | state_.geometry.unused_bits()};
    if (now.own == cluster.own) entry.bits |= now.bits;
    if (entry.full()) entry.base = 0;
    status = publish(*io.volume, io.index, entry);
    if (status == bdev::IoStatus::kOk) {
      cluster.fresh = false;
      note_change(io);
    }
  }
  if (cluster.held) publication_.release(*io.volume, io.index);
  cluster.busy &= ~io.mask_;
  --cluster.in_flight;
  lane_.end(io.epoch_);
  release(cluster);
  if (status == bdev::IoStatus::kOk) {
    finish_when_committed(io);
  } else {
    finish(io, status);
  }
  drain();
}

void Writer::release(OpenCluster& cluster) {
  ready_.append(cluster.waiting);
  if (cluster.in_flight != 0) return;
  // Nothing led to it and nothing ever will.
  if (cluster.fresh && cluster.own != 0) state_.refcounts.give_back(cluster.own);
  open_.erase(cluster);
}

bdev::IoStatus Writer::publish(Volume& volume, std::uint32_t index, const MapEntry& entry) {
  if (!space_.has_pages(kPagesPerChange) && !space_.ensure_pages(kPagesPerChange)) return bdev::IoStatus::kNoSpace;
  const MapSetRecord record{
      .header = {.type = RecordType::kMapSet, .bytes = sizeof(MapSetRecord), .volume = volume.number},
      .index = index,
      .reserved = 0,
      .entry = {.own = entry.own, .base = entry.base, .bits = entry.bits}};
  if (auto applied = state_.apply(volume, record); !applied) [[unlikely]] {
    // The state in memory can no longer be trusted: what is on the device stays as the last commit left it.
    journal_.give_up("volume " + volume.id.to_string() + ": " + applied.error().message, Journal::Loss::kNone);
    return bdev::IoStatus::kIoError;
  }
  journal_.append(record.header);
  return bdev::IoStatus::kOk;
}

void Writer::own(HomeIo& io, const ClusterState& now) {
  if (OpenCluster* cluster = open_.find(io.volume->number, io.index)) {
    lane_.end(io.epoch_);
    cluster->waiting.push(io);
    return;
  }
  if (now.entry.own != 0 && (now.entry.base != 0 || !now.alone())) return start_slow(io);
  lane_.end(io.epoch_);
  finish(io, bdev::IoStatus::kOk);
}

void Writer::zero(HomeIo& io, const ClusterState& now) {
  Volume& volume = *io.volume;
  if (OpenCluster* cluster = open_.find(volume.number, io.index)) {
    lane_.end(io.epoch_);
    cluster->waiting.push(io);
    return;
  }
  const bool own_it = now.alone();
  const MapEntry& entry = now.entry;
  MapEntry changed = entry;
  if (entry.own != 0) {
    const Masks range = masks(io.offset, io.length);
    const std::uint64_t unused = state_.geometry.unused_bits();
    if (whole_cluster(io)) {
      changed = {};
    } else if (own_it && entry.base == 0 && (entry.bits & range.touched & ~range.covered) == 0) {
      // A cleared bit reads as zeros here. A cluster without any goes back.
      changed.bits = (entry.bits & ~range.covered) | unused;
      if (changed.bits == unused) changed = {};
    } else {
      return start_slow(io);
    }
  }
  lane_.end(io.epoch_);
  if (changed.bits == entry.bits && changed.own == entry.own) return finish(io, bdev::IoStatus::kOk);
  const bdev::IoStatus status = publish(volume, io.index, changed);
  if (status == bdev::IoStatus::kOk) {
    // Whatever a kill brings back holds all that can be written in place from here on.
    publication_.changed(volume, io.index, /*outlives_process=*/true);
    finish_when_committed(io);
  } else {
    finish(io, status);
  }
}

}  // namespace pollux::blob
