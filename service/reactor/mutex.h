#pragma once
// AsyncMutex: one coroutine at a time in a section that awaits, in order of arrival. Single reactor: it guards against
// interleaving at awaits, not against other threads.
//
//   auto guard = co_await mutex_.lock();

#include <coroutine>
#include <deque>
#include <utility>

namespace pollux::reactor {

class AsyncMutex {
 public:
  class [[nodiscard]] Guard {
   public:
    explicit Guard(AsyncMutex* mutex) : mutex_(mutex) {}
    Guard(Guard&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
    Guard& operator=(Guard&&) = delete;
    ~Guard() {
      if (mutex_) mutex_->unlock();
    }

   private:
    AsyncMutex* mutex_;
  };

  auto lock() {
    struct Awaiter {
      AsyncMutex& mutex;
      bool await_ready() const noexcept { return !std::exchange(mutex.held_, true); }
      void await_suspend(std::coroutine_handle<> waiter) { mutex.waiters_.push_back(waiter); }
      Guard await_resume() noexcept { return Guard(&mutex); }
    };
    return Awaiter{*this};
  }
  bool held() const { return held_; }

 private:
  // The mutex passes straight to the next waiter, so no other coroutine can come between.
  void unlock() {
    if (waiters_.empty()) {
      held_ = false;
      return;
    }
    auto next = waiters_.front();
    waiters_.pop_front();
    next.resume();
  }

  bool held_ = false;
  std::deque<std::coroutine_handle<>> waiters_;
};

}  // namespace pollux::reactor
