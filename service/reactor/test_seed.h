#pragma once
// For tests: the seed of what they draw.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace pollux::reactor {

// POLLUX_TEST_SEED, else a fresh one. On stdout, whatever the log level, so that the log of a test that failed has it.
inline std::uint64_t test_seed() {
  const char* given = std::getenv("POLLUX_TEST_SEED");
  const std::uint64_t seed = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("POLLUX_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  return seed;
}

}  // namespace pollux::reactor
