#include "base/crc32c.h"

#include <isa-l/crc.h>

namespace pollux {

std::uint32_t crc32c(const void* data, std::size_t length, std::uint32_t seed) {
  // ISA-L takes a non-const pointer and an int length but only reads; it neither pre- nor post-inverts.
  auto* bytes = static_cast<unsigned char*>(const_cast<void*>(data));
  std::uint32_t crc = ~seed;
  while (length > 0) {
    constexpr std::size_t kChunk = std::size_t{1} << 30;
    const std::size_t now = length < kChunk ? length : kChunk;
    crc = crc32_iscsi(bytes, static_cast<int>(now), crc);
    bytes += now;
    length -= now;
  }
  return ~crc;
}

}  // namespace pollux
