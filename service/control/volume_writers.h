#pragma once
// VolumeWriters: who may write a volume at this moment. Guests and data sockets see one volume, but neither a guest's
// file system nor a program that copies an image into it expects another writer: so a data socket that writes has the
// volume for itself, unless its opener asked to share it. What guests share among themselves is Cinder's
// business.
//
// In memory: data sockets are gone when the service stops, and guests claim again as they come back. Any thread.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "base/result.h"
#include "base/uuid.h"

namespace pollux::control {

class VolumeWriters : public std::enable_shared_from_this<VolumeWriters> {
 public:
  // The right to write, until it is destroyed. Empty: none.
  using Claim = std::shared_ptr<void>;

  // kBusy: a data socket writes the volume and does not share it.
  Result<Claim> guest(const Uuid& volume);
  // The same for a guest that has the volume already, and whose disk comes back: it is never refused.
  Claim returning_guest(const Uuid& volume);
  // kBusy: a guest writes the volume, or another data socket does that does not share it; and to one that does not
  // share: any other.
  Result<Claim> data_socket(const Uuid& volume, bool shared);

 private:
  struct Counts {
    std::uint32_t guests = 0;
    std::uint32_t shared_sockets = 0;
    std::uint32_t sole_sockets = 0;
    bool none() const { return guests == 0 && shared_sockets == 0 && sole_sockets == 0; }
  };
  // Under the mutex.
  Claim claim(const Uuid& volume, std::uint32_t Counts::*kind);

  std::mutex mutex_;
  std::map<Uuid, Counts> counts_;  // under mutex_; volumes that somebody writes
};

}  // namespace pollux::control
