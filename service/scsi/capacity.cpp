// READ CAPACITY (SBC-4 5.20, 5.21).

#include <algorithm>
#include <array>

#include "scsi/bytes.h"
#include "scsi/handlers.h"
#include "scsi/reply.h"

namespace pollux::scsi {

void read_capacity_10(LunChannel& channel, Task& task) {
  const LogicalUnit& unit = channel.unit();
  std::array<std::uint8_t, 8> bytes;
  // FFFFFFFFh says: ask READ CAPACITY (16).
  const std::uint64_t last = unit.size_blocks() - 1;
  put_be32(bytes.data(), static_cast<std::uint32_t>(std::min<std::uint64_t>(last, UINT32_MAX)));
  put_be32(bytes.data() + 4, unit.block_bytes());
  finish_with_data(channel, task, bytes, bytes.size());
}

void read_capacity_16(LunChannel& channel, Task& task) {
  const LogicalUnit& unit = channel.unit();
  std::array<std::uint8_t, 32> bytes{};
  put_be64(bytes.data(), unit.size_blocks() - 1);
  put_be32(bytes.data() + 8, unit.block_bytes());
  // LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT stays 0: every logical block is written by itself. What is cheaper to
  // write is in VPD page B0h.
  // LBPME and LBPRZ: blocks can be unmapped, and read as zeros then.
  if (unit.bdev().supports_unmap()) bytes[14] = 0xc0;
  finish_with_data(channel, task, bytes, get_be32(task.cdb.data() + 10));
}

}  // namespace pollux::scsi
