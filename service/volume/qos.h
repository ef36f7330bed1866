#pragma once
// QosLimiter: the limits of a volume, shared by its channels on all reactors.
//
// Each limit is a line on which requests book their place: a request moves the line's next free instant on by what it
// costs, and may start at the instant it found there. That spreads requests evenly at any rate, from one an hour to
// millions a second, and lets any number of reactors share a limit without a lock. What a line did not use is lost
// but for kCreditNs, which makes up for timers that fire late.

#include <atomic>
#include <cstdint>

#include "bdev/bdev.h"

namespace pollux::volume {

struct QosLimits;

class QosLimiter {
 public:
  static constexpr std::uint64_t kCreditNs = 5'000'000;

  // Home reactor.
  void set(const QosLimits& limits);
  // Any reactor, as all below. False: nothing is limited.
  bool active() const { return active_.load(std::memory_order_relaxed); }
  // Another value: the limits changed, and what was booked before no longer counts.
  std::uint64_t generation() const { return generation_.load(std::memory_order_acquire); }
  // Books the request's place; the instant (monotonic) at which it may start. Flushes are never limited.
  std::uint64_t book(const bdev::IoRequest& request, std::uint64_t now_ns);

 private:
  struct Line {
    std::atomic<std::uint64_t> per_second{0};  // 0: no limit
    std::atomic<std::uint64_t> next_ns{0};

    std::uint64_t book(std::uint64_t units, std::uint64_t now_ns);
  };
  Line read_ops_, write_ops_, all_ops_;
  Line read_bytes_, write_bytes_, all_bytes_;
  std::atomic<bool> active_{false};
  std::atomic<std::uint64_t> generation_{0};
};

}  // namespace pollux::volume
