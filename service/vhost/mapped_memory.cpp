#include "vhost/mapped_memory.h"

#include <unistd.h>

#include <algorithm>
#include <string>

namespace pollux::vhost {

namespace {

// A guest's memory may be overcommitted, and is mapped twice while a front end comes back or changes its table.
constexpr std::uint64_t kTimesHostMemory = 4;

std::uint64_t host_memory_bytes() {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long page_bytes = ::sysconf(_SC_PAGESIZE);
  return pages > 0 && page_bytes > 0 ? static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page_bytes) : 0;
}

}  // namespace

MappedMemory::MappedMemory(std::uint64_t device_bytes)
    : device_bytes_(std::min(kAllBytes / 2, device_bytes != 0 ? device_bytes : kTimesHostMemory * host_memory_bytes())) {}

Result<MemoryShare::Lease> MemoryShare::take(std::uint64_t bytes) {
  std::lock_guard lock(all_->mutex_);
  const auto held = static_cast<std::uint64_t>(budget_.held());
  const std::uint64_t most = all_->device_bytes();
  if (bytes > most || held > most - bytes) {
    return fail(ErrorCode::kNoSpace, "shared memory of " + std::to_string(held) + " and " + std::to_string(bytes) +
                                         " bytes, more than the " + std::to_string(most) +
                                         " that a device's front ends may share (vhost.guest_memory_gib)");
  }
  if (!budget_.open()) return fail(ErrorCode::kNoSpace, "no address space left for shared memory");
  budget_.take(static_cast<std::int64_t>(bytes));
  return Lease(*this, bytes);
}

void MemoryShare::give(std::uint64_t bytes) {
  std::lock_guard lock(all_->mutex_);
  budget_.give(static_cast<std::int64_t>(bytes));
}

}  // namespace pollux::vhost
