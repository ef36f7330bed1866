#pragma once
// PoolChecks: checks and repairs of pools that somebody asked for over the control port, each on a thread of its own.
//
// A pool that is open is closed, checked and opened again. It stays recorded all the while, so a service that dies in
// between opens it at its next start; what a repair was about to write is then either there or not, see blob/checker.h.
// kRemembered of those that ended are remembered, and forgotten with the process.
//
// Any control thread, never a reactor.

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "base/uuid.h"
#include "control/attachments.h"
#include "control/deadline.h"
#include "control/pools.h"
#include "reactor/reactor.h"
#include "volume/volume_service.h"

namespace pollux::control {

struct PoolCheckInfo {
  Uuid id;
  bool repair = false;
  volume::JobState state = volume::JobState::kRunning;
  std::uint64_t done = 0;  // volumes and snapshots
  std::uint64_t total = 0;
  // Why it failed, or why the pool is not open after it.
  std::string error;
  volume::PoolCheck result;

  volume::JobInfo as_job() const;
};

class PoolChecks {
 public:
  static constexpr std::size_t kRemembered = 16;
  static constexpr std::size_t kMaxRunning = 4;

  PoolChecks(reactor::ReactorGroup& reactors, volume::VolumeService& volumes, Pools& pools, Attachments& attachments)
      : reactors_(reactors), volumes_(volumes), pools_(pools), attachments_(attachments) {}
  // Cancels what runs and waits for it.
  ~PoolChecks();

  struct Request {
    Uuid id;
    std::string pool;  // name, id, or the path of a device
    bool repair = false;
  };
  // The same id again answers how it stands. kExists: the id is taken by another request. kRetry: too many run. Errors
  // of Pools::begin_check().
  Result<PoolCheckInfo> start(const Request& request, Deadline deadline);
  // kNotFound.
  Result<PoolCheckInfo> find(const Uuid& id) const;
  std::vector<PoolCheckInfo> list() const;
  // False: there is none. One that has ended stays as it ended.
  bool cancel(const Uuid& id);

 private:
  struct Check {
    Request request;
    PoolRecord pool;
    PoolCheckInfo info;  // under mutex_
    std::shared_ptr<blob::CheckProgress> progress = std::make_shared<blob::CheckProgress>();
    std::thread thread;
  };
  void run(Check& check);
  Result<volume::PoolCheck> examine(const Check& check);
  Check* look_up(const Uuid& id) const;
  PoolCheckInfo describe(const Check& check) const;
  void forget_old();

  reactor::ReactorGroup& reactors_;
  volume::VolumeService& volumes_;
  Pools& pools_;
  Attachments& attachments_;
  std::timed_mutex starting_;
  mutable std::mutex mutex_;
  std::list<std::unique_ptr<Check>> checks_;
};

}  // namespace pollux::control
