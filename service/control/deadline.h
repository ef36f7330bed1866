#pragma once
// Deadline: a point in time after which nobody waits for an answer any more.

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace pollux::control {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  static Deadline after_ms(std::uint64_t ms) { return Deadline(Clock::now() + std::chrono::milliseconds(ms)); }
  static Deadline after_s(std::uint64_t s) { return after_ms(s * 1000); }

  bool passed() const { return Clock::now() >= at_; }
  Clock::time_point at() const { return at_; }
  // Rounded up, so that waiting for it does not end early; 0 when it has passed.
  std::uint64_t remaining_ms() const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(at_ - Clock::now()).count();
    return static_cast<std::uint64_t>(std::max<std::int64_t>(left, 0));
  }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

}  // namespace pollux::control
