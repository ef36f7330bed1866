#pragma once
// How large a disk is, asked as a driver does.

#include <cstdint>

#include "initiator/front_end.h"

namespace pollux::initiator {

struct Capacity {
  std::uint64_t size_bytes = 0;
  std::uint32_t block_bytes = 512;
};

// READ CAPACITY(16) of LUN 0, after the unit attentions of a new connection. Nothing may be in flight.
Capacity scsi_capacity(FrontEnd& front_end, unsigned target);
// From the configuration space.
std::uint64_t blk_capacity(FrontEnd& front_end);

}  // namespace pollux::initiator
