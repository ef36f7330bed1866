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
#include "scsi/tenant.h"

namespace pollux::scsi {

namespace {

// Steps that the device answers at once, in one turn. One moves as much as a scratch buffer holds, or some MiB.
constexpr unsigned kStepsPerTurn = 2;

}  // namespace

// The loop in which steps of a task run, on the caller's stack. The task may be gone after a step; the loop
// then knows it from its own members alone.
struct StepLoop {
  bool another = false;    // the step asked for the device again
  bool completed = false;  // the device has answered
  bool gone = false;       // the task has completed
  unsigned steps = 0;
};

LunChannel::LunChannel(std::shared_ptr<Nexus> nexus, reactor::Reactor& reactor, std::unique_ptr<bdev::Channel> device,
                       std::shared_ptr<Tenant> tenant)
    : nexus_(std::move(nexus)),
      unit_(&nexus_->unit()),
      reactor_(reactor),
      device_(std::move(device)),
      tenant_(std::move(tenant)),
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
  static_cast<Task::Progress&>(work) = {};
  work.channel = this;
  work.io.task = &task;
  work.io.flags = 0;
  work.next = tasks_;
  if (tasks_ != nullptr) tasks_->work.previous = &task;
  tasks_ = &task;
  ++in_flight_;
  work.arrival = ++arrivals_;
  if (task.attribute == TaskAttribute::kOrdered) [[unlikely]] {
    work.later_ordered = nullptr;
    work.earlier_ordered = last_ordered_;
    (last_ordered_ != nullptr ? last_ordered_->work.later_ordered : first_ordered_) = &task;
    last_ordered_ = &task;
  }

  const Command* command = nullptr;
  const Lookup lookup = find_command(*unit_, task.cdb.data(), command);
  work.command = command;
  if (nexus_->gate() != 0 && !pass_gate(task, command)) return;
  if (lookup != Lookup::kFound) [[unlikely]] {
    if (lookup == Lookup::kUnknownOpcode) return finish_with_sense(*this, task, sense::kInvalidOpcode);
    return finish_invalid_cdb(*this, task, 1, 4);
  }
  if (task.cdb_length < command->length) return finish_invalid_cdb(*this, task, task.cdb_length);
  if (!check_usage(*this, task, *command)) return;
  if (command->prepare != nullptr && !command->prepare(*this, task)) return;

  if (in_turn(task)) {
    start(task);
  } else {
    waiting_.push(task);
  }
}

