#pragma once
// Checkpoint: writes the metadata pages that changed since the last one, so that the journal before it can be given up.
//
// The state of one instant, the cut, is written while I/O and further changes go on. Order: journal up to the cut
// durable; pages into the slots that hold no valid version; flush; superblock. A crash before the superblock is there
// leaves the last checkpoint and the whole journal after it.
//
// The Checkpointer alone knows whether one is wanted, under way, or both: a request that comes while one is under way
// is for the next, and none is lost. Home reactor only.

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "bdev/bdev.h"
#include "blob/journal.h"
#include "blob/page_codec.h"
#include "blob/state.h"
#include "reactor/mutex.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::blob {

class Checkpointer {
 public:
  Checkpointer(State& state, Journal& journal, bdev::Channel& channel, reactor::Reactor& home, Superblock super)
      : state_(state),
        journal_(journal),
        channel_(channel),
        home_(home),
        super_(super),
        compatible_flags_(super.compatible_flags) {}

  // One after the other. After an error, kIoError, the journal refuses everything.
  reactor::Task<Status> run();
  // Has one begin after this call, in the background; one that has not begun yet serves all who asked.
  void want();
  bool idle() const { return !wanted_ && !serving_ && !one_.held(); }

  const Superblock& super() const { return super_; }
  // Durable with the next run().
  void set_compatible_flags(std::uint32_t flags) { compatible_flags_ = flags; }
  // The number of the last complete checkpoint, where a Loader looks for it.
  const std::uint64_t& number() const { return super_.checkpoint; }

 private:
  struct Write {
    PageKey key;
    PageType type;
    std::uint64_t offset;
    // A metadata cluster's first directory: what lies in the other slot is not ours and must not look valid.
    std::uint64_t wipe_offset;
  };
  reactor::Task<Status> run_alone();
  reactor::Task<void> serve();
  std::vector<Write> plan();
  std::uint32_t seed() const { return checksum_seed(super_.pool_id); }
  reactor::Task<Status> write_page(const Write& write, std::uint64_t generation);

  State& state_;
  Journal& journal_;
  bdev::Channel& channel_;
  reactor::Reactor& home_;
  Superblock super_;
  std::uint32_t compatible_flags_;
  reactor::AsyncMutex one_;
  bool wanted_ = false;
  // serve() runs, and looks at wanted_ again before it ends.
  bool serving_ = false;
};

// Writes the superblock into the slot of its checkpoint number, durably. Also for format.
reactor::Task<Status> write_super(bdev::Channel& channel, Superblock super);

}  // namespace pollux::blob
