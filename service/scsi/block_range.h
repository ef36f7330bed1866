#pragma once
// Where a CDB says which logical blocks it means.

#include <cstdint>

#include "scsi/bytes.h"
#include "scsi/lun_channel.h"
#include "scsi/task.h"

namespace pollux::scsi {

struct BlockRange {
  std::uint64_t lba = 0;
  std::uint64_t blocks = 0;
  std::uint16_t length_byte = 0;  // where the CDB says how many
};

// For CDBs whose LBA and length stand where READ and WRITE of their size have them.
[[gnu::always_inline]] inline BlockRange decode_range(const std::uint8_t* cdb) {
  switch (cdb[0] >> 5) {
    case 0:
      // SBC-4 5.14: 0 means 256 in the 6-byte commands alone.
      return {get_be24(cdb + 1) & 0x1fffff, cdb[4] != 0 ? cdb[4] : 256u, 4};
    case 4:
      return {get_be64(cdb + 2), get_be32(cdb + 10), 10};
    case 5:
      return {get_be32(cdb + 2), get_be32(cdb + 6), 6};
    default:
      return {get_be32(cdb + 2), get_be16(cdb + 7), 7};
  }
}

// Sets the task's range; LBA OUT OF RANGE ends the task when it is not on the medium. Zero blocks at the very end are.
bool accept_range(LunChannel& channel, Task& task, const BlockRange& range);
// INVALID FIELD IN CDB ends the task when the range is longer than one command may transfer.
bool check_transfer_length(LunChannel& channel, Task& task, const BlockRange& range);

}  // namespace pollux::scsi
