// READ CAPACITY (SBC-4 5.20, 5.21).

#include <algorithm>
#include <array>
#include <bit>

#include "bdev/physical_block.h"
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
  // LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT: a write of less than a physical block costs a read at times. Each
  // logical block is old or new all the same.
  bytes[13] = static_cast<std::uint8_t>(std::countr_zero(bdev::physical_block_bytes(unit.bdev()) / unit.block_bytes()));
  // LBPME and LBPRZ: blocks can be unmapped, and read as zeros then.
  if (unit.bdev().supports_unmap()) bytes[14] = 0xc0;
  finish_with_data(channel, task, bytes, get_be32(task.cdb.data() + 10));
}

}  // namespace pollux::scsi
