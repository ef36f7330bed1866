#include "base/descriptors.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

namespace pollux {

namespace {

// Enough for some clients of the control port, and for what their calls open.
constexpr rlim_t kKept = 64;

}  // namespace

Result<std::uint64_t> raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return fail(ErrorCode::kInternal, std::string("cannot read the limit of descriptors: ") + std::strerror(errno));
  }
  if (limit.rlim_cur < limit.rlim_max) {
    const rlim_t soft = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
      return fail(ErrorCode::kInternal, "cannot raise the limit of descriptors from " + std::to_string(soft) + " to " +
                                            std::to_string(limit.rlim_max) + ": " + std::strerror(errno));
    }
  }
  return limit.rlim_cur;
}

bool is_last_descriptor(int fd) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
  const rlim_t kept = std::min(kKept, limit.rlim_cur / 4);
  return static_cast<rlim_t>(fd) >= limit.rlim_cur - kept;
}

}  // namespace pollux
