// Long work in the background: emptying deleted volumes, flattening, discarding free space. The rest of the Store is in store.cpp.

#include <algorithm>

#include "base/log.h"
#include "blob/parallel.h"
#include "blob/store.h"

namespace pollux::blob {

namespace {

constexpr std::size_t kLeavesPerTurn = 16;
// How long a delete waits after an error of the device.
constexpr std::uint64_t kReadAgainUs = 1'000'000;
// Bounds the memory of a flatten: each holds at most one cluster. Leaves room for guests' own slow writes.
constexpr std::size_t kCopiesAtOnce = 8;
// Finished jobs that are still listed, so that who waits for one sees how it ended.
constexpr std::size_t kFinishedJobs = 64;

// A piece of work for the Writer, to be awaited.
struct OwnCluster : HomeIo {
  reactor::Completion<bdev::IoStatus> completion;

  OwnCluster(Volume& of, std::uint32_t cluster, std::uint32_t cluster_bytes) {
    volume = &of;
    op = Op::kOwn;
    index = cluster;
    length = cluster_bytes;
    done = [](HomeIo& io) { static_cast<OwnCluster&>(io).completion.set(io.status); };
  }
};

}  // namespace

// ---- Delete

void Store::empty_in_background(Volume& volume) {
  // Listed from here on: when the delete is answered there is a job to wait for, or it is done.
  Job& job = *jobs_.emplace_back(
      std::make_unique<Job>(Job{.id = volume.id, .volume_id = volume.id, .kind = "delete"}));
  ++background_;
  reactor::spawn(empty(volume.number, job), [this] { --background_; });
}

reactor::Task<void> Store::empty(VolumeNo number, Job& job) {
  // The caller goes on first.
  co_await home().yield();
  Volume& volume = *state_->find(number);
  const Uuid id = volume.id;
  if (auto done = co_await empty_steps(volume, job); !done) {
    log::error("delete of volume {} does not go on: {}", id.to_string(), done.error().message);
  }
  std::erase_if(jobs_, [&job](const auto& each) { return each.get() == &job; });
}

// Leaf by leaf; a crash leaves the volume marked as deleting with some leaves gone, and the next start goes on.
reactor::Task<Status> Store::empty_steps(Volume& volume, Job& job) {
  // What let the volume go must be durable before others may write to what they shared with it.
  POLLUX_CO_TRY(co_await journal_->commit());
  POLLUX_CO_TRY(co_await loader_->index(volume));
  job.total = state_->clusters_of(volume.size_bytes);
  for (std::size_t slot = 0; slot < volume.leaves.size(); ++slot) {
    job.done = slot * kLeafEntries;
    if (volume.leaves[slot] == 0) continue;
    // What a leaf names can be given back only by reading it.
    while (state_->pages.refs(volume.leaves[slot]) == 1) {
      if (closing_ || co_await loader_->leaf_of(volume, slot)) break;
      co_await pause(kReadAgainUs);
      if (journal_->failed()) co_return fail(ErrorCode::kIoError, "the pool has failed");
    }
    if (closing_) co_return Status{};
    auto record = make_record<DropLeafRecord>(RecordType::kDropLeaf, volume.number);
    record.slot = static_cast<std::uint32_t>(slot);
    POLLUX_CO_TRY(change(record.header));
    if (slot % kLeavesPerTurn == 0) {
      if (journal_->congested()) POLLUX_CO_TRY(co_await journal_->commit());
      co_await home().yield();
    }
  }
  POLLUX_CO_TRY(change(make_record<VolumeOnlyRecord>(RecordType::kVolumeFree, volume.number).header));
  co_return co_await journal_->commit();
}

// ---- Flatten

Job* Store::find_job(const Uuid& id) const {
  const auto found = std::find_if(jobs_.begin(), jobs_.end(), [&id](const auto& each) { return each->id == id; });
  return found == jobs_.end() ? nullptr : found->get();
}

reactor::Task<Result<Job>> Store::flatten(Uuid id, Uuid job_id) {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  auto guard = co_await structure_.lock();
  auto found = live(id);
  if (!found) co_return fail(std::move(found.error()));
  Volume& volume = **found;
  if (const Job* there = find_job(job_id)) {
    if (there->volume_id == id && there->kind == kFlatten) co_return *there;
    co_return fail(ErrorCode::kExists, "job " + job_id.to_string() + " exists already and is another one");
  }
  if (volume.snapshot()) co_return fail(ErrorCode::kInvalid, "a snapshot cannot be flattened; it is read-only");
  if (volume.pinned) co_return fail(ErrorCode::kBusy, "volume " + id.to_string() + " has a job running already");
  if (journal_->failed()) co_return fail(ErrorCode::kIoError, "pool '" + name() + "' has failed and takes no changes");
  forget_old_jobs();
  volume.pinned = true;
  Job& job = *jobs_.emplace_back(
      std::make_unique<Job>(Job{.id = job_id, .volume_id = id, .kind = kFlatten, .total = volume.mapped}));
  ++background_;
  reactor::spawn(run_flatten(volume, job), [this] { --background_; });
  co_return job;
}

void Store::forget_old_jobs() {
  const auto finished = [](const auto& each) { return each->state != JobState::kRunning; };
  while (static_cast<std::size_t>(std::count_if(jobs_.begin(), jobs_.end(), finished)) >= kFinishedJobs) {
    jobs_.erase(std::find_if(jobs_.begin(), jobs_.end(), finished));
  }
}

Status Store::cancel(const Uuid& id) {
  Job* job = find_job(id);
  if (job == nullptr) return fail(ErrorCode::kNotFound, "job " + id.to_string() + " does not exist");
  if (job->kind != kFlatten && job->kind != kTrim) {
    return fail(ErrorCode::kUnsupported, "a " + job->kind + " cannot be cancelled: the volume is gone already");
  }
  // One that ended stays as it ended.
  job->cancelled = true;
  return {};
}

reactor::Task<void> Store::run_flatten(Volume& volume, Job& job) {
  // The caller goes on first.
  co_await home().yield();
  const Status done = co_await flatten_steps(volume, job);
  volume.pinned = false;
  if (!done) {
    job.state = JobState::kFailed;
    job.error = done.error().message;
    log::error("flatten of volume {} failed: {}", volume.id.to_string(), job.error);
  } else if (job.state == JobState::kRunning) {
    job.state = JobState::kDone;
    job.done = job.total;
  }
}

// Cluster by cluster, each a change of its own: what a crash, a cancel or a full pool leaves behind is a volume that
// shares less than before. Guests write meanwhile, and snapshots may be taken.
reactor::Task<Status> Store::flatten_steps(Volume& volume, Job& job) {
  POLLUX_CO_TRY(co_await loader_->index(volume));
  std::vector<std::uint32_t> shared;
  for (std::size_t slot = 0; slot < volume.leaves.size(); ++slot) {
    if (job.cancelled || closing_) {
      job.state = JobState::kCancelled;
      co_return Status{};
    }
    const PageNo page = volume.leaves[slot];
    if (page == 0) continue;
    POLLUX_CO_TRY(co_await loader_->leaf_of(volume, slot));
    const std::uint32_t mapped = list_shared(volume, slot, shared);
    POLLUX_CO_TRY(co_await parallel(home(), shared.size(), kCopiesAtOnce,
                                    [&](std::size_t i) { return own_cluster(volume, shared[i]); }));
    job.done = std::min(job.done + mapped, job.total);
    co_await home().yield();
  }
  if (!volume.parent_id.is_nil()) {
    POLLUX_CO_TRY(change(make_record<VolumeOnlyRecord>(RecordType::kDetach, volume.number).header));
  }
  // The copies are as durable as what they were made from.
  co_return co_await journal_->commit(Journal::Data::kFlush);
}

// The clusters of a leaf that hang on something besides this volume; returns how many are mapped at all.
std::uint32_t Store::list_shared(const Volume& volume, std::size_t slot, std::vector<std::uint32_t>& shared) const {
  shared.clear();
  const PageNo page = volume.leaves[slot];
  const Leaf* leaf = page == 0 ? nullptr : state_->leaf(page);
  if (leaf == nullptr) return 0;
  const auto first = static_cast<std::uint32_t>(slot * kLeafEntries);
  if (leaf->damaged) {
    // The Writer's answer for one of its clusters is the job's.
    shared.push_back(first);
    return 0;
  }
  std::uint32_t mapped = 0;
  for (std::uint32_t i = 0; i < kLeafEntries; ++i) {
    const MapEntry entry = leaf->entries[i].get();
    if (entry.own == 0) continue;
    ++mapped;
    if (entry.base != 0 || state_->pages.refs(page) > 1 || !state_->refcounts.alone(entry.own)) {
      shared.push_back(first + i);
    }
  }
  return mapped;
}

reactor::Task<Status> Store::own_cluster(Volume& volume, std::uint32_t index) {
  OwnCluster io(volume, index, state_->geometry.cluster_bytes);
  writer_->start(io);
  const bdev::IoStatus status = co_await io.completion;
  if (status == bdev::IoStatus::kNoSpace) co_return fail(ErrorCode::kNoSpace, "pool '" + name() + "' is full");
  co_return bdev::to_status(status, "copy of cluster " + std::to_string(index));
}

// ---- Discard

reactor::Task<Result<Job>> Store::trim(Uuid job_id) {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  if (const Job* there = find_job(job_id)) {
    if (there->kind == kTrim) co_return *there;
    co_return fail(ErrorCode::kExists, "job " + job_id.to_string() + " exists already and is another one");
  }
  if (!lanes_.data_device().supports_unmap()) {
    co_return fail(ErrorCode::kUnsupported, lanes_.data_device().name() + " cannot take freed space back");
  }
  for (const auto& each : jobs_) {
    if (each->kind != kTrim || each->state != JobState::kRunning) continue;
    co_return fail(ErrorCode::kBusy, "pool '" + name() + "' is being trimmed already, by job " + each->id.to_string());
  }
  forget_old_jobs();
  Job& job = *jobs_.emplace_back(std::make_unique<Job>(
      Job{.id = job_id, .volume_id = super().pool_id, .kind = kTrim, .total = state_->geometry.cluster_count}));
  ++background_;
  reactor::spawn(run_trim(job), [this] { --background_; });
  co_return job;
}

reactor::Task<void> Store::run_trim(Job& job) {
  constexpr std::uint64_t kLookUs = 10'000;
  // The caller goes on first.
  co_await home().yield();
  discarder_->trim();
  while (discarder_->left_to_trim() != 0 && !job.cancelled && !gate_.closed()) {
    job.done = job.total - std::min(job.total, discarder_->left_to_trim());
    co_await home().sleep_us(kLookUs);
  }
  if (job.cancelled || gate_.closed()) {
    discarder_->forget();
    job.state = JobState::kCancelled;
  } else if (!lanes_.data_device().supports_unmap()) {
    job.state = JobState::kFailed;
    job.error = lanes_.data_device().name() + " cannot take freed space back";
  } else {
    job.state = JobState::kDone;
    job.done = job.total;
  }
}

reactor::Task<Status> Store::set_discard(bool enabled) {
  co_await home().enter();
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  auto guard = co_await structure_.lock();
  discarder_->enable(enabled);
  if (discards() == enabled) co_return Status{};
  const std::uint32_t others = super().compatible_flags & ~kSuperNoDiscard;
  checkpointer_->set_compatible_flags(others | (enabled ? 0 : kSuperNoDiscard));
  co_return co_await checkpointer_->run();
}

std::vector<Job> Store::jobs() const {
  std::vector<Job> all;
  for (const auto& each : jobs_) all.push_back(*each);
  return all;
}

}  // namespace pollux::blob
