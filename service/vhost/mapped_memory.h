#pragma once
// MappedMemory: how much of this process's address space each device's front ends may fill with the memory that they
// share. A memory file costs its sender nothing however large it says it is; address space is one for all guests.
//
// A device has a bound, which is beyond any guest of this host, and all devices together have what there is, of which
// none may hold the most (base/budget.h). What is replaced counts until it is unmapped.

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "base/budget.h"
#include "base/result.h"
#include "base/units.h"

namespace pollux::vhost {

// Any thread.
class MappedMemory {
 public:
  // Of the 128 TiB that a process has, without what it needs otherwise.
  static constexpr std::uint64_t kAllBytes = 96 * kTiB;

  // `device_bytes` 0: some times the host's memory.
  explicit MappedMemory(std::uint64_t device_bytes);
  std::uint64_t device_bytes() const { return device_bytes_; }

 private:
  friend class MemoryShare;
  std::mutex mutex_;
  Commons commons_{static_cast<std::int64_t>(kAllBytes)};
  const std::uint64_t device_bytes_;
};

// One device's share. Any thread.
class MemoryShare {
 public:
  explicit MemoryShare(std::shared_ptr<MappedMemory> all) : all_(std::move(all)), budget_(all_->commons_, 0) {}

  // Bytes that are accounted for until it ends.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept
        : share_(std::exchange(other.share_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Lease& operator=(Lease&& other) noexcept {
      std::swap(share_, other.share_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~Lease() {
      if (share_) share_->give(bytes_);
    }

    std::uint64_t bytes() const { return bytes_; }

   private:
    friend class MemoryShare;
    Lease(MemoryShare& share, std::uint64_t bytes) : share_(&share), bytes_(bytes) {}
    MemoryShare* share_ = nullptr;
    std::uint64_t bytes_ = 0;
  };
  // kNoSpace: more than the device may have, or than there is left for it.
  Result<Lease> take(std::uint64_t bytes);

 private:
  void give(std::uint64_t bytes);

  const std::shared_ptr<MappedMemory> all_;
  Budget budget_;
};

}  // namespace pollux::vhost
