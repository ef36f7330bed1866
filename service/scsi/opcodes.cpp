// REPORT SUPPORTED OPERATION CODES (SPC-5 6.35) and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (6.36), out of the
// command table itself.

#include <array>
#include <cstring>
#include <vector>

#include "scsi/bytes.h"
#include "scsi/command.h"
#include "scsi/handlers.h"
#include "scsi/reply.h"

namespace pollux::scsi {

namespace {

constexpr std::size_t kTimeoutsBytes = 12;
constexpr std::uint8_t kCommandSize = 8;

// SPC-5 6.35.4: zero means that no time is stated.
void put_timeouts(std::uint8_t* at) {
  std::memset(at, 0, kTimeoutsBytes);
  put_be16(at, kTimeoutsBytes - 2);
}

bool has_service_action(const Command& command) {
  return command.service_action != kNoServiceAction;
}

void report_all(LunChannel& channel, Task& task, bool with_timeouts, std::uint64_t allocation_length) {
  // The table is a constant, so this is too: enough for all of it.
  static constexpr std::size_t kMaxBytes = 4 + 128 * (kCommandSize + kTimeoutsBytes);
  std::array<std::uint8_t, kMaxBytes> bytes{};
  std::size_t length = 4;
  for (const Command& command : commands()) {
    if (!available(command, channel.unit())) continue;
    std::uint8_t* at = bytes.data() + length;
    at[0] = command.opcode;
    if (has_service_action(command)) {
      put_be16(at + 2, command.service_action);
      at[5] |= 0x01;
    }
    put_be16(at + 6, command.length);
    length += kCommandSize;
    if (with_timeouts) {
      at[5] |= 0x02;
      put_timeouts(at + kCommandSize);
      length += kTimeoutsBytes;
    }
  }
  put_be32(bytes.data(), static_cast<std::uint32_t>(length - 4));
  finish_with_data(channel, task, std::span(bytes).first(length), allocation_length);
}

void report_one(LunChannel& channel, Task& task, const Command* command, bool with_timeouts,
                std::uint64_t allocation_length) {
  std::array<std::uint8_t, 4 + 16 + kTimeoutsBytes> bytes{};
  if (command == nullptr) {
    bytes[1] = 0x01;  // not supported
    return finish_with_data(channel, task, std::span(bytes).first(4), allocation_length);
  }
  bytes[1] = 0x03;  // supported as a standard says
  put_be16(bytes.data() + 2, command->length);
  std::memcpy(bytes.data() + 4, command->usage.data(), command->length);
  std::size_t length = 4u + command->length;
  if (with_timeouts) {
    bytes[1] |= 0x80;
    put_timeouts(bytes.data() + length);
    length += kTimeoutsBytes;
  }
  finish_with_data(channel, task, std::span(bytes).first(length), allocation_length);
}

}  // namespace

void report_supported_opcodes(LunChannel& channel, Task& task) {
  const bool with_timeouts = (task.cdb[2] & 0x80) != 0;
  const std::uint8_t options = task.cdb[2] & 0x07;
  const std::uint8_t opcode = task.cdb[3];
  const std::uint16_t service_action = get_be16(task.cdb.data() + 4);
  const std::uint64_t allocation_length = get_be32(task.cdb.data() + 6);
  if (options == 0) return report_all(channel, task, with_timeouts, allocation_length);
  if (options > 3) return finish_invalid_cdb(channel, task, 2, 2);

  bool opcode_has_actions = false;
  bool opcode_known = false;
  const Command* found = nullptr;
  for (const Command& command : commands()) {
    if (command.opcode != opcode || !available(command, channel.unit())) continue;
    opcode_known = true;
    opcode_has_actions = has_service_action(command);
    if (!opcode_has_actions || command.service_action == service_action) found = &command;
  }
  // 001b is for opcodes without service actions, 010b for those with, 011b takes either (then the action must be zero
  // where there is none).
  if (options == 1 && opcode_known && opcode_has_actions) return finish_invalid_cdb(channel, task, 2, 2);
  if (options == 2 && opcode_known && !opcode_has_actions) return finish_invalid_cdb(channel, task, 2, 2);
  if (options == 3 && opcode_known && !opcode_has_actions && service_action != 0) found = nullptr;
  report_one(channel, task, found, with_timeouts, allocation_length);
}

void report_supported_task_functions(LunChannel& channel, Task& task) {
  const bool extended = (task.cdb[2] & 0x80) != 0;
  std::array<std::uint8_t, 16> bytes{};
  bytes[0] = 0x80 | 0x40 | 0x10 | 0x08 | 0x04;  // ATS, ATSS, CTSS, LURS, QTS
  bytes[1] = 0x02 | 0x01;                       // QTSS, ITNRS
  bytes[3] = extended ? 0x0c : 0;
  finish_with_data(channel, task, std::span(bytes).first(extended ? 16 : 4), get_be32(task.cdb.data() + 6));
}

}  // namespace pollux::scsi
