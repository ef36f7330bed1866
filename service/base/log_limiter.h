#pragma once
// LogLimiter: for what happens again and again because a peer misbehaves, or because something has run out: a
// few lines in the log, and no more than one a second after that.

#include <algorithm>
#include <cstdint>
#include <mutex>

#include "base/clock.h"

namespace pollux {

// Any thread.
class LogLimiter {
 public:
  // False: say nothing. True: say it, and how many times nothing was said before.
  bool allow(std::uint64_t& suppressed) {
    std::lock_guard lock(mutex_);
    const std::uint64_t now = monotonic_ns();
    credit_ns_ = std::min(credit_ns_ + (now - last_ns_), kBurst * kLineNs);
    last_ns_ = now;
    if (credit_ns_ < kLineNs) {
      ++suppressed_;
      return false;
    }
    credit_ns_ -= kLineNs;
    suppressed = suppressed_;
    suppressed_ = 0;
    return true;
  }

 private:
  static constexpr std::uint64_t kLineNs = 1'000'000'000;
  static constexpr std::uint64_t kBurst = 5;

  std::mutex mutex_;
  std::uint64_t last_ns_ = monotonic_ns();
  std::uint64_t credit_ns_ = kBurst * kLineNs;
  std::uint64_t suppressed_ = 0;
};

}  // namespace pollux
