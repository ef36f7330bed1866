#pragma once
// ReservationStore: where persistent reservations of SCSI disks are kept, so that a restart of the service takes none
// away. Whoever keeps state of the service implements it; what the text means is scsi's business.

#include <functional>
#include <string>

#include "base/result.h"
#include "base/uuid.h"

namespace pollux::vhost {

class ReservationStore {
 public:
  virtual ~ReservationStore() = default;
  // What was saved last for this volume and has not lapsed; empty when there is nothing. Control threads.
  virtual Result<std::string> load(const Uuid& volume) = 0;
  // Called on a reactor, must not block it. `done` exactly once, on any thread, when the state is durable or is not
  // going to be. Saves of one volume take effect in the order of the calls. Empty state: forget. What is not to last
  // over a power loss lapses when the host starts anew.
  virtual void save(const Uuid& volume, std::string state, bool over_power_loss, std::function<void(Status)> done) = 0;
};

}  // namespace pollux::vhost
