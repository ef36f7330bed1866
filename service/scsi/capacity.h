#pragma once
// What READ CAPACITY (16) and the VPD pages both say about the blocks.

#include <cstdint>

#include "scsi/logical_unit.h"

namespace pollux::scsi {

// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT: writes of 2^n blocks cost no read.
std::uint8_t physical_block_exponent(const LogicalUnit& unit);

}  // namespace pollux::scsi
