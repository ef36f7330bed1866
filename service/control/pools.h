#pragma once
// Pools: which pools this service opens when it starts. The pools' content is the volume room's; here is only the list,
// kept in the state store, and what became of each entry.
//
// A pool is recorded after it is open and forgotten after it is closed, so a crash in between is settled by repeating
// the request. A RAM pool is gone with the process and is dropped from the list at the next start.
//
// Guests outlive the service. A pool that another service had open meanwhile is not opened while guests that may be alive
// are attached to volumes of it: see VolumeService::import_pool().
//
// Any control thread, never a reactor; changes are serialised.

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "control/deadline.h"
#include "control/state_store.h"
#include "reactor/reactor.h"
#include "volume/volume_service.h"

namespace pollux::control {

class Pools {
 public:
  // Guests who were attached before the host's last start are gone with it.
  enum class Guests : bool { kGone, kMayLive };
  Pools(StateStore& store, reactor::ReactorGroup& reactors, volume::VolumeService& volumes,
        Guests guests = Guests::kMayLive)
      : store_(store), reactors_(reactors), volumes_(volumes), guests_(guests) {}

  // At start: opens what is recorded, all together. A pool that does not open is logged and stays recorded; the others are opened.
  Status restore();

  Result<volume::PoolInfo> create(volume::PoolSpec spec, bool overwrite, Deadline deadline);
  Result<volume::PoolInfo> import(const bdev::Spec& bdev, bool force, Deadline deadline);
  // By name or id. Also forgets a pool that is recorded and not open.
  Status forget(const std::string& pool, Deadline deadline);

  // For a check. The pool by name, id or, if it begins with '/', path, as it is recorded; it is closed and stays
  // recorded until end_check(), and asking for it is kRetry. A path of which nothing is known is a pool without name
  // and id that nothing is done with. kBusy: in use, or being checked. kUnsupported: in memory. kNotFound.
  Result<PoolRecord> begin_check(const std::string& pool, Deadline deadline);
  // Opens a recorded pool. Its error: why it is not open.
  Status end_check(const PoolRecord& pool);

  // A volume or pool was not found: the same error, unless recorded pools are not open, which may hold it: then kRetry.
  Error explain(Error error) const;
  bool all_open() const;
  // Those that are recorded, not open and not being checked: their names, and why.
  std::map<std::string, std::string> unopened() const;

 private:
  struct Unopened {
    PoolRecord record;
    std::string reason;
    bool checking = false;
  };
  Result<std::unique_lock<std::timed_mutex>> turn(Deadline deadline);
  Status record(const volume::PoolInfo& pool, const bdev::Spec& bdev);
  Result<volume::PoolInfo> open(const PoolRecord& record);
  // The volumes of guests that may be alive.
  Result<std::vector<Uuid>> attached();
  // Recorded pools on this device that are not open are listed as such.
  Status note_closed(const bdev::Spec& bdev, const std::string& reason, Deadline deadline);
  // kBusy: a job works on a volume of this pool.
  Status check_no_job(const std::string& pool, Deadline deadline);
  Status check_not_checked(const Uuid& pool) const;

  StateStore& store_;
  reactor::ReactorGroup& reactors_;
  volume::VolumeService& volumes_;
  const Guests guests_;
  std::timed_mutex changes_;
  mutable std::mutex unopened_mutex_;
  std::map<Uuid, Unopened> unopened_;
};

}  // namespace pollux::control
