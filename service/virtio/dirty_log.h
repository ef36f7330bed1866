#pragma once
// DirtyLog: the bitmap in which a back end tells a migrating front end which guest pages it has written (vhost-user
// SET_LOG_BASE). One bit a 4 KiB page of guest physical address. Shared by the queues of a session, hence the atomic
// OR.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "virtio/guest_memory.h"

namespace pollux::virtio {

class DirtyLog {
 public:
  static constexpr std::uint64_t kPageBytes = 4096;

  explicit DirtyLog(std::unique_ptr<SharedMapping> bitmap) : bitmap_(std::move(bitmap)) {}

  // Pages that the bitmap does not reach are left out: the front end sized it, and only its own migration suffers.
  void mark(std::uint64_t guest_addr, std::uint64_t length) {
    if (length == 0) return;
    const std::uint64_t pages = bitmap_->size_bytes() > UINT64_MAX / 8 ? UINT64_MAX : bitmap_->size_bytes() * 8;
    const std::uint64_t first = guest_addr / kPageBytes;
    const std::uint64_t last_byte = length - 1 > UINT64_MAX - guest_addr ? UINT64_MAX : guest_addr + (length - 1);
    const std::uint64_t end = std::min(last_byte / kPageBytes + 1, pages);
    auto* bytes = reinterpret_cast<std::uint8_t*>(bitmap_->data());
    for (std::uint64_t page = first; page < end; ++page) {
      __atomic_fetch_or(bytes + page / 8, static_cast<std::uint8_t>(1U << (page % 8)), __ATOMIC_RELAXED);
    }
  }

 private:
  std::unique_ptr<SharedMapping> bitmap_;
};

}  // namespace pollux::virtio
