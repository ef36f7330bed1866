#pragma once
// LunChannel: where one nexus's tasks for one logical unit run on one reactor.
//
// A task goes through: which command is it; does something of the nexus stand in its way (the gate); is its CDB right;
// is it its turn (task attributes, somebody's exclusive range); then the command's own function, which completes it or
// leaves it with the device. Tasks with the attribute SIMPLE are in no order among them. ORDERED waits for all tasks
// that came through this channel before it, and later ones wait for it.

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "bdev/bdev.h"
#include "reactor/reactor.h"
#include "scsi/logical_unit.h"
#include "scsi/task.h"

namespace pollux::scsi {

class ScratchPool;

// A range that a command of some channel has to itself for a read-modify-write.
struct HeldRange {
  std::uint64_t lba = 0;
  std::uint64_t blocks = 0;
  bool active = false;

  bool overlaps(std::uint64_t other_lba, std::uint64_t other_blocks) const {
    return active && lba < other_lba + other_blocks && other_lba < lba + blocks;
  }
};

class LunChannel {
 public:
  // On the reactor, when idle().
  ~LunChannel();
  LunChannel(const LunChannel&) = delete;
  LunChannel& operator=(const LunChannel&) = delete;

  // On the reactor. May complete the task before it returns.
  void submit(Task& task);

  // On the reactor. No task is in flight.
  bool idle() const { return in_flight_ == 0; }
  std::uint32_t in_flight() const { return in_flight_; }

  Nexus& nexus() const { return *nexus_; }
  LogicalUnit& unit() const { return *unit_; }
  reactor::Reactor& reactor() const { return reactor_; }

  // ---- For the commands of this room, on the reactor. ----
  void complete(Task& task);
  // The device's answer goes to `resume` with task.work.io.status set.
  void to_device(Task& task, void (*resume)(LunChannel&, Task&));
  ScratchPool& scratch() const { return *scratch_; }

  // ---- For task management and exclusive ranges, on the reactor. ----
  // Ends the tasks that have not begun and marks the others. tag: only the one task. Returns how many are still out.
  struct AbortSelection {
    bool all = true;
    std::uint64_t tag = 0;
    Outcome outcome = Outcome::kAborted;
  };
  void abort(const AbortSelection& selection, std::function<void()> done);
  bool has_task(std::uint64_t tag) const;
  bool has_any_task() const { return in_flight_ != 0; }
  // Holds back commands that would change the range, and calls `drained` when none that does is with the device.
  void hold_range(const HeldRange& range, const Task* owner, std::function<void()> drained);
  void release_range();

 private:
  friend class Nexus;
  LunChannel(std::shared_ptr<Nexus> nexus, reactor::Reactor& reactor, std::unique_ptr<bdev::Channel> device,
             std::shared_ptr<ScratchPool> scratch);
  void run_waiting();

  std::shared_ptr<Nexus> nexus_;
  LogicalUnit* unit_;
  reactor::Reactor& reactor_;
  std::unique_ptr<bdev::Channel> device_;
  std::shared_ptr<ScratchPool> scratch_;
  Task* tasks_ = nullptr;
  std::uint32_t in_flight_ = 0;
};

}  // namespace pollux::scsi
