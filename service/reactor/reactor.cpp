#include "reactor/reactor.h"

#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <typeinfo>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace pollux::reactor {

namespace {

thread_local Reactor* t_current = nullptr;

// A burst of messages must not keep the pollers waiting.
constexpr unsigned kMessagesPerTurn = 64;
constexpr unsigned kTimersPerTurn = 64;
// Timers and the idle decision look at the clock once in this many turns that found nothing, or this many busy ones.
constexpr std::uint64_t kTurnsPerClockRead = 32;
constexpr int kEpollEvents = 64;

struct FunctionMessage : Message {
  std::function<void()> fn;
};

}  // namespace

Timer::~Timer() {
  assert(reactor_ == nullptr);
}

void Timer::start(Reactor& reactor, std::uint64_t delay_us) {
  assert(reactor.is_current());
  cancel();
  reactor_ = &reactor;
  due_ns_ = monotonic_ns() + delay_us * 1000;
  reactor.add_timer(*this);
}

void Timer::cancel() {
  if (reactor_ == nullptr) return;
  assert(reactor_->is_current());
  reactor_->drop_timer(*this);
  reactor_ = nullptr;
}

Reactor::Reactor(Options options) : options_(options) {}

Reactor::~Reactor() {
  stop();
  if (epoll_fd_ >= 0) close(epoll_fd_);
  if (wake_fd_ >= 0) close(wake_fd_);
}

Reactor* Reactor::current() {
  return t_current;
}

Status Reactor::start() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (options_.core) {
    cpu_set_t allowed;
    if (*options_.core >= CPU_SETSIZE || sched_getaffinity(0, sizeof(allowed), &allowed) != 0 ||
        !CPU_ISSET(*options_.core, &allowed)) {
      return fail(ErrorCode::kInvalid, "core " + std::to_string(*options_.core) +
                                           " is not available to this process (see its affinity and cpuset)");
    }
    CPU_SET(*options_.core, &cores);
  }
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (epoll_fd_ < 0 || wake_fd_ < 0) {
    return fail(ErrorCode::kInternal,
                std::string("cannot make the reactor's epoll or eventfd: ") + std::strerror(errno));
  }
  POLLUX_TRY(watch(wake_fd_));
  thread_ = std::thread([this] { loop(); });
  if (options_.core) {
    if (int rc = pthread_setaffinity_np(thread_.native_handle(), sizeof(cores), &cores); rc != 0) {
      stop();
      return fail(ErrorCode::kInternal,
                  "cannot pin a reactor to core " + std::to_string(*options_.core) + ": " + std::strerror(rc));
    }
  }
  const std::string name = options_.background ? "background" : "reactor-" + std::to_string(options_.id);
  pthread_setname_np(thread_.native_handle(), name.c_str());
  return {};
}

void Reactor::avoid(const std::vector<Options>& others) {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return;
  for (const Options& other : others) {
    if (other.core) CPU_CLR(*other.core, &cores);
  }
  // Where there are no others, it has to share.
  if (CPU_COUNT(&cores) == 0) return;
  if (int rc = pthread_setaffinity_np(thread_.native_handle(), sizeof(cores), &cores); rc != 0) {
    log::warn("cannot keep work in the background off the reactors' cores: {}", std::strerror(rc));
  }
}

void Reactor::stop() {
  if (!thread_.joinable()) return;
  assert(!is_current());
  stopping_.store(true, std::memory_order_release);
  wake();
  thread_.join();
}

void Reactor::post(Message& message) {
  mailbox_.push(message);
  // After the push, in one order with the receiver's store of sleeping_ and its last look at the mailbox.
  if (sleeping_.load(std::memory_order_seq_cst)) wake();
}

void Reactor::post(std::function<void()> fn) {
  auto* message = new FunctionMessage;
  message->fn = std::move(fn);
  message->run = [](Message& m) {
    std::unique_ptr<FunctionMessage> owned(static_cast<FunctionMessage*>(&m));
    owned->fn();
  };
  post(*message);
}

void Reactor::wake() {
  const std::uint64_t one = 1;
  // EAGAIN means the counter is full, so a wake-up is pending anyway.
  if (write(wake_fd_, &one, sizeof(one)) < 0 && errno != EAGAIN) {
    log::critical("reactor {}: cannot ring its eventfd: {}", options_.id, std::strerror(errno));
  }
}

Task<void> Reactor::sleep_us(std::uint64_t delay_us) {
  Completion<bool> fired;
  Timer timer([&fired] { fired.set(true); });
  timer.start(*this, delay_us);
  co_await fired;
}

void Reactor::add_poller(Poller& poller) {
  pollers_.push_back(&poller);
}

void Reactor::remove_poller(Poller& poller) {
  // run_pollers may be in the middle of the list: leave a hole, close it between turns.
  for (auto& entry : pollers_) {
    if (entry == &poller) {
      entry = nullptr;
      pollers_dirty_ = true;
    }
  }
}

void Reactor::compact_pollers() {
  std::erase(pollers_, nullptr);
  pollers_dirty_ = false;
}

Status Reactor::watch(int fd) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
    return fail(ErrorCode::kInternal, "cannot watch descriptor " + std::to_string(fd) + ": " + std::strerror(errno));
  }
  return {};
}

void Reactor::unwatch(int fd) {
  // ENOENT and EBADF: closing the descriptor has taken it out of the set already.
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr) != 0 && errno != ENOENT && errno != EBADF) {
    log::error("reactor {}: cannot stop watching descriptor {}: {}", options_.id, fd, std::strerror(errno));
  }
}

unsigned Reactor::run_messages() {
  unsigned done = 0;
  while (done < kMessagesPerTurn) {
    Message* message = mailbox_.pop();
    if (message == nullptr) break;
    message->run(*message);
    ++done;
  }
  return done;
}

