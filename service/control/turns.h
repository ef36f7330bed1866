#pragma once
// Turns: changes to one object happen one after the other, changes to different ones at once, so that one which waits
// for a device keeps nobody waiting who wants something else.
//
// An object is a name. Who takes several takes them in one order everywhere, which its class states.

#include <condition_variable>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "base/result.h"
#include "control/deadline.h"

namespace pollux::control {

class Turns {
 public:
  class Turn {
   public:
    Turn(Turns& turns, std::string object) : turns_(&turns), object_(std::move(object)) {}
    Turn(Turn&& other) noexcept : turns_(std::exchange(other.turns_, nullptr)), object_(std::move(other.object_)) {}
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    Turn& operator=(Turn&&) = delete;
    ~Turn() { end(); }
    // Before its destruction.
    void end() {
      if (turns_ != nullptr) std::exchange(turns_, nullptr)->end(object_);
    }

   private:
    Turns* turns_;
    std::string object_;
  };

  // kRetry: others were at it for longer than this call may wait.
  Result<Turn> take(const std::string& object, Deadline deadline) {
    std::unique_lock lock(mutex_);
    if (!ended_.wait_until(lock, deadline.at(), [&] { return !taken_.contains(object); })) {
      return fail(ErrorCode::kRetry,
                  "another change to " + object + " took longer than this call may wait: repeat the request");
    }
    taken_.insert(object);
    return Turn(*this, object);
  }

 private:
  void end(const std::string& object) {
    {
      const std::lock_guard lock(mutex_);
      taken_.erase(object);
    }
    ended_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable ended_;
  std::set<std::string> taken_;
};

}  // namespace pollux::control
