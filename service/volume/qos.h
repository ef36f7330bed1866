#pragma once
// QosLimiter: the limits of a volume, shared by its channels on all reactors.
//
// Each limit is a line on which requests book their place: a request moves the line's next free instant on by what it
// costs, and may start at the instant it found there. That spreads requests evenly at any rate, from one an hour to
// millions a second, and lets any number of reactors share a limit without a lock. What a line did not use is lost
// but for its credit: kCreditNs, which makes up for timers that fire late, or more where a burst is allowed.
//
// A burst of B a second for N seconds above a limit of L is what QEMU's throttle calls max and max_length: the line's
// credit is worth B * N requests, saved up at the rate L, and spent at the rate B at most, which is a second line. With
// N = 1 there is no second line: the B requests of the credit start at once.

#include <atomic>
#include <cstdint>

#include "bdev/bdev.h"

namespace pollux::volume {

struct QosBurst;
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
    std::atomic<std::uint64_t> credit_ns{kCreditNs};
    // Signed: a credit may be longer than the machine has been up.
    std::atomic<std::int64_t> next_ns{0};

    void set(std::uint64_t rate, std::uint64_t credit);
    std::uint64_t book(std::uint64_t units, std::uint64_t now_ns);
  };
  struct Limit {
    Line sustained, burst;

    void set(std::uint64_t rate, const QosBurst& allowed);
    std::uint64_t book(std::uint64_t units, std::uint64_t now_ns);
  };
  Limit read_ops_, write_ops_, all_ops_;
  Limit read_bytes_, write_bytes_, all_bytes_;
  std::atomic<bool> active_{false};
  std::atomic<std::uint64_t> generation_{0};
};

}  // namespace pollux::volume
