#include "control/pool_checks.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/log.h"

namespace pollux::control {

volume::JobInfo PoolCheckInfo::as_job() const {
  return {
      .id = id, .kind = "check", .volume_id = result.id, .state = state, .done = done, .total = total, .error = error};
}

PoolChecks::~PoolChecks() {
  // Nobody starts one any more: the control port is closed.
  for (const auto& check : checks_) check->progress->cancelled = true;
  for (const auto& check : checks_) check->thread.join();
}

PoolChecks::Check* PoolChecks::look_up(const Uuid& id) const {
  const auto found =
      std::find_if(checks_.begin(), checks_.end(), [&](const auto& check) { return check->request.id == id; });
  return found == checks_.end() ? nullptr : found->get();
}

PoolCheckInfo PoolChecks::describe(const Check& check) const {
  PoolCheckInfo info = check.info;
  info.done = check.progress->done;
  info.total = check.progress->total;
  return info;
}

void PoolChecks::forget_old() {
  std::size_t ended = 0;
  for (auto at = checks_.end(); at != checks_.begin();) {
    --at;
    if ((*at)->info.state == volume::JobState::kRunning || ++ended <= kRemembered) continue;
    // It has said that it ended, so this does not wait.
    (*at)->thread.join();
    at = checks_.erase(at);
  }
}

Result<PoolCheckInfo> PoolChecks::start(const Request& request, Deadline deadline) {
  // One at a time, so that an id is taken once; who asks how checks stand does not wait for a pool to close.
  const std::unique_lock turn(starting_, deadline.at());
  if (!turn.owns_lock()) return fail(ErrorCode::kRetry, "another check takes long to begin: repeat the request");
  {
    const std::lock_guard lock(mutex_);
    if (const Check* known = look_up(request.id)) {
      if (known->request.pool == request.pool && known->request.repair == request.repair) return describe(*known);
      return fail(ErrorCode::kExists, "check " + request.id.to_string() + " is one of pool " + known->request.pool +
                                          (known->request.repair ? ", with repair" : ", without repair"));
    }
    const auto running = std::count_if(checks_.begin(), checks_.end(), [](const auto& check) {
      return check->info.state == volume::JobState::kRunning;
    });
    if (static_cast<std::size_t>(running) >= kMaxRunning) {
      return fail(ErrorCode::kRetry, std::to_string(running) + " checks run already: wait for one to end");
    }
    forget_old();
  }
  auto pool = pools_.begin_check(request.pool, deadline);
  if (!pool) return fail(std::move(pool.error()));
  auto check = std::make_unique<Check>();
  check->request = request;
  check->pool = std::move(*pool);
  check->info.id = request.id;
  check->info.repair = request.repair;
  check->info.result.id = check->pool.id;
  check->info.result.name = check->pool.name.empty() ? request.pool : check->pool.name;
  // Under the lock until it is in the list: the thread takes it before it says that it has ended.
  const std::lock_guard lock(mutex_);
  try {
    check->thread = std::thread([this, &started = *check] { run(started); });
  } catch (const std::system_error& error) {
    const std::string why = "no thread for a check: " + std::string(error.what());
    if (const auto opened = pools_.end_check(check->pool); !opened) {
      return fail(ErrorCode::kInternal, why + "; the pool is not open: " + opened.error().message);
    }
    return fail(ErrorCode::kRetry, why);
  }
  return describe(*checks_.emplace_back(std::move(check)));
}

Result<volume::PoolCheck> PoolChecks::examine(const Check& check) {
  auto& home = reactors_.main();
  if (!check.pool.id.is_nil()) {
    // Closed already, unless that took longer than the call that asked for it could wait.
    const auto closed = reactor::call(home, volumes_.export_pool(check.pool.id.to_string()));
    if (!closed && closed.error().code != ErrorCode::kNotFound) return fail(closed.error());
  }
  return reactor::call(home, volumes_.check_pool(check.pool.bdev, check.pool.id, check.request.repair, check.progress));
}

void PoolChecks::run(Check& check) {
  auto result = examine(check);
  auto opened = pools_.end_check(check.pool);
  // What was attached when the pool could not be opened comes back with it.
  if (opened && !check.pool.id.is_nil()) opened = attachments_.restore(pools_.all_open());

  const std::lock_guard lock(mutex_);
  PoolCheckInfo& info = check.info;
  if (result) {
    info.result = std::move(*result);
    info.state = volume::JobState::kDone;
    log::info("control: check of pool {}: {} lost, {} doubly used, {} leaked, {} damaged; {} repaired",
              info.result.name, info.result.lost, info.result.doubly_used, info.result.leaked, info.result.damaged,
              info.result.repaired);
  } else {
    info.state = check.progress->cancelled ? volume::JobState::kCancelled : volume::JobState::kFailed;
    info.error = result.error().message;
    log::error("control: check of pool {}: {}", info.result.name, info.error);
  }
  if (!opened) {
    const std::string why = "pool " + info.result.name + " is not open: " + opened.error().message;
    if (info.error != opened.error().message) info.error += (info.error.empty() ? "" : "; ") + why;
    log::error("control: {}", why);
  }
}

Result<PoolCheckInfo> PoolChecks::find(const Uuid& id) const {
  const std::lock_guard lock(mutex_);
  const Check* check = look_up(id);
  if (check == nullptr) return fail(ErrorCode::kNotFound, "check " + id.to_string() + " is not known here");
  return describe(*check);
}

std::vector<PoolCheckInfo> PoolChecks::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<PoolCheckInfo> list;
  for (const auto& check : checks_) list.push_back(describe(*check));
  return list;
}

bool PoolChecks::cancel(const Uuid& id) {
  const std::lock_guard lock(mutex_);
  const Check* check = look_up(id);
  if (check == nullptr) return false;
  check->progress->cancelled = true;
  return true;
}

}  // namespace pollux::control
