#pragma once
// Waiting for a condition with a deadline.

#include <chrono>
#include <thread>

namespace pollux::initiator {

// False when it does not hold in time.
template <typename Condition>
bool wait_until(Condition holds, std::chrono::milliseconds deadline = std::chrono::seconds(30)) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!holds()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace pollux::initiator
