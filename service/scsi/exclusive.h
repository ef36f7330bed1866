#pragma once
// ExclusiveRanges: lets one command at a time read, change and write back a range of the logical unit with nobody else
// writing in between, whichever reactor or guest the others come from (COMPARE AND WRITE, SBC-4 5.3; ORWRITE).
//
// The command whose turn it is has every LunChannel of the unit hold back commands that would change the range, and
// goes on when the ones that were with the device already have come back. Reads are not held. Commands wait in the
// order in which they asked.

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

  // Under the unit's mutex: for a channel that opens while a range is held.
  HeldRange current() const { return current_; }

 private:
  // Under the mutex: whose turn it is now.
  void begin(Task& task);

  LogicalUnit& unit_;
  HeldRange current_;
  Task* first_waiting_ = nullptr;
  Task* last_waiting_ = nullptr;
};

}  // namespace pollux::scsi
