#pragma once
// BlockingThread: runs what may block (opening a file, asking a device for its size, giving back large memory) for
// coroutines on reactors, which must not.
//
//   auto device = co_await blocking_.run(home, [spec] { return bdev::open(spec); });
//
// One thing at a time, in order.

#include <condition_variable>
#include <coroutine>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::reactor {

class BlockingThread {
 public:
  BlockingThread() : thread_([this] { loop(); }) {}
  // Ends what was asked for first.
  ~BlockingThread() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  BlockingThread(const BlockingThread&) = delete;
  BlockingThread& operator=(const BlockingThread&) = delete;

  // Runs `work` on the thread and goes on with its answer on `back`.
  template <typename Work>
  Task<std::invoke_result_t<Work>> run(Reactor& back, Work work) {
    static_assert(!std::is_void_v<std::invoke_result_t<Work>>);
    std::optional<std::invoke_result_t<Work>> answer;
    // Named: g++ 12 copies an aggregate that is made within a co_await expression byte by byte.
    Turn turn{*this, back, [&] { answer.emplace(work()); }};
    co_await turn;
    co_return std::move(*answer);
  }

 private:
  struct Turn {
    BlockingThread& thread;
    Reactor& back;
    std::function<void()> work;

    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> self) {
      // The awaiting coroutine, and this with it, may be gone as soon as it was resumed.
      thread.add([this, self] {
        work();
        back.post([self] { self.resume(); });
      });
    }
    void await_resume() const noexcept {}
  };

  void add(std::function<void()> job) {
    {
      std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    changed_.notify_one();
  }

  void loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace pollux::reactor
