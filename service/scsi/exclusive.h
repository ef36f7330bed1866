#pragma once
// ExclusiveRanges: lets one command at a time read, change and write back a range of the logical unit while no other
// command of any reactor or guest writes to it (COMPARE AND WRITE, SBC-4 5.3; ORWRITE).
//
// While a command has the range, commands that would change it wait in every LunChannel of the unit; it begins when
// those that the device had already have completed. Reads do not wait. Commands have the range in the order in which
// they asked.

#include <cstdint>

#include "scsi/lun_channel.h"
#include "scsi/task.h"

namespace pollux::scsi {

class ExclusiveRanges {
 public:
  explicit ExclusiveRanges(LogicalUnit& unit) : unit_(unit) {}

  // On the task's reactor. Calls `then` there, now or later, when the range task.work.lba/blocks is the task's alone.
  void acquire(Task& task, void (*then)(LunChannel&, Task&));
  // On the same reactor, before the task completes.
  void release(Task& task);

  // Under the unit's mutex: for a channel that opens while a command has a range.
  ExclusiveRange current() const { return current_; }

 private:
  // Under the mutex: whose turn it is now.
  void begin(Task& task);

  LogicalUnit& unit_;
  ExclusiveRange current_;
  Task* first_waiting_ = nullptr;
  Task* last_waiting_ = nullptr;
};

}  // namespace pollux::scsi
