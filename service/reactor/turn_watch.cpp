#include "reactor/turn_watch.h"

#ifdef POLLUX_WATCHES_TURNS

#include <cxxabi.h>

#include <cstdlib>
#include <ctime>

#include "base/clock.h"
#include "base/log.h"

namespace pollux::reactor {

namespace {

std::uint64_t used_ns() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
}

}  // namespace

void TurnWatch::begin() {
  began_ns_ = entered_ns_ = used_ns();
  began_wall_ns_ = monotonic_ns();
  inside_ = longest_ = nullptr;
  longest_ns_ = 0;
}

void TurnWatch::leave(std::uint64_t now_ns) {
  if (now_ns - entered_ns_ > longest_ns_) {
    longest_ns_ = now_ns - entered_ns_;
    longest_ = inside_;
  }
  entered_ns_ = now_ns;
}

void TurnWatch::enter(const std::type_info& poller) {
  leave(used_ns());
  inside_ = &poller;
}

void TurnWatch::end() {
  const std::uint64_t now_ns = used_ns();
  leave(now_ns);
  const std::uint64_t wall_ns = monotonic_ns() - began_wall_ns_;
  if (now_ns - began_ns_ <= kLongestTurnNs && wall_ns <= kLongestWaitNs) return;
  int status = 0;
  char* const name = longest_ != nullptr ? abi::__cxa_demangle(longest_->name(), nullptr, nullptr, &status) : nullptr;
  log::critical("a turn of a reactor took {} us, {} us of processor time, of that {} us in {}", wall_ns / 1000,
                (now_ns - began_ns_) / 1000, longest_ns_ / 1000, name != nullptr ? name : "messages");
  std::abort();
}

}  // namespace pollux::reactor

#endif