bool LunChannel::pass_gate(Task& task, const Command* command) {
  const std::uint32_t gate = nexus_->gate();
  UnitAttention attention;
  if ((gate & Nexus::kGateAttention) != 0 && (command == nullptr || !command->is(Command::kIgnoresAttention)) &&
      nexus_->pop_attention(attention)) {
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

void LunChannel::Waiting::push(Task& task) {
  task.work.queue_next = nullptr;
  (last != nullptr ? last->work.queue_next : first) = &task;
  last = &task;
}

Task& LunChannel::Waiting::pop() {
  Task& task = *first;
  first = std::exchange(task.work.queue_next, nullptr);
  if (first == nullptr) last = nullptr;
  return task;
}

void LunChannel::Waiting::move_aborted(Waiting& to) {
  Waiting rest;
  while (first != nullptr) {
    Task& task = pop();
    (task.work.abort_requested ? to : rest).push(task);
  }
  *this = rest;
}

inline bool LunChannel::in_turn(const Task& task) const {
  if (leaving_) [[unlikely]]
    return false;
  if (first_ordered_ == nullptr) return true;
  // SAM-5 8.9: HEAD OF QUEUE waits for nobody, ORDERED for all that came before, SIMPLE for those of them that are
  // ORDERED.
  if (task.attribute == TaskAttribute::kHeadOfQueue) return true;
  if (task.attribute == TaskAttribute::kOrdered) return task.work.next == nullptr;
  return first_ordered_->work.arrival > task.work.arrival;
}

inline bool LunChannel::waits_for_exclusive(const Task& task) const {
  return exclusive_.active && task.work.command->is(Command::kModifiesMedium) &&
         exclusive_.overlaps(task.work.lba, task.work.blocks);
}

inline void LunChannel::start(Task& task) {
  if (waits_for_exclusive(task)) [[unlikely]]
    return behind_exclusive_.push(task);
  task.work.started = true;
  ++started_;
  task.work.command->execute(*this, task);
}

// A task that starts may complete at once and let others start: the outer call's loop sees to them.
void LunChannel::start_waiting() {
  if (starting_waiting_) return;
  starting_waiting_ = true;
  while (waiting_.first != nullptr && in_turn(*waiting_.first)) start(waiting_.pop());
  starting_waiting_ = false;
}

void LunChannel::start_behind_exclusive() {
  if (leaving_) return;
  // Those that still have to wait go to the list's end; what starts may change the list.
  std::size_t count = 0;
  for (const Task* task = behind_exclusive_.first; task != nullptr; task = task->work.queue_next) ++count;
  for (; count > 0 && behind_exclusive_.first != nullptr; --count) start(behind_exclusive_.pop());
}

void LunChannel::begin_leaving() {
  leaving_ = true;
}

void LunChannel::stay() {
  leaving_ = false;
  start_waiting();
  start_behind_exclusive();
}

void LunChannel::end_waiting() {
  for (Waiting all : {std::exchange(waiting_, {}), std::exchange(behind_exclusive_, {})}) {
    while (all.first != nullptr) {
      Task& task = all.pop();
      task.outcome = Outcome::kRemoved;
      complete(task);
    }
  }
}

[[gnu::always_inline]] inline void LunChannel::unlink(Task& task) {
  Task::Work& work = task.work;
  (work.previous != nullptr ? work.previous->work.next : tasks_) = work.next;
  if (work.next != nullptr) work.next->work.previous = work.previous;
  --in_flight_;
  started_ -= work.started ? 1 : 0;
  if (task.attribute != TaskAttribute::kOrdered) [[likely]]
    return;
  (work.earlier_ordered != nullptr ? work.earlier_ordered->work.later_ordered : first_ordered_) = work.later_ordered;
  (work.later_ordered != nullptr ? work.later_ordered->work.earlier_ordered : last_ordered_) = work.earlier_ordered;
}

void LunChannel::complete(Task& task) {
  const Task::Work& work = task.work;
  if (work.loop != nullptr || work.scratch != nullptr || work.owns_exclusive || work.abort_requested) [[unlikely]]
    settle(task);
  unlink(task);
  if (!waiters_.empty() || waiting_.first != nullptr) [[unlikely]]
    return complete_for_waiters(task);
  task.complete(task);
}

void LunChannel::settle(Task& task) {
  if (task.work.loop != nullptr) task.work.loop->gone = true;
  if (task.work.owns_exclusive) unit_->exclusive_ranges().release(task);
  if (task.work.scratch != nullptr) tenant_->release_scratch(task);
  if (task.work.abort_requested) {
    task.outcome = task.work.abort_outcome;
    task.status = ScsiStatus::kTaskAborted;
    task.sense_length = 0;
    task.transferred_bytes = 0;
  }
}

void LunChannel::complete_for_waiters(Task& task) {
  std::vector<std::function<void()>> done;
  std::erase_if(waiters_, [&](Waiter& waiter) {
    std::erase(waiter.tasks, &task);
    if (!waiter.tasks.empty()) return false;
    done.push_back(std::move(waiter.done));
    return true;
  });
  task.complete(task);
  for (auto& call : done) call();
  if (waiting_.first != nullptr) start_waiting();
}

void LunChannel::on_only_step_done(bdev::IoRequest& request) {
  Task& task = *static_cast<Task::Io&>(request).task;
  LunChannel& channel = *task.work.channel;
  if (request.status != bdev::IoStatus::kOk) [[unlikely]]
    return finish_device_error(channel, task);
  channel.complete(task);
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
    if (++loop.steps > kStepsPerTurn) {
      task.work.loop = nullptr;
      tenant_->go_on_later(task);
      return;
    }
    device_->submit(task.work.io);
    if (!loop.completed) break;
  }
  task.work.loop = nullptr;
}

void LunChannel::go_on(Task& task) {
  if (task.work.abort_requested) return complete(task);
  StepLoop loop{.another = true};
  run_steps(task, loop);
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
  for (Task* task = tasks_; task != nullptr; task = task->work.next) {
    if (!selected(*task)) continue;
    if (!task->work.abort_requested) task->work.abort_outcome = selection.outcome;
    task->work.abort_requested = true;
    if (task->work.started) started.push_back(task);
  }
  Waiting unstarted;
  waiting_.move_aborted(unstarted);
  behind_exclusive_.move_aborted(unstarted);
  wait_for(std::move(started), std::move(done));
  while (unstarted.first != nullptr) complete(unstarted.pop());
}

bool LunChannel::has_task(std::uint64_t tag) const {
  for (const Task* task = tasks_; task != nullptr; task = task->work.next) {
    if (task->tag == tag) return true;
  }
  return false;
}

void LunChannel::begin_exclusive(const ExclusiveRange& range, const Task* owner, std::function<void()> drained) {
  exclusive_ = range;
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
  start_behind_exclusive();
}

void LunChannel::end_exclusive() {
  exclusive_ = ExclusiveRange{};
  start_behind_exclusive();
}

}  // namespace pollux::scsi
