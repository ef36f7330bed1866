#pragma once
// What one command may ask for; VPD page B0h tells initiators (SBC-4 6.6.4).

#include <algorithm>
#include <cstdint>

#include "base/units.h"
#include "scsi/logical_unit.h"
#include "scsi/scratch.h"

namespace pollux::scsi {

// Guest memory is the buffer, so this bounds the time of one command, not memory.
inline constexpr std::uint64_t kMaxTransferBytes = 32 * kMiB;
// What of one command goes to the device at a time.
inline constexpr std::uint64_t kStepBytes = 2 * kMiB;
inline constexpr std::uint32_t kMaxUnmapBlocks = 1024 * 1024;
inline constexpr std::uint32_t kMaxUnmapDescriptors = 256;
inline constexpr std::uint64_t kMaxWriteSameBlocks = 32768;

inline std::uint32_t max_transfer_blocks(const LogicalUnit& unit) {
  return static_cast<std::uint32_t>(kMaxTransferBytes >> unit.block_shift());
}
// Its compare half is read into one scratch buffer, and its field has eight bits.
inline std::uint32_t max_compare_blocks(const LogicalUnit& unit) {
  return std::min<std::uint32_t>(255, static_cast<std::uint32_t>(kScratchBytes >> unit.block_shift()));
}

}  // namespace pollux::scsi
