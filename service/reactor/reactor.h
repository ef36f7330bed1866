#pragma once
// Reactor: one thread that owns a core's share of the data path and runs it to completion.
//
// Everything on a reactor is a Poller (a virtqueue, a device's completion queue), a Message from another thread, or a
// Timer. The loop calls each in turn; nothing in it may block, lock or wait. Work on one reactor needs no
// synchronisation.
//
// A reactor with nothing to do for `idle_after_us` asks every poller to arm its wake-up (a virtqueue turns its
// notifications on), then sleeps in epoll until a watched descriptor, a message or a timer wakes it. IdlePolicy::kPoll
// never sleeps.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <coroutine>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "reactor/mailbox.h"
#include "reactor/task.h"
#include "reactor/timer_heap.h"
#include "reactor/turn_watch.h"

namespace pollux::reactor {

class Reactor;

// Something that has to be looked at again and again. All calls on the owning reactor.
class Poller {
 public:
  virtual ~Poller() = default;
  // Does what is there to do, bounded; returns how many units of work that were, 0 for none.
  virtual unsigned poll() = 0;
  // The reactor wants to sleep. Turn notifications on, look once more, and return true when there is still nothing to
  // do: from here on new work must make a watched descriptor readable. False: there is work, do not sleep. Nobody tells
  // when the sleep is over: notifications go off again with the first work that poll() finds.
  virtual bool arm() { return true; }
};

// Fires once, on its reactor. Belongs to its owner, who must cancel it before destroying it.
class Timer {
 public:
  explicit Timer(std::function<void()> fire) : fire_(std::move(fire)) {}
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  // On the reactor's thread. Starting a running timer moves it.
  void start(Reactor& reactor, std::uint64_t delay_us);
  void cancel();
  bool running() const { return reactor_ != nullptr; }

 private:
  friend class Reactor;
  friend class TimerHeap<Timer>;
  std::function<void()> fire_;
  Reactor* reactor_ = nullptr;
  std::uint64_t due_ns_ = 0;
  std::size_t place_ = 0;
};

enum class IdlePolicy : std::uint8_t { kPoll, kAdaptive };

class Reactor {
 public:
  struct Options {
    unsigned id = 0;
    // Core to pin to; absent leaves the thread to the scheduler.
    std::optional<unsigned> core;
    IdlePolicy idle = IdlePolicy::kAdaptive;
    std::uint32_t idle_after_us = 100;
    // No guest waits for it, so its turns may be long.
    bool background = false;
  };

  explicit Reactor(Options options);
  ~Reactor();
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  // Starts the thread. kInvalid when the core is not there, kInternal when the kernel refuses a descriptor or the
  // thread.
  Status start();
  // Lets the loop end after messages already posted, and joins. Call from outside.
  void stop();

  // In place of start(), for tests: one turn on the caller's thread, timers that are due included; how many units of work
  // that were. See reactor/stepper.h.
  unsigned turn();

  unsigned id() const { return options_.id; }
  // The reactor whose thread this is, or nullptr.
  static Reactor* current();
  bool is_current() const { return current() == this; }

  // Any thread.
  void post(Message& message);
  // Any thread; allocates, so not from the data path.
  void post(std::function<void()> fn);
  // On this reactor: runs the message in the next turn, when all others have had theirs. One that is posted may run in
  // this turn still.
  void next_turn(Message& message);

  // `co_await reactor.enter()`: the coroutine goes on on this reactor; without a hop when it is there already.
  auto enter() { return Enter(*this, /*always=*/false); }
  // `co_await reactor.yield()`: lets the loop turn once before going on: all others have had their turn.
  auto yield() { return Enter(*this, /*always=*/true); }
  // `co_await reactor.sleep_us(n)`: on this reactor.
  Task<void> sleep_us(std::uint64_t delay_us);

  // On this reactor. A poller may remove itself or others from within poll().
  void add_poller(Poller& poller);
  void remove_poller(Poller& poller);
  // On this reactor: wake from sleep when the descriptor becomes readable (edge-triggered: it need not be read).
  Status watch(int fd);
  void unwatch(int fd);

  struct Counters {
    std::uint64_t loops = 0;
    std::uint64_t busy_loops = 0;
    std::uint64_t sleeps = 0;
    std::uint64_t busy_tsc = 0;
    std::uint64_t longest_turn_tsc = 0;
  };
  // On this reactor.
  const Counters& counters() const { return counters_; }
  // The time stamp counter at the begin of the turn under way. On the reactor.
  std::uint64_t turn_began_tsc() const { return turn_began_tsc_; }

 private:
  friend class Timer;
  friend class ReactorGroup;
  class Enter : public Message {
   public:
    Enter(Reactor& reactor, bool always) : reactor_(reactor), always_(always) {}
    bool await_ready() const noexcept { return !always_ && reactor_.is_current(); }
    void await_suspend(std::coroutine_handle<> self) {
      self_ = self;
      run = [](Message& message) { static_cast<Enter&>(message).self_.resume(); };
      if (reactor_.is_current()) {
        // A message that is posted may run in this turn still.
        reactor_.next_turn(*this);
      } else {
        reactor_.post(*this);
      }
    }
    void await_resume() const noexcept {}

