#pragma once
// Checker: reads a pool that nobody has open and says whether its metadata agrees with itself, and mends what can be
// mended without guessing. What `polluxd --fsck` does.
//
// It recovers the state as the next start would, then counts, by walking every volume, who names each metadata page and
// cluster, and compares with the counts on disk. It never asserts on what it reads. Without repair the device is not
// written; with repair what is wrong is put right in memory and written as a checkpoint, so that a crash in the middle
// leaves the pool as it was.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "bdev/bdev.h"
#include "blob/check_progress.h"
#include "blob/state.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::blob {

struct CheckReport {
  std::uint64_t checkpoint = 0;
  std::uint64_t replayed_records = 0;
  std::uint64_t volumes = 0;
  std::uint64_t metadata_pages = 0;
  std::uint64_t data_clusters = 0;
  // Clusters or pages in use whose count is too low, so that they could be given away: data at risk.
  std::uint64_t lost = 0;
  // Clusters that a volume uses as data while they are something else, or pages with two owners.
  std::uint64_t doubly_used = 0;
  // Counted as used, or more often than they are: space that is not coming back.
  std::uint64_t leaked = 0;
  // Pages that cannot be read or make no sense.
  std::uint64_t damaged = 0;
  // Of all these, how many a repair put right.
  std::uint64_t repaired = 0;
  // Why a repair writes nothing at all, whatever else it could mend; empty when it may.
  std::string irreparable;
  // A line for each finding, up to kMaxFindings, and one that says why a repair wrote nothing.
  std::vector<std::string> findings;

  std::uint64_t found() const { return lost + doubly_used + leaked + damaged; }
  bool clean() const { return found() == 0; }
};

inline constexpr std::size_t kMaxFindings = 1000;

enum class Repair : bool { kNo, kYes };

// A repair corrects counts: what is counted too low is raised, a leaf that the journal freed while a volume names it
// gets its page back, what is leaked becomes free, unless something is damaged, for what a page that cannot be read
// leads to is not known to be nobody's. Damaged and doubly used things are left as they are. When a volume names a page
// that holds something else by now, nothing is written: the pool would not open afterwards. Errors of read_super() and
// recover(): the pool cannot be loaded at all; kIoError from a repair; kRetry: cancelled. On any reactor, and ends
// there; takes time and turns in proportion to the pool.
reactor::Task<Result<CheckReport>> check_pool(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& on,
                                              Repair repair = Repair::kNo,
                                              std::shared_ptr<CheckProgress> progress = nullptr);

}  // namespace pollux::blob
