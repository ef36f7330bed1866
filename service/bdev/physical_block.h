#pragma once
// The physical block that guests are told of: writes of less may cost a read.

#include <algorithm>
#include <bit>
#include <cstdint>

#include "bdev/bdev.h"

namespace pollux::bdev {

// A page at most: none expects it beyond that.
inline std::uint32_t physical_block_bytes(const Bdev& bdev) {
  return std::max(bdev.block_bytes(), std::min(std::bit_floor(bdev.optimal_io_bytes()), 4096U));
}

}  // namespace pollux::bdev
