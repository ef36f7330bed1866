#include "scsi/lun_channel.h"

#include <algorithm>
#include <cassert>
#include <mutex>
#include <utility>

#include "scsi/channel_anchor.h"
#include "scsi/command.h"
#include "scsi/exclusive.h"
#include "scsi/reply.h"
#include "scsi/reservations.h"
#include "scsi/scratch.h"

namespace pollux::scsi {

// The loop in which steps of a task run, on the stack of whoever runs it. The task may be gone after a step; the loop
// then knows it from its own members alone.
struct StepLoop {
  bool another = false;    // the step asked for the device again
  bool completed = false;  // the device has answered
  bool gone = false;       // the task has completed
};

LunChannel::LunChannel(std::shared_ptr<Nexus> nexus, reactor::Reactor& reactor, std::unique_ptr<bdev::Channel> device,
                       std::shared_ptr<ScratchPool> scratch)
    : nexus_(std::move(nexus)),
      unit_(&nexus_->unit()),
      reactor_(reactor),
      device_(std::move(device)),
      scratch_(std::move(scratch)),
      anchor_(new ChannelAnchor{reactor, this}) {}

LunChannel::~LunChannel() {
  assert(idle());
  anchor_->channel = nullptr;
  std::lock_guard lock(unit_->mutex());
  std::erase(nexus_->channels_, anchor_);
}

void LunChannel::submit(Task& task) {
  Task::Work& work = task.work;
  task.outcome = Outcome::kCompleted;
  task.status = ScsiStatus::kGood;
  task.sense_length = 0;
  task.transferred_bytes = 0;
  work.channel = this;
  work.command = nullptr;
  work.scratch = nullptr;
  work.lba = 0;
  work.blocks = 0;
  work.done_blocks = 0;
  work.data_offset = 0;
  work.step = 0;
  work.started = false;
  work.waits_for_range = false;
  work.holds_range = false;
  work.abort_requested = false;
  work.loop = nullptr;
  work.io.task = &task;
  work.io.flags = 0;
  work.previous = nullptr;
  work.next = tasks_;
  if (tasks_ != nullptr) tasks_->work.previous = &task;
  tasks_ = &task;
  ++in_flight_;
  if (task.attribute == TaskAttribute::kOrdered) ++ordered_;

  const Command* command = nullptr;
  const Lookup lookup = find_command(*unit_, task.cdb.data(), command);
  work.command = command;
  if (nexus_->gate() != 0 && !pass_gate(task, command)) return;
  if (lookup == Lookup::kUnknownOpcode) return finish_with_sense(*this, task, sense::kInvalidOpcode);
  if (lookup == Lookup::kUnknownServiceAction) return finish_invalid_cdb(*this, task, 1, 4);
  if (task.cdb_length < command->length) return finish_invalid_cdb(*this, task, task.cdb_length);
  if (!check_usage(*this, task, *command)) return;
  if (command->prepare != nullptr && !command->prepare(*this, task)) return;

  if (may_start(task) && first_waiting_ == nullptr) {
    start(task);
    return;
  }
  work.queue_next = nullptr;
  if (last_waiting_ != nullptr) {
    last_waiting_->work.queue_next = &task;
  } else {
    first_waiting_ = &task;
  }
  last_waiting_ = &task;
  run_waiting();
}

bool LunChannel::pass_gate(Task& task, const Command* command) {
  const std::uint32_t gate = nexus_->gate();
  UnitAttention attention;
  if ((gate & Nexus::kGateAttention) != 0 && (command == nullptr || !command->is(Command::kIgnoresAttention)) &&
      nexus_->take_attention(attention)) {
    finish_with_sense(*this, task, to_sense(attention));
    return false;
  }
  if (command == nullptr) return true;
  if ((gate & Nexus::kGateReservation) != 0 && !pass_reservations(task, *command)) return false;
  if ((gate & Nexus::kGateWriteProtect) != 0 && command->is(Command::kModifiesMedium)) {
    finish_with_sense(*this, task, sense::kWriteProtected);
    return false;
  }
  return true;
}

bool LunChannel::pass_reservations(Task& task, const Command& command) {
  bool allowed;
  {
    std::lock_guard lock(unit_->mutex());
    allowed = unit_->reservations().allows(*nexus_, command, task.cdb.data());
  }
  if (!allowed) finish_with_status(*this, task, ScsiStatus::kReservationConflict);
  return allowed;
}

bool LunChannel::may_start(const Task& task) const {
  const Command& command = *task.work.command;
  if (held_.active && command.is(Command::kModifiesMedium) && held_.overlaps(task.work.lba, task.work.blocks)) {
    return false;
  }
  if (ordered_ == 0) return true;
  if (leaving_) return false;
  if (task.attribute == TaskAttribute::kHeadOfQueue) return true;
  // SAM-5 8.9.3: ORDERED waits for what came before; what came after waits for it.
  for (const Task* other = task.work.next; other != nullptr; other = other->work.next) {
    if (task.attribute == TaskAttribute::kOrdered || other->attribute == TaskAttribute::kOrdered) return false;
  }
  return true;
}

void LunChannel::start(Task& task) {
  task.work.started = true;
  ++started_;
  task.work.command->execute(*this, task);
}

// A task that starts may complete at once and let others start: the outer call's loop sees to them.
void LunChannel::run_waiting() {
  if (running_waiting_) return;
  running_waiting_ = true;
  Task* previous = nullptr;
  Task* task = first_waiting_;
  while (task != nullptr) {
    if (!may_start(*task)) {
      previous = task;
      task = task->work.queue_next;
      continue;
    }
    (previous != nullptr ? previous->work.queue_next : first_waiting_) = task->work.queue_next;
    if (last_waiting_ == task) last_waiting_ = previous;
    start(*task);
    previous = nullptr;
    task = first_waiting_;
  }
  running_waiting_ = false;
}

void LunChannel::begin_leaving() {
  leaving_ = true;
  ++ordered_;
}

void LunChannel::stay() {
  leaving_ = false;
  --ordered_;
  run_waiting();
}

void LunChannel::end_waiting() {
  Task* task = std::exchange(first_waiting_, nullptr);
  last_waiting_ = nullptr;
  while (task != nullptr) {
    Task* next = task->work.queue_next;
    task->outcome = Outcome::kRemoved;
    complete(*task);
    task = next;
  }
}

void LunChannel::unlink(Task& task) {
  Task::Work& work = task.work;
  (work.previous != nullptr ? work.previous->work.next : tasks_) = work.next;
  if (work.next != nullptr) work.next->work.previous = work.previous;
  --in_flight_;
  if (work.started) --started_;
  if (task.attribute == TaskAttribute::kOrdered) --ordered_;
}

void LunChannel::complete(Task& task) {
  if (task.work.loop != nullptr) task.work.loop->gone = true;
  if (task.work.holds_range) unit_->exclusive_ranges().release(task);
  if (task.work.scratch != nullptr) scratch_->release(task);
  if (task.work.abort_requested) {
    task.outcome = task.work.abort_outcome;
    task.status = ScsiStatus::kTaskAborted;
    task.sense_length = 0;
    task.transferred_bytes = 0;
  }
  unlink(task);
  std::vector<std::function<void()>> done;
  if (!waiters_.empty()) {
    std::erase_if(waiters_, [&](Waiter& waiter) {
      std::erase(waiter.tasks, &task);
      if (!waiter.tasks.empty()) return false;
      done.push_back(std::move(waiter.done));
      return true;
    });
  }
  task.complete(task);
  for (auto& call : done) call();
  if (first_waiting_ != nullptr) run_waiting();
}

void LunChannel::to_device_and_finish(Task& task, std::uint64_t transferred_bytes) {
  task.transferred_bytes = transferred_bytes;
  task.work.io.complete = &on_only_step_done;
  device_->submit(task.work.io);
}

void LunChannel::on_only_step_done(bdev::IoRequest& request) {
  Task& task = *static_cast<Task::Io&>(request).task;
  LunChannel& channel = *task.work.channel;
  if (request.status == bdev::IoStatus::kOk) {
    channel.complete(task);
  } else {
    finish_device_error(channel, task);
  }
}

void LunChannel::to_device(Task& task, void (*resume)(LunChannel&, Task&)) {
  task.work.resume = resume;
  task.work.io.complete = &on_step_done;
  if (task.work.loop != nullptr) {
    task.work.loop->another = true;
    return;
  }
  StepLoop loop{.another = true};
  run_steps(task, loop);
}

void LunChannel::on_step_done(bdev::IoRequest& request) {
  Task& task = *static_cast<Task::Io&>(request).task;
  if (task.work.loop != nullptr) {
    task.work.loop->completed = true;
    return;
  }
  StepLoop loop{.completed = true};
  task.work.channel->run_steps(task, loop);
}

void LunChannel::run_steps(Task& task, StepLoop& loop) {
  task.work.loop = &loop;
  for (;;) {
    if (loop.completed) {
      loop.completed = false;
      if (task.work.io.status != bdev::IoStatus::kOk) {
        finish_device_error(*this, task);
      } else {
        resume(task);
      }
    }
    if (loop.gone) return;
    if (!loop.another) break;
    loop.another = false;
    device_->submit(task.work.io);
    if (!loop.completed) break;
  }
  task.work.loop = nullptr;
}

void LunChannel::resume(Task& task) {
  if (task.work.abort_requested) {
    complete(task);
  } else {
    task.work.resume(*this, task);
  }
}

void LunChannel::wait_for(std::vector<const Task*> tasks, std::function<void()> done) {
  if (tasks.empty()) {
    done();
  } else {
    waiters_.push_back({std::move(tasks), std::move(done)});
  }
}

void LunChannel::abort(const AbortSelection& selection, std::function<void()> done) {
  auto selected = [&](const Task& task) {
    return &task != selection.spare && (selection.all || task.tag == selection.tag);
  };
  std::vector<const Task*> started;
  std::vector<Task*> unstarted;
  for (Task* task = tasks_; task != nullptr; task = task->work.next) {
    if (!selected(*task)) continue;
    if (!task->work.abort_requested) task->work.abort_outcome = selection.outcome;
    task->work.abort_requested = true;
    if (task->work.started) started.push_back(task);
  }
  Task* previous = nullptr;
  for (Task* task = first_waiting_; task != nullptr;) {
    Task* next = task->work.queue_next;
    if (task->work.abort_requested) {
      (previous != nullptr ? previous->work.queue_next : first_waiting_) = next;
      if (last_waiting_ == task) last_waiting_ = previous;
      unstarted.push_back(task);
    } else {
      previous = task;
    }
    task = next;
  }
  wait_for(std::move(started), std::move(done));
  for (Task* task : unstarted) complete(*task);
}

bool LunChannel::has_task(std::uint64_t tag) const {
  for (const Task* task = tasks_; task != nullptr; task = task->work.next) {
    if (task->tag == tag) return true;
  }
  return false;
}

void LunChannel::hold_range(const HeldRange& range, const Task* owner, std::function<void()> drained) {
  held_ = range;
  std::vector<const Task*> writing;
  for (const Task* task = tasks_; task != nullptr; task = task->work.next) {
    if (task == owner || !task->work.started || !task->work.command->is(Command::kModifiesMedium) ||
        task->work.waits_for_range || !range.overlaps(task->work.lba, task->work.blocks)) {
      continue;
    }
    writing.push_back(task);
  }
  wait_for(std::move(writing), std::move(drained));
  // What waited for the range before this one.
  run_waiting();
}

void LunChannel::release_range() {
  held_ = HeldRange{};
  run_waiting();
}

}  // namespace pollux::scsi
