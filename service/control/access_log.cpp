#include "control/access_log.h"

#include <utility>

#include "base/log.h"

namespace pollux::control {

void AccessLog::refused(const std::string& peer, const std::string& name, const std::string& reason) {
  std::uint64_t left_out = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    if (now - window_start_ >= kWindow) {
      window_start_ = now;
      lines_ = 0;
    }
    if (lines_ >= kLinesPerWindow) {
      ++left_out_;
      return;
    }
    ++lines_;
    left_out = std::exchange(left_out_, 0);
  }
  if (left_out != 0) log::warn("control: {} more refusals are not listed here", left_out);
  log::warn("control: refused {} (CN {}): {}", peer, name.empty() ? "none" : name, reason);
}

}  // namespace pollux::control