   private:
    Reactor& reactor_;
    bool always_;
    std::coroutine_handle<> self_;
  };

  // Keeps off their cores. After start().
  void avoid(const std::vector<Options>& others);
  void loop();
  unsigned run_messages();
  unsigned run_next_turn();
  unsigned run_pollers();
  unsigned run_timers(std::uint64_t now_ns);
  void compact_pollers();
  void sleep_until_woken(std::uint64_t now_ns);
  void wake();
  void add_timer(Timer& timer);
  void drop_timer(Timer& timer);

  Options options_;
  Mailbox mailbox_;
  // True while the loop is about to sleep or sleeping; posters then ring the eventfd.
  std::atomic<bool> sleeping_{false};
  std::atomic<bool> stopping_{false};
  std::vector<Poller*> pollers_;
  bool pollers_dirty_ = false;
  // One for each volume that has limits, and a few.
  TimerHeap<Timer> timers_;
  std::uint64_t next_due_ns_ = UINT64_MAX;
  int epoll_fd_ = -1;
  int wake_fd_ = -1;
  Message* first_next_ = nullptr;
  Message* last_next_ = nullptr;
  Counters counters_;
  std::uint64_t turn_began_tsc_ = 0;
  TurnWatch turn_watch_;
  std::thread thread_;
};

// A task that was started on a reactor by a thread that may block (control, tests), which waits for its result or gives
// it up. A task that was given up goes on to its end, and its result is destroyed on the reactor.
template <typename T>
class Call {
 public:
  using Clock = std::chrono::steady_clock;

  Call(Reactor& reactor, Task<Result<T>> task) {
    auto started = std::make_shared<Task<Result<T>>>(std::move(task));
    reactor.post([answer = answer_, started] {
      spawn(std::move(*started), [answer](Result<T> result) {
        const std::lock_guard lock(answer->mutex);
        if (answer->given_up) return;
        answer->result.emplace(std::move(result));
        answer->come.notify_all();
      });
    });
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Each takes the result, which is to be taken or given up before the Call goes.
  Result<T> wait() {
    std::unique_lock lock(answer_->mutex);
    answer_->come.wait(lock, [this] { return answer_->result.has_value(); });
    return std::move(*answer_->result);
  }
  // Nothing: it has not come by then, and may be waited for again.
  std::optional<Result<T>> wait_until(Clock::time_point deadline) {
    std::unique_lock lock(answer_->mutex);
    if (!answer_->come.wait_until(lock, deadline, [this] { return answer_->result.has_value(); })) return std::nullopt;
    return std::move(answer_->result);
  }
  // Nothing: whatever comes is not waited for any more.
  std::optional<Result<T>> give_up() {
    const std::lock_guard lock(answer_->mutex);
    answer_->given_up = true;
    return std::move(answer_->result);
  }

 private:
  struct Answer {
    std::mutex mutex;
    std::condition_variable come;
    std::optional<Result<T>> result;
    bool given_up = false;
  };
  const std::shared_ptr<Answer> answer_ = std::make_shared<Answer>();
};

// Runs a task on the reactor and waits for its result; without a deadline for ever. After the deadline: kRetry, and the
// task is given up. Deadline 0 has passed already: kRetry, and the task does not begin.
template <typename T>
Result<T> call(Reactor& reactor, Task<Result<T>> task, std::optional<std::uint64_t> deadline_ms = std::nullopt) {
  if (deadline_ms == 0) return fail(ErrorCode::kRetry, "not begun, there is no time left for it: repeat the request");
  Call<T> begun(reactor, std::move(task));
  if (!deadline_ms) return begun.wait();
  auto result = begun.wait_until(Call<T>::Clock::now() + std::chrono::milliseconds(*deadline_ms));
  if (!result) result = begun.give_up();
  if (result) return std::move(*result);
  return fail(ErrorCode::kRetry,
              "not finished within " + std::to_string(*deadline_ms) + " ms; it may still happen: repeat the request");
}

// The reactors of the process, in order of id. Reactor 0 is the one that owns what is not spread (pool tables). Besides
// them there is one that serves no guest, for work in proportion to a pool: loading and checking it.
class ReactorGroup {
 public:
  // One reactor an entry, and the one in the background; see Reactor::start for failures, after which none runs.
  static Result<std::unique_ptr<ReactorGroup>> start(const std::vector<Reactor::Options>& options);
  ~ReactorGroup();

  std::size_t size() const { return reactors_.size(); }
  Reactor& at(std::size_t index) { return *reactors_.at(index); }
  Reactor& main() { return at(0); }
  // Not one of the size(), on no core of its own.
  Reactor& background() { return *background_; }
  void stop();

 private:
  ReactorGroup() = default;
  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::unique_ptr<Reactor> background_;
};

}  // namespace pollux::reactor
