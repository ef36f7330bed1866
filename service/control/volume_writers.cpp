#include "control/volume_writers.h"

#include <string>

namespace pollux::control {

VolumeWriters::Claim VolumeWriters::claim(const Uuid& volume, std::uint32_t Counts::*kind) {
  ++(counts_[volume].*kind);
  return {nullptr, [self = shared_from_this(), volume, kind](void*) {
            const std::lock_guard lock(self->mutex_);
            const auto found = self->counts_.find(volume);
            --(found->second.*kind);
            if (found->second.none()) self->counts_.erase(found);
          }};
}

Result<VolumeWriters::Claim> VolumeWriters::guest(const Uuid& volume) {
  const std::lock_guard lock(mutex_);
  const auto found = counts_.find(volume);
  if (found != counts_.end() && found->second.sole_sockets != 0) {
    return fail(ErrorCode::kBusy, "volume " + volume.to_string() +
                                      " has a data socket that writes it: close that first, or attach read-only");
  }
  return claim(volume, &Counts::guests);
}

VolumeWriters::Claim VolumeWriters::returning_guest(const Uuid& volume) {
  const std::lock_guard lock(mutex_);
  return claim(volume, &Counts::guests);
}

Result<VolumeWriters::Claim> VolumeWriters::data_socket(const Uuid& volume, bool shared) {
  const std::lock_guard lock(mutex_);
  const auto found = counts_.find(volume);
  const Counts others = found == counts_.end() ? Counts{} : found->second;
  const std::string what = "volume " + volume.to_string();
  if (others.sole_sockets != 0 || (!shared && others.shared_sockets != 0)) {
    return fail(ErrorCode::kBusy, what +
                                      " has another data socket that writes it: close that first, or open both to "
                                      "be shared");
  }
  if (!shared && others.guests != 0) {
    return fail(ErrorCode::kBusy, what + " is written by a guest: open the data socket read-only, or to be shared");
  }
  return claim(volume, shared ? &Counts::shared_sockets : &Counts::sole_sockets);
}

}  // namespace pollux::control
