// Commands about the logical unit's condition: TEST UNIT READY, REQUEST SENSE, START STOP UNIT, PREVENT ALLOW MEDIUM
// REMOVAL, LOG SENSE, READ DEFECT DATA.

#include <array>

#include "scsi/bytes.h"
#include "scsi/handlers.h"
#include "scsi/reply.h"

namespace pollux::scsi {

void test_unit_ready(LunChannel& channel, Task& task) {
  finish_good(channel, task);
}

// SPC-5 6.39: a waiting unit attention is reported here as data, and is then done with.
void request_sense(LunChannel& channel, Task& task) {
  const bool descriptor_format = (task.cdb[1] & 0x01) != 0;
  SenseData data;
  UnitAttention attention;
  if (channel.nexus().pop_attention(attention)) data.code = to_sense(attention);
  std::array<std::uint8_t, kMaxSenseBytes> bytes;
  const std::size_t length = encode_sense(data, descriptor_format, bytes);
  finish_with_data(channel, task, std::span(bytes).first(length), task.cdb[4]);
}

// SBC-4 5.31. A volume has no stopped state: guests share it, and firmware that boots from it starts nothing. Stopping
// still leaves everything written on the medium, unless NO_FLUSH says not to.
void start_stop_unit(LunChannel& channel, Task& task) {
  const std::uint8_t options = task.cdb[4];
  const bool load_eject = (options & 0x02) != 0;
  const bool no_flush = (options & 0x04) != 0;
  const bool start = (options & 0x01) != 0;
  const std::uint8_t power_condition = options >> 4;
  if (load_eject && power_condition == 0) return finish_invalid_cdb(channel, task, 4, 1);
  if (start || no_flush || power_condition != 0) return finish_good(channel, task);
  synchronize_cache(channel, task);
}

// SPC-5 6.15: the medium cannot be removed, so preventing that is done already.
void prevent_allow(LunChannel& channel, Task& task) {
  if ((task.cdb[4] & 0x02) != 0) return finish_invalid_cdb(channel, task, 4, 1);
  finish_good(channel, task);
}

// SPC-5 6.8: the list of supported pages, which is this one alone, and no subpages.
void log_sense(LunChannel& channel, Task& task) {
  const std::uint8_t page_control = task.cdb[2] >> 6;
  const std::uint8_t page = task.cdb[2] & 0x3f;
  const std::uint8_t subpage = task.cdb[3];
  if ((task.cdb[1] & 0x01) != 0) return finish_invalid_cdb(channel, task, 1, 0);
  if (page != 0) return finish_invalid_cdb(channel, task, 2, 5);
  if (subpage != 0) return finish_invalid_cdb(channel, task, 3);
  if (page_control != 1 && page_control != 0) return finish_invalid_cdb(channel, task, 2, 7);
  const std::array<std::uint8_t, 5> bytes{0, 0, 0, 1, 0};
  finish_with_data(channel, task, bytes, get_be16(task.cdb.data() + 7));
}

// SBC-4 5.18, 5.19: both defect lists are there and empty, in whatever format was asked for.
void read_defect_data(LunChannel& channel, Task& task) {
  constexpr std::uint8_t kReadDefectData12 = 0xb7;
  std::array<std::uint8_t, 8> bytes{};
  if (task.cdb[0] == kReadDefectData12) {
    bytes[1] = task.cdb[1] & 0x1f;
    finish_with_data(channel, task, bytes, get_be32(task.cdb.data() + 6));
  } else {
    bytes[1] = task.cdb[2] & 0x1f;
    finish_with_data(channel, task, std::span(bytes).first(4), get_be16(task.cdb.data() + 7));
  }
}

}  // namespace pollux::scsi