void Reactor::next_turn(Message& message) {
  message.next.store(nullptr, std::memory_order_relaxed);
  if (last_next_ != nullptr) {
    last_next_->next.store(&message, std::memory_order_relaxed);
  } else {
    first_next_ = &message;
  }
  last_next_ = &message;
}

unsigned Reactor::run_next_turn() {
  // What these ask for is for the turn after this one.
  Message* message = std::exchange(first_next_, nullptr);
  last_next_ = nullptr;
  unsigned done = 0;
  while (message != nullptr) {
    // It may be under way again when it returns.
    Message* const next = message->next.load(std::memory_order_relaxed);
    message->run(*message);
    message = next;
    ++done;
  }
  return done;
}

unsigned Reactor::run_pollers() {
  unsigned work = 0;
  // By index: a poller may add others while it runs.
  for (std::size_t i = 0; i < pollers_.size(); ++i) {
    Poller* const poller = pollers_[i];
    if (poller == nullptr) continue;
    turn_watch_.enter(typeid(*poller));
    work += poller->poll();
  }
  if (pollers_dirty_) compact_pollers();
  return work;
}

void Reactor::add_timer(Timer& timer) {
  timers_.add(timer);
  next_due_ns_ = timers_.first().due_ns_;
}

void Reactor::drop_timer(Timer& timer) {
  timers_.remove(timer);
  next_due_ns_ = timers_.empty() ? UINT64_MAX : timers_.first().due_ns_;
}

unsigned Reactor::run_timers(std::uint64_t now_ns) {
  unsigned fired = 0;
  while (now_ns >= next_due_ns_ && fired < kTimersPerTurn) {
    Timer& due = timers_.first();
    drop_timer(due);
    due.reactor_ = nullptr;
    due.fire_();
    ++fired;
  }
  return fired;
}

void Reactor::sleep_until_woken(std::uint64_t now_ns) {
  for (Poller* poller : pollers_) {
    if (poller != nullptr && !poller->arm()) return;
  }
  sleeping_.store(true, std::memory_order_seq_cst);
  if (mailbox_.empty() && !stopping_.load(std::memory_order_acquire)) {
    int timeout_ms = -1;
    if (next_due_ns_ != UINT64_MAX) {
      timeout_ms =
          next_due_ns_ <= now_ns
              ? 0
              : static_cast<int>(std::min<std::uint64_t>((next_due_ns_ - now_ns + 999'999) / 1'000'000, 60'000));
    }
    epoll_event events[kEpollEvents];
    ++counters_.sleeps;
    epoll_wait(epoll_fd_, events, kEpollEvents, timeout_ms);
  }
  sleeping_.store(false, std::memory_order_relaxed);
}

unsigned Reactor::turn() {
  assert(!thread_.joinable() && t_current == nullptr);
  t_current = this;
  unsigned work = run_messages();
  if (first_next_ != nullptr) work += run_next_turn();
  work += run_pollers();
  const std::uint64_t now_ns = monotonic_ns();
  if (now_ns >= next_due_ns_) work += run_timers(now_ns);
  t_current = nullptr;
  return work;
}

void Reactor::loop() {
  t_current = this;
  std::uint64_t quiet_since_ns = monotonic_ns();
  std::uint64_t turns_to_clock = kTurnsPerClockRead;
  bool was_busy = false;
  while (true) {
    turn_watch_.begin();
    turn_began_tsc_ = __rdtsc();
    unsigned work = run_messages();
    if (first_next_ != nullptr) [[unlikely]]
      work += run_next_turn();
    work += run_pollers();
    ++counters_.loops;
    if (work != 0) {
      ++counters_.busy_loops;
      const std::uint64_t took_tsc = __rdtsc() - turn_began_tsc_;
      counters_.busy_tsc += took_tsc;
      counters_.longest_turn_tsc = std::max(counters_.longest_turn_tsc, took_tsc);
      if (!options_.background) turn_watch_.end();
      was_busy = true;
      if (--turns_to_clock != 0) continue;
    } else if (--turns_to_clock != 0) {
      continue;
    }
    turns_to_clock = kTurnsPerClockRead;
    const std::uint64_t now_ns = monotonic_ns();
    if (now_ns >= next_due_ns_ && run_timers(now_ns) != 0) was_busy = true;
    if (std::exchange(was_busy, false)) {
      quiet_since_ns = now_ns;
      continue;
    }
    if (stopping_.load(std::memory_order_acquire) && mailbox_.empty()) break;
    if (options_.idle == IdlePolicy::kAdaptive && now_ns - quiet_since_ns >= options_.idle_after_us * 1000ULL) {
      sleep_until_woken(now_ns);
      // A wake-up earns a full idle time of polling before the next sleep.
      quiet_since_ns = monotonic_ns();
    }
  }
  t_current = nullptr;
}

Result<std::unique_ptr<ReactorGroup>> ReactorGroup::start(const std::vector<Reactor::Options>& options) {
  if (options.empty()) return fail(ErrorCode::kInvalid, "at least one reactor is needed");
  std::unique_ptr<ReactorGroup> group(new ReactorGroup);
  for (const auto& each : options) {
    group->reactors_.push_back(std::make_unique<Reactor>(each));
    POLLUX_TRY(group->reactors_.back()->start());
  }
  group->background_ =
      std::make_unique<Reactor>(Reactor::Options{.id = static_cast<unsigned>(options.size()), .background = true});
  POLLUX_TRY(group->background_->start());
  group->background_->avoid(options);
  return group;
}

ReactorGroup::~ReactorGroup() {
  stop();
}

void ReactorGroup::stop() {
  for (auto& each : reactors_) each->stop();
  if (background_) background_->stop();
}

}  // namespace pollux::reactor
