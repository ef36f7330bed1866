#pragma once
// GuestRam: the memory of the guest that the initiator plays, in one or two memory files so that ranges across regions
// happen.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "protocol/vhost_user.h"
#include "protocol/virtio_blk.h"
#include "protocol/virtio_ring.h"
#include "protocol/virtio_scsi.h"

namespace pollux::initiator {

// What the initiator is made of.
using namespace protocol;

class GuestRam {
 public:
  // Guest addresses start here, so that address 0 is never valid.
  static constexpr std::uint64_t kGuestBase = 0x100000;

  // `regions` files of equal size, adjacent in guest addresses and apart in this process. Throws std::runtime_error.
  explicit GuestRam(std::uint64_t bytes, unsigned regions = 1);
  ~GuestRam();
  GuestRam(const GuestRam&) = delete;
  GuestRam& operator=(const GuestRam&) = delete;

  // Never given back; throws when it is used up. Within one region.
  std::byte* allocate(std::size_t bytes, std::size_t alignment = 64);
  std::uint64_t guest_addr(const void* pointer) const;
  // Of a place in this process by its guest address.
  std::byte* at(std::uint64_t guest_addr) const;
  std::uint64_t end() const { return kGuestBase + bytes_; }

  struct Part {
    int fd;
    MemoryRegion region;
  };
  std::span<const Part> parts() const { return parts_; }

 private:
  std::vector<Part> parts_;
  std::uint64_t bytes_;
  std::uint64_t used_ = 0;
};

}  // namespace pollux::initiator
