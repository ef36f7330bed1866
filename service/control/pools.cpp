#include "control/pools.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/log.h"
#include "control/signature.h"

namespace pollux::control {

namespace {

// A file that is missing must not be made anew, empty.
bdev::Spec existing(bdev::Spec bdev) {
  bdev.size_bytes = 0;
  return bdev;
}

}  // namespace

Result<std::unique_lock<std::timed_mutex>> Pools::turn(Deadline deadline) {
  std::unique_lock lock(changes_, deadline.at());
  if (!lock.owns_lock()) {
    return fail(ErrorCode::kRetry, "other changes to pools took longer than this call may wait: repeat the request");
  }
  return lock;
}

Status Pools::restore() {
  const auto recorded = store_.pools();
  if (!recorded) return fail(recorded.error());
  std::vector<PoolRecord> kept;
  std::vector<volume::VolumeService::ToImport> wanted;
  for (const auto& record : *recorded) {
    if (record.bdev.kind == bdev::Spec::Kind::kRam) {
      log::warn("control: pool {} was in memory and is gone with the process before this one", record.name);
      POLLUX_TRY(store_.drop_pool(record.id));
      continue;
    }
    kept.push_back(record);
    wanted.push_back({existing(record.bdev), record.id});
  }
  auto volumes = attached();
  if (!volumes) return fail(std::move(volumes.error()));
  const auto answers =
      reactor::call(reactors_.main(), volumes_.import_pools(std::move(wanted), std::move(*volumes)));
  if (!answers) return fail(answers.error());
  for (std::size_t i = 0; i < kept.size(); ++i) {
    const auto& opened = answers->at(i);
    if (opened) {
      log::info("control: pool {} opened: {} volumes, {} snapshots", opened->name, opened->volumes, opened->snapshots);
      continue;
    }
    log::error("control: pool {} does not open: {}", kept[i].name, opened.error().message);
    const std::lock_guard lock(unopened_mutex_);
    unopened_.emplace(kept[i].id, Unopened{kept[i], opened.error().message});
  }
  return {};
}

Result<std::vector<Uuid>> Pools::attached() {
  std::vector<Uuid> volumes;
  if (guests_ == Guests::kGone) return volumes;
  const auto records = store_.attachments();
  if (!records) return fail(records.error());
  for (const auto& record : *records) volumes.push_back(record.volume);
  return volumes;
}

Result<volume::PoolInfo> Pools::open(const PoolRecord& record) {
  auto volumes = attached();
  if (!volumes) return fail(std::move(volumes.error()));
  return reactor::call(reactors_.main(),
                       volumes_.import_pool(existing(record.bdev), record.id, false, std::move(*volumes)));
}

Status Pools::record(const volume::PoolInfo& pool, const bdev::Spec& bdev) {
  if (auto stored = store_.put_pool({pool.id, pool.name, bdev}); !stored) return stored;
  const std::lock_guard lock(unopened_mutex_);
  unopened_.erase(pool.id);
  return {};
}

Result<volume::PoolInfo> Pools::create(volume::PoolSpec spec, bool overwrite, Deadline deadline) {
  const auto lock = turn(deadline);
  if (!lock) return fail(lock.error());
  {
    const std::lock_guard guard(unopened_mutex_);
    for (const auto& [id, unopened] : unopened_) {
      if (unopened.record.name == spec.name && id != spec.id) {
        return fail(ErrorCode::kExists, "the name " + spec.name + " belongs to pool " + id.to_string() +
                                            ", which is not open: " + unopened.reason);
      }
    }
  }
  auto volumes = attached();
  if (!volumes) return fail(std::move(volumes.error()));
  spec.attached = std::move(*volumes);
  spec.may_format = overwrite || spec.bdev.kind == bdev::Spec::Kind::kRam;
  auto pool = reactor::call(reactors_.main(), volumes_.create_pool(spec), deadline.remaining_ms());
  if (!pool && pool.error().code == ErrorCode::kNotFound && !spec.may_format) {
    // No pool is there: what else is?
    const auto signature = find_signature(spec.bdev.path);
    if (!signature) return fail(signature.error());
    if (!signature->empty()) {
      return fail(ErrorCode::kExists, spec.bdev.path + " holds: " + *signature +
                                          ". Nothing was written; to lose it, repeat the request with overwrite");
    }
    spec.may_format = true;
    pool = reactor::call(reactors_.main(), volumes_.create_pool(spec), deadline.remaining_ms());
  }
  if (!pool) return pool;
  POLLUX_TRY(record(*pool, spec.bdev));
  return pool;
}

Result<volume::PoolInfo> Pools::import(const bdev::Spec& bdev, bool force, Deadline deadline) {
  const auto lock = turn(deadline);
  if (!lock) return fail(lock.error());
  auto volumes = attached();
  if (!volumes) return fail(std::move(volumes.error()));
  auto pool = reactor::call(reactors_.main(), volumes_.import_pool(bdev, {}, force, std::move(*volumes)),
                            deadline.remaining_ms());
  if (!pool) {
    POLLUX_TRY(note_closed(bdev, pool.error().message, deadline));
    return pool;
  }
  POLLUX_TRY(record(*pool, bdev));
  return pool;
}

// An import of a pool that was lost to another owner closes it first, and may fail after that.
Status Pools::note_closed(const bdev::Spec& bdev, const std::string& reason, Deadline deadline) {
  const auto recorded = store_.pools();
  if (!recorded) return fail(recorded.error());
  for (const auto& record : *recorded) {
    if (record.bdev.path != bdev.path) continue;
    const auto open =
        reactor::call(reactors_.main(), volumes_.describe_pool(record.id.to_string()), deadline.remaining_ms());
    if (open || open.error().code != ErrorCode::kNotFound) continue;
    const std::lock_guard guard(unopened_mutex_);
    unopened_.emplace(record.id, Unopened{record, reason});
  }
  return {};
}

Status Pools::forget(const std::string& pool, Deadline deadline) {
  const auto lock = turn(deadline);
  if (!lock) return fail(lock.error());
  const auto recorded = store_.pools();
  if (!recorded) return fail(recorded.error());
  const PoolRecord* known = nullptr;
  for (const auto& record : *recorded) {
    if (record.name == pool || record.id.to_string() == pool) known = &record;
  }
  if (known != nullptr) POLLUX_TRY(check_not_checked(known->id));
  const auto closed = reactor::call(reactors_.main(), volumes_.export_pool(pool), deadline.remaining_ms());
  // What is not open has nothing to close; what is not recorded either is gone already.
  if (!closed && closed.error().code != ErrorCode::kNotFound) return closed;
  if (known == nullptr) return {};
  POLLUX_TRY(store_.drop_pool(known->id));
  const std::lock_guard guard(unopened_mutex_);
  unopened_.erase(known->id);
  return {};
}

Status Pools::check_not_checked(const Uuid& pool) const {
  const std::lock_guard guard(unopened_mutex_);
  const auto found = unopened_.find(pool);
  if (found == unopened_.end() || !found->second.checking) return {};
  return fail(ErrorCode::kBusy, "pool " + found->second.record.name + " is being checked: wait for that, or cancel it");
}

Status Pools::check_no_job(const std::string& pool, Deadline deadline) {
  const auto jobs = reactor::call(reactors_.main(), volumes_.list_jobs(), deadline.remaining_ms());
  if (!jobs) return fail(jobs.error());
  for (const auto& job : *jobs) {
    // Deletes go on where they were.
    if (job.state != volume::JobState::kRunning || job.kind == "delete") continue;
    const auto volume =
        reactor::call(reactors_.main(), volumes_.describe_volume(job.volume_id), deadline.remaining_ms());
    if (!volume && volume.error().code == ErrorCode::kRetry) return fail(volume.error());
    if (!volume || volume->pool != pool) continue;
    return fail(ErrorCode::kBusy, "pool " + pool + " cannot be checked while " + job.kind + " of volume " +
                                      job.volume_id.to_string() + " runs: wait for job " + job.id.to_string() +
                                      ", or cancel it");
  }
  return {};
}

Result<PoolRecord> Pools::begin_check(const std::string& pool, Deadline deadline) {
  const auto lock = turn(deadline);
  if (!lock) return fail(lock.error());
  const auto recorded = store_.pools();
  if (!recorded) return fail(recorded.error());
  const auto known = std::find_if(recorded->begin(), recorded->end(), [&](const PoolRecord& record) {
    return record.name == pool || record.id.to_string() == pool || record.bdev.path == pool;
  });
  if (known == recorded->end()) {
    if (pool.empty() || pool.front() != '/') return fail(ErrorCode::kNotFound, "pool '" + pool + "' is not known here");
    return PoolRecord{.id = {}, .name = {}, .bdev = {.kind = bdev::Spec::Kind::kUring, .path = pool, .size_bytes = 0}};
  }
  POLLUX_TRY(check_not_checked(known->id));
  if (known->bdev.kind == bdev::Spec::Kind::kRam) {
    return fail(ErrorCode::kUnsupported, "pool " + known->name + " is in memory: closing it for a check would lose it");
  }
  POLLUX_TRY(check_no_job(known->name, deadline));
  // From here on it counts as not open, so that callers repeat their requests. A crash leaves it recorded, to be opened
  // at start.
  const std::string why = "it is being checked";
  std::optional<Unopened> before;
  {
    const std::lock_guard guard(unopened_mutex_);
    if (const auto found = unopened_.find(known->id); found != unopened_.end()) before = found->second;
    unopened_.insert_or_assign(known->id, Unopened{*known, why, true});
  }
  const auto closed =
      reactor::call(reactors_.main(), volumes_.export_pool(known->id.to_string()), deadline.remaining_ms());
  // A close that did not end in time may still do, and one that failed has closed it all the same: whatever becomes of
  // this call, the pool has to be opened again.
  if (closed || closed.error().code != ErrorCode::kBusy) return *known;
  const std::lock_guard guard(unopened_mutex_);
  if (before) {
    unopened_.insert_or_assign(known->id, *before);
  } else {
    unopened_.erase(known->id);
  }
  return fail(ErrorCode::kBusy, "pool " + known->name + " cannot be checked: " + closed.error().message +
                                    "; detach its volumes and close their data sockets first");
}

Status Pools::end_check(const PoolRecord& pool) {
  if (pool.id.is_nil()) return {};
  const auto opened = open(pool);
  const std::lock_guard guard(unopened_mutex_);
  if (opened) {
    unopened_.erase(pool.id);
    return {};
  }
  unopened_.insert_or_assign(pool.id, Unopened{pool, opened.error().message, false});
  return fail(opened.error());
}

bool Pools::all_open() const {
  const std::lock_guard lock(unopened_mutex_);
  return unopened_.empty();
}

std::map<std::string, std::string> Pools::unopened() const {
  const std::lock_guard lock(unopened_mutex_);
  std::map<std::string, std::string> reasons;
  for (const auto& [id, unopened] : unopened_) {
    if (!unopened.checking) reasons.emplace(unopened.record.name, unopened.reason);
  }
  return reasons;
}

Error Pools::explain(Error error) const {
  if (error.code != ErrorCode::kNotFound) return error;
  const std::lock_guard lock(unopened_mutex_);
  if (unopened_.empty()) return error;
  std::string message = error.message + "; it may be in a pool that is not open:";
  for (const auto& [id, unopened] : unopened_) message += " " + unopened.record.name + " (" + unopened.reason + ")";
  return {ErrorCode::kRetry, message};
}

}  // namespace pollux::control
