#include "control/stop_limit.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "base/log.h"

namespace pollux::control {

StopLimit::StopLimit(std::chrono::seconds limit, std::string pid_file)
    : limit_(limit), pid_file_(std::move(pid_file)), thread_([this] { watch(); }) {}

StopLimit::~StopLimit() {
  {
    const std::lock_guard lock(mutex_);
    reached_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void StopLimit::waiting_for(std::string what) {
  const std::lock_guard lock(mutex_);
  what_ = std::move(what);
}

void StopLimit::watch() {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, limit_, [this] { return reached_; })) give_up();
}

void StopLimit::give_up() {
  log::error(
      "stop: not finished after {} s (service.stop_timeout_s), still waiting for {}; the process ends now. What was "
      "answered is safe: the next start replays the pools' journals and the requests that guests have in flight",
      limit_.count(), what_);
  if (!pid_file_.empty()) std::remove(pid_file_.c_str());
  std::_Exit(EXIT_FAILURE);
}

}  // namespace pollux::control
