#pragma once
// fsck: `polluxd --fsck DEVICE [--repair]`: checks the pool on a device that no service has open.

#include <iosfwd>
#include <string>

namespace pollux::control {

// As fsck(8) has them.
inline constexpr int kFsckClean = 0;
inline constexpr int kFsckRepaired = 1;  // there were errors, and all of them are gone
inline constexpr int kFsckErrorsLeft = 4;
inline constexpr int kFsckFailed = 8;  // nothing could be checked: no device, no pool, in use

// Reports on `out`, a line a finding. Answers one of the above.
int run_fsck(const std::string& device, bool repair, std::ostream& out);

}  // namespace pollux::control
