#pragma once
// Task: one SCSI command on its way through a logical unit, and TaskManagement: one task management function.
//
// Both are the caller's memory, preallocated (a front end keeps one Task for each entry of a ring), and belong to this
// room from submit() or manage() until complete() is called, exactly once, on the reactor that submitted.
//
// The buffers are guest memory: checked and translated, but their bytes may change at any time. This room copies every
// parameter list before it looks at it, and never reads back what it wrote there.

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "bdev/bdev.h"

namespace pollux::scsi {

class LunChannel;
struct Command;
struct StepLoop;
class ScratchBuffer;

// SAM-5 5.3.1.
enum class ScsiStatus : std::uint8_t {
  kGood = 0x00,
  kCheckCondition = 0x02,
  kConditionMet = 0x04,
  kBusy = 0x08,
  kReservationConflict = 0x18,
  kTaskSetFull = 0x28,
  kTaskAborted = 0x40,
};

// SAM-5 8.9.
enum class TaskAttribute : std::uint8_t { kSimple, kOrdered, kHeadOfQueue };

// What the transport has to say, beside the SCSI status.
enum class Outcome : std::uint8_t {
  kCompleted,  // status (and sense) say it all
  // The CDB wants more data than the buffers hold (VIRTIO 1.2 5.6.6.1, VIRTIO_SCSI_S_OVERRUN). Nothing was done.
  // status and sense hold an ILLEGAL REQUEST for transports without such a word.
  kOverrun,
  kAborted,  // by ABORT TASK, ABORT TASK SET or CLEAR TASK SET; status is TASK ABORTED
  kReset,    // by a reset of the logical unit or the loss of the nexus; status is TASK ABORTED
  kRemoved,  // the logical unit went before the task began; nothing was done
};

inline constexpr std::size_t kMaxCdbBytes = 32;
inline constexpr std::size_t kMaxSenseBytes = 32;

// Which command this is, for transports that hand in again commands whose process died before it answered them.
struct CommandArrival {
  // The nexus has had no other command with it; 0: the transport hands nothing in again.
  std::uint64_t number = 0;
  // It is handed in again: a process that died may have done it.
  bool again = false;
};

struct Task {
  // ---- Set by the front end before each submit(). ----
  std::array<std::uint8_t, kMaxCdbBytes> cdb{};
  // Bytes of cdb that the initiator sent; the rest must be zero. A transport of fixed CDB size states that size.
  std::uint8_t cdb_length = kMaxCdbBytes;
  TaskAttribute attribute = TaskAttribute::kSimple;
  // Names the task in task management; unique among the tasks in flight of one nexus.
  std::uint64_t tag = 0;
  // From the initiator, and to it. The arrays (not what they point to) are the task's until it completes and may be
  // shortened. The byte totals are the sums of the lengths.
  iovec* data_out = nullptr;
  iovec* data_in = nullptr;
  std::uint32_t data_out_count = 0;
  std::uint32_t data_in_count = 0;
  std::uint64_t data_out_bytes = 0;
  std::uint64_t data_in_bytes = 0;
  void (*complete)(Task&) = nullptr;
  // Asked while the task is in flight, by the few commands that must not be done twice. Null: never handed in again.
  CommandArrival (*arrival)(const Task&) = nullptr;

  // ---- The answer. ----
  Outcome outcome = Outcome::kCompleted;
  ScsiStatus status = ScsiStatus::kGood;
  std::uint8_t sense_length = 0;
  std::array<std::uint8_t, kMaxSenseBytes> sense{};
  // Bytes put into data_in, or taken from data_out. The residual is the buffers' total less this.
  std::uint64_t transferred_bytes = 0;

  // ---- For this room while it owns the task. ----
  struct Io : bdev::IoRequest {
    Task* task = nullptr;
  };
  // What is as new with each submit(), side by side so that a few stores make it so.
  struct Progress {
    const Command* command = nullptr;
    ScratchBuffer* scratch = nullptr;
    std::uint64_t lba = 0;  // range of the medium that the command touches
    std::uint64_t blocks = 0;
    std::uint64_t done_blocks = 0;
    std::uint64_t data_offset = 0;  // in data_out
    // Set while the task's steps run in LunChannel's loop.
    StepLoop* loop = nullptr;
    Task* previous = nullptr;  // list of the channel's tasks in flight
    std::uint8_t step = 0;
    bool started = false;          // past the checks and the wait for its turn
    bool waits_for_range = false;  // in ExclusiveRanges, not yet its turn
    bool owns_exclusive = false;
    bool abort_requested = false;
  };
  struct Work : Progress {
    LunChannel* channel = nullptr;
    Task* next = nullptr;
    Task* queue_next = nullptr;       // list of tasks that wait for something
    Task* earlier_ordered = nullptr;  // list of the channel's ORDERED tasks
    Task* later_ordered = nullptr;
    std::uint64_t arrival = 0;  // its place among all tasks of the channel
    void (*resume)(LunChannel&, Task&) = nullptr;
    std::uint64_t step_blocks = 0;
    iovec piece{};  // the scratch buffer, as the device sees it
    Outcome abort_outcome = Outcome::kAborted;
    Io io;
  } work;
};

// SAM-5 7.1.
enum class TaskFunction : std::uint8_t {
  kAbortTask,
  kAbortTaskSet,
  kClearTaskSet,
  kLogicalUnitReset,
  kNexusReset,
  kQueryTask,
  kQueryTaskSet,
  kClearAca,  // always rejected: NACA is not supported
};

enum class TaskFunctionResponse : std::uint8_t {
  kComplete,
  kSucceeded,  // the queries: there is such a task
  kRejected,
  kIncorrectLun,
};

struct TaskManagement {
  // ---- Set by the front end. ----
  TaskFunction function = TaskFunction::kAbortTask;
  std::uint64_t tag = 0;  // kAbortTask and kQueryTask
  void (*complete)(TaskManagement&) = nullptr;

  // ---- The answer: every task that it ended has completed before. ----
  TaskFunctionResponse response = TaskFunctionResponse::kComplete;
};

}  // namespace pollux::scsi
