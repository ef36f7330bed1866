#pragma once
// Scratch memory, for commands that cannot work on the guest's buffers alone: VERIFY, COMPARE AND WRITE, WRITE SAME,
// parameter lists that outlive a step. Tenants (tenant.h) share the buffers of a reactor.

#include <array>
#include <cstddef>
#include <cstdint>

namespace pollux::scsi {

inline constexpr std::size_t kScratchBytes = 64 * 1024;
// Of a reactor, beside one that each tenant has to itself.
inline constexpr std::size_t kScratchBuffers = 16;

class alignas(4096) ScratchBuffer {
 public:
  std::uint8_t* data() { return bytes_.data(); }

 private:
  std::array<std::uint8_t, kScratchBytes> bytes_;
};

}  // namespace pollux::scsi
