#pragma once
// Settings: what guests have set on a logical unit and must find as it was after a restart of the service, which they
// do not notice: the mode parameters, which all nexuses share, and which nexus holds the reservation of RESERVE.
//
// A change is in effect at once; the command that made it is answered when it is durable. What was set ends with the
// attachments: the implementation of SettingStore forgets it then.

#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "scsi/logical_unit.h"
#include "scsi/mode_pages.h"

namespace pollux::scsi {

class Settings {
 public:
  explicit Settings(LogicalUnit& unit) : unit_(unit) {}

  // When the unit is made: the mode parameters. Errors of SettingStore::load; kCorrupt.
  Status load();
  // Before this initiator joins: whether it holds the reservation of RESERVE. Errors of SettingStore::load; kCorrupt.
  Result<bool> load_reserved(const std::string& initiator) const;

  // ---- Under the unit's mutex. `done` is called exactly once, on any thread, perhaps before these return: when the
  // change is durable, or with the error that keeps it from that. It must not take the mutex. ----
  // The mode parameters as they are now. Those that cannot be kept become again what was kept last, and every nexus
  // hears of it.
  void keep_modes(std::function<void(Status)> done);
  // Some change of the mode parameters is not durable yet.
  bool keeping_modes() const { return keeping_ != 0; }
  void keep_reserved(const std::string& initiator, bool reserved, std::function<void(Status)> done);

 private:
  void modes_kept(const ModePages::Values& values, const Status& kept);

  LogicalUnit& unit_;
  ModePages::Values kept_;
  std::uint32_t keeping_ = 0;
};

}  // namespace pollux::scsi
