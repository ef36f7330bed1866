#pragma once
// ReservationKeeper: SCSI persistent reservations in the state store. Reactors hand their changes over and go on; one
// thread writes them, in the order in which they came.
//
// A reservation without APTPL ends with a power loss (SPC-5 5.14.5), which is when the host's boot id changes; a
// restart of the service alone ends none.

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "base/result.h"
#include "control/state_store.h"
#include "vhost/reservation_store.h"

namespace pollux::control {

class ReservationKeeper final : public vhost::ReservationStore {
 public:
  // The store outlives it. `boot_id` names this start of the host.
  ReservationKeeper(StateStore& store, std::string boot_id);
  // Writes what is still to be written.
  ~ReservationKeeper() override;

  Result<std::string> load(const Uuid& volume) override;
  void save(const Uuid& volume, std::string state, bool over_power_loss, std::function<void(Status)> done) override;

  // kIoError: the kernel does not tell.
  static Result<std::string> host_boot_id();

 private:
  struct Change {
    ReservationRecord record;
    std::function<void(Status)> done;
  };
  void run();

  StateStore& store_;
  const std::string boot_id_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Change> changes_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace pollux::control
