#pragma once
// SettingStore: where what guests and front ends have set on disks is kept, so that a restart of the service changes
// none of it: the mode parameters and RESERVE of SCSI disks, the cache mode of virtio-blk disks. Whoever keeps state of
// the service implements it, and forgets what was set when the disk's attachment ends; what the text means is the
// disks' business.

#include <functional>
#include <string>

#include "base/result.h"
#include "base/uuid.h"

namespace pollux::vhost {

class SettingStore {
 public:
  virtual ~SettingStore() = default;
  // `guest` is the name of a scsi controller or what DiskSpec says; empty for what all guests that have the volume by
  // SCSI share. Answers what was saved last and has not lapsed; empty when there is nothing. Control threads.
  virtual Result<std::string> load(const Uuid& volume, const std::string& guest) = 0;
  // May be called on a reactor, must not block it. `done` exactly once, on a thread of the store's own and never before
  // this returns, when the state is durable or is not going to be. Saves of one volume and guest take effect in the
  // order of the calls. Empty state: forget. What is not to last over a power loss lapses when the host starts anew.
  virtual void save(const Uuid& volume, const std::string& guest, std::string state, bool over_power_loss,
                    std::function<void(Status)> done) = 0;
};

}  // namespace pollux::vhost
