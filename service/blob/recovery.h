#pragma once
// Recovery: from what lies on the device to the state in memory, after a clean stop and after a crash alike: the pages
// of the last complete checkpoint, then the journal's commits after it in order, up to the first that is not there
// whole. Reads only counts, directories and volume records; leaves and index pages come when they are needed.
//
// Nothing on the device is believed unchecked: every path ends in a state that is consistent in itself, or in an error
// that says what is wrong.

#include <cstdint>
#include <memory>
#include <vector>

#include "base/result.h"
#include "bdev/bdev.h"
#include "blob/journal.h"
#include "blob/state.h"
#include "blob/journal_queue.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::blob {

struct Recovered {
  Superblock super;
  std::unique_ptr<State> state;
  JournalPosition tail;
  JournalPosition head;
  // What the queue holds beyond that: applied, and to be written.
  std::vector<JournalQueue::Slot*> queued;
  std::uint64_t replayed_records = 0;
};

// kNotFound: neither copy is a superblock of ours. kUnsupported: a newer version. kCorrupt: both copies are damaged or
// make no sense. kIoError.
reactor::Task<Result<Superblock>> read_super(bdev::Channel& channel, std::uint64_t device_bytes);

// kUse: the state is to be changed, so contradictions by which a change would destroy something are errors. kCheck:
// they are for the checker to find, and leaves that the replay frees stay in memory.
enum class Purpose : bool { kUse, kCheck };

// Read-only: the device is not written. On any reactor; takes time, and single turns, in proportion to the pool.
// kCorrupt, kIoError.
reactor::Task<Result<Recovered>> recover(bdev::Channel& channel, reactor::Reactor& home, const Superblock& super,
                                         Purpose purpose, JournalQueue* queue = nullptr);

}  // namespace pollux::blob
