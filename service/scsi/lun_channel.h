#pragma once
// LunChannel: where one nexus's tasks for one logical unit run on one reactor.
//
// A task goes through: which command is it; does something of the nexus stand in its way (the gate); is its CDB right;
// is it its turn (task attributes, another task's exclusive range); then the command's own function, which completes it
// or leaves it with the device. Tasks with the attribute SIMPLE are in no order among them. ORDERED waits for all tasks
// that came through this channel before it, and later ones wait for it.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/result.h"
#include "bdev/bdev.h"
#include "reactor/reactor.h"
#include "scsi/logical_unit.h"
#include "scsi/task.h"

namespace pollux::scsi {

class Tenant;
class TargetChannel;
struct ChannelAnchor;

// A range of which a command of any channel is the only writer, for a read-modify-write.
struct ExclusiveRange {
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

  // On the reactor. Somebody waits for the tasks that are in flight: see bdev::Channel::expedite().
  void expedite() { device_->expedite(); }
  // On the reactor. No task is in flight.
  bool idle() const { return in_flight_ == 0; }
  std::uint32_t in_flight() const { return in_flight_; }

  // ---- Removal, on the reactor. Until it is decided nothing is refused: see begin_leaving(). ----
  // Tasks that have not begun wait from here on.
  void begin_leaving();
  // No task has begun and not ended.
  bool drained() const { return started_ == 0; }
  // It stays after all: they begin.
  void stay();
  // It goes: when drained, and out of its target. They end with Outcome::kRemoved.
  void end_waiting();

  Nexus& nexus() const { return *nexus_; }
  LogicalUnit& unit() const { return *unit_; }
  reactor::Reactor& reactor() const { return reactor_; }
  const std::shared_ptr<ChannelAnchor>& anchor() const { return anchor_; }

  // ---- For the commands of this room, on the reactor. ----
  void complete(Task& task);
  // One step of several: task.work.io goes to the device, then `resume` is called. A device error or an abort ends the
  // task instead. The caller returns right after this: it may have completed. Steps that the device completes at once
  // run in a loop, not deeper and deeper.
  void to_device(Task& task, void (*resume)(LunChannel&, Task&));
  // The only step: a device error ends the task with its sense data, success with GOOD and `transferred` bytes.
  void to_device_and_finish(Task& task, std::uint64_t transferred_bytes) {
    task.transferred_bytes = transferred_bytes;
    task.work.io.complete = &on_only_step_done;
    device_->submit(task.work.io);
  }
  // Calls task.work.resume, or ends the task when it was aborted.
  void resume(Task& task);
  // Goes on with a task whose steps were put off to this turn.
  void go_on(Task& task);
  Tenant& tenant() const { return *tenant_; }
  // The target that this logical unit is part of; null when it stands alone.
  const TargetChannel* target() const { return target_; }
  void set_target(const TargetChannel* target) { target_ = target; }

  // ---- For task management and exclusive ranges, on the reactor. ----
  struct AbortSelection {
    bool all = true;
    std::uint64_t tag = 0;        // unless all
    const Task* spare = nullptr;  // the task that asks for it
    Outcome outcome = Outcome::kAborted;
  };
  // Ends the tasks that have not begun, marks those that have, and calls `done` when they are all gone.
  void abort(const AbortSelection& selection, std::function<void()> done);
  bool has_task(std::uint64_t tag) const;
  // From here on commands that would change the range wait; calls `drained` when none of them but `owner` is under way.
  void begin_exclusive(const ExclusiveRange& range, const Task* owner, std::function<void()> drained);
  void end_exclusive();

 private:
  friend class Nexus;
  // Called when certain tasks have completed.
  struct Waiter {
    std::vector<const Task*> tasks;
    std::function<void()> done;
  };

  LunChannel(std::shared_ptr<Nexus> nexus, reactor::Reactor& reactor, std::unique_ptr<bdev::Channel> device,
             std::shared_ptr<Tenant> tenant);
  static void on_step_done(bdev::IoRequest& request);
  static void on_only_step_done(bdev::IoRequest& request);
  void run_steps(Task& task, StepLoop& loop);
  // Ends the task when something of the nexus stands in its way.
  bool pass_gate(Task& task, const Command* command);
  bool pass_reservations(Task& task, const Command& command);
  // Whether the tasks before it let it begin.
  bool in_turn(const Task& task) const;
  bool waits_for_exclusive(const Task& task) const;
  // Its turn has come: begins, unless another task has the range exclusively.
  void start(Task& task);
  void start_waiting();
  void start_behind_exclusive();
  void unlink(Task& task);
  // Of a task that ends: releases what it holds, tells the loop that it runs in, and says so when it was aborted.
  void settle(Task& task);
  // Completes the task, which was unlinked, and calls those who wait for that.
  void complete_for_waiters(Task& task);
  void wait_for(std::vector<const Task*> tasks, std::function<void()> done);

  std::shared_ptr<Nexus> nexus_;
  LogicalUnit* unit_;
  reactor::Reactor& reactor_;
  std::unique_ptr<bdev::Channel> device_;
  std::shared_ptr<Tenant> tenant_;
  std::shared_ptr<ChannelAnchor> anchor_;
  const TargetChannel* target_ = nullptr;
  // All tasks between submit() and complete(), newest first.
  Task* tasks_ = nullptr;
  std::uint32_t in_flight_ = 0;
  std::uint32_t started_ = 0;
  // Tasks by Work::queue_next, oldest first.
  struct Waiting {
    Task* first = nullptr;
    Task* last = nullptr;
    void push(Task& task);
    Task& pop();
    // Moves those that were aborted to another list.
    void move_aborted(Waiting& to);
  };
  // Those that have passed the checks and wait for tasks before them. When the first may not begin, no other may: what
  // it waits for came before them too, or is itself.
  Waiting waiting_;
  // Those whose turn has come, and that wait for the end of an exclusive range.
  Waiting behind_exclusive_;
  // ORDERED tasks in flight, begun or not, by Work::later_ordered and earlier_ordered.
  Task* first_ordered_ = nullptr;
  Task* last_ordered_ = nullptr;
  // Nothing begins.
  bool leaving_ = false;
  // Tasks that have come so far.
  std::uint64_t arrivals_ = 0;
  bool starting_waiting_ = false;
  ExclusiveRange exclusive_;
  std::vector<Waiter> waiters_;
};

}  // namespace pollux::scsi
