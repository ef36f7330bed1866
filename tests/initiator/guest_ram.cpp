#include "initiator/guest_ram.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

namespace pollux::initiator {

GuestRam::GuestRam(std::uint64_t bytes, unsigned regions) : bytes_(bytes) {
  const std::uint64_t each = bytes / regions;
  if (each == 0 || each % 4096 != 0) throw std::runtime_error("guest memory is a multiple of 4096 bytes a region");
  for (unsigned i = 0; i < regions; ++i) {
    const int fd = ::memfd_create("guest-ram", MFD_CLOEXEC);
    if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(each)) != 0)
      throw std::runtime_error("memfd: " + std::string(std::strerror(errno)));
    void* data = ::mmap(nullptr, each, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) throw std::runtime_error("mmap: " + std::string(std::strerror(errno)));
    parts_.push_back({fd, {kGuestBase + i * each, each, reinterpret_cast<std::uint64_t>(data), 0}});
  }
}

GuestRam::~GuestRam() {
  for (const Part& part : parts_) {
    ::munmap(reinterpret_cast<void*>(part.region.user_addr), part.region.size_bytes);
    ::close(part.fd);
  }
}

std::byte* GuestRam::allocate(std::size_t bytes, std::size_t alignment) {
  const std::uint64_t each = parts_[0].region.size_bytes;
  std::uint64_t start = (used_ + alignment - 1) / alignment * alignment;
  if (start / each != (start + bytes - 1) / each) start = (start / each + 1) * each;
  if (bytes > each || start + bytes > bytes_) throw std::runtime_error("guest memory is used up");
  used_ = start + bytes;
  return at(kGuestBase + start);
}

std::uint64_t GuestRam::guest_addr(const void* pointer) const {
  const auto address = reinterpret_cast<std::uint64_t>(pointer);
  for (const Part& part : parts_) {
    if (address - part.region.user_addr < part.region.size_bytes)
      return part.region.guest_addr + (address - part.region.user_addr);
  }
  throw std::runtime_error("not guest memory");
}

std::byte* GuestRam::at(std::uint64_t guest_addr) const {
  for (const Part& part : parts_) {
    if (guest_addr - part.region.guest_addr < part.region.size_bytes) {
      return reinterpret_cast<std::byte*>(part.region.user_addr + (guest_addr - part.region.guest_addr));
    }
  }
  throw std::runtime_error("outside of guest memory");
}

}  // namespace pollux::initiator
