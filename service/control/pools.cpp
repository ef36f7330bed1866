#include "control/pools.h"

#include <utility>

#include "base/log.h"
#include "control/signature.h"

namespace pollux::control {

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
  for (const auto& record : *recorded) {
    if (record.bdev.kind == bdev::Spec::Kind::kRam) {
      log::warn("control: pool {} was in memory and is gone with the process before this one", record.name);
      POLLUX_TRY(store_.drop_pool(record.id));
      continue;
    }
    bdev::Spec bdev = record.bdev;
    bdev.size_bytes = 0;  // a file that is missing must not be made anew, empty
    auto opened = reactor::call(reactors_.main(), volumes_.import_pool(std::move(bdev)));
    if (opened && opened->id != record.id) {
      const auto closed = reactor::call(reactors_.main(), volumes_.export_pool(opened->id.to_string()));
      opened = fail(ErrorCode::kCorrupt, record.bdev.path + " holds the pool " + opened->name + " (" +
                                             opened->id.to_string() + ") instead" +
                                             (closed ? "" : ", which does not close: " + closed.error().message));
    }
    if (opened) {
      log::info("control: pool {} opened: {} volumes, {} snapshots", opened->name, opened->volumes, opened->snapshots);
      continue;
    }
    log::error("control: pool {} does not open: {}", record.name, opened.error().message);
    const std::lock_guard lock(unopened_mutex_);
    unopened_.emplace(record.id, Unopened{record, opened.error().message});
  }
  return {};
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

Result<volume::PoolInfo> Pools::import(const bdev::Spec& bdev, Deadline deadline) {
  const auto lock = turn(deadline);
  if (!lock) return fail(lock.error());
  auto pool = reactor::call(reactors_.main(), volumes_.import_pool(bdev), deadline.remaining_ms());
  if (!pool) return pool;
  POLLUX_TRY(record(*pool, bdev));
  return pool;
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
  const auto closed = reactor::call(reactors_.main(), volumes_.export_pool(pool), deadline.remaining_ms());
  // What is not open has nothing to close; what is not recorded either is gone already.
  if (!closed && closed.error().code != ErrorCode::kNotFound) return closed;
  if (known == nullptr) return {};
  POLLUX_TRY(store_.drop_pool(known->id));
  const std::lock_guard guard(unopened_mutex_);
  unopened_.erase(known->id);
  return {};
}

bool Pools::all_open() const {
  const std::lock_guard lock(unopened_mutex_);
  return unopened_.empty();
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
