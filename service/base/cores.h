#pragma once
// Cores of threads that are not reactors.

#include <sched.h>
#include <unistd.h>

#include <optional>

namespace pollux {

// Those that the process's main thread may run on: a service keeps it off the reactors' cores, which a thread that a
// reactor makes, or the kernel for it, would inherit otherwise.
inline std::optional<cpu_set_t> main_thread_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(getpid(), sizeof(cores), &cores) != 0) return std::nullopt;
  return cores;
}

}  // namespace pollux
