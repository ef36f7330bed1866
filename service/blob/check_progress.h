#pragma once
// CheckProgress: how far a check of a pool has come, and how to end it early. Written and read by any thread.

#include <atomic>
#include <cstdint>

namespace pollux::blob {

struct CheckProgress {
  // Volumes and snapshots walked, and in all; 0 of 0 until the pool is loaded.
  std::atomic<std::uint64_t> done{0};
  std::atomic<std::uint64_t> total{0};
  // Asks the check to end with kRetry. A repair that has begun to write goes on to its end.
  std::atomic<bool> cancelled{false};
};

}  // namespace pollux::blob
