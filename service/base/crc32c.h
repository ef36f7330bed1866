#pragma once
// CRC-32C (Castagnoli), as every on-disk structure of the blob store carries it.

#include <cstddef>
#include <cstdint>

namespace pollux {

// The CRC of `length` bytes; pass an earlier result as `seed` to continue over several ranges.
std::uint32_t crc32c(const void* data, std::size_t length, std::uint32_t seed = 0);

}  // namespace pollux
