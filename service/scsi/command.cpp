#include "scsi/command.h"

#include "scsi/handlers.h"
#include "scsi/reply.h"

namespace pollux::scsi {

namespace {

using enum Command::Flags;
using enum Command::Reserved;

constexpr std::uint16_t kNoSa = kNoServiceAction;

// Sorted by opcode and service action: REPORT SUPPORTED OPERATION CODES lists it in this order. The usage of a service
// action's bits is what tells the rows apart, so it shows the value itself.
constexpr Command kCommands[] = {
    {.opcode = 0x00,  // TEST UNIT READY
     .length = 6,
     .reserved = kAllowed,
     .usage = {0x00},
     .execute = test_unit_ready},
    {.opcode = 0x03,  // REQUEST SENSE
     .length = 6,
     .flags = kIgnoresAttention,
     .reserved = kAllowed,
     .allowed_when_reserved = true,
     .usage = {0x03, 0x01, 0, 0, 0xff},
     .execute = request_sense},
    {.opcode = 0x08,  // READ (6)
     .length = 6,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0x08, 0x1f, 0xff, 0xff, 0xff},
     .prepare = prepare_read,
     .execute = read},
    {.opcode = 0x0a,  // WRITE (6)
     .length = 6,
     .flags = kModifiesMedium,
     .usage = {0x0a, 0x1f, 0xff, 0xff, 0xff},
     .prepare = prepare_write,
     .execute = write},
    {.opcode = 0x12,  // INQUIRY
     .length = 6,
     .flags = kIgnoresAttention,
     .reserved = kAllowed,
     .allowed_when_reserved = true,
     .usage = {0x12, 0x01, 0xff, 0xff, 0xff},
     .execute = inquiry},
    {.opcode = 0x15,  // MODE SELECT (6)
     .length = 6,
     .usage = {0x15, 0x11, 0, 0, 0xff},
     .execute = mode_select},
    {.opcode = 0x16,  // RESERVE (6)
     .length = 6,
     .reserved = kOwnRules,
     .usage = {0x16},
     .execute = reserve_unit},
    {.opcode = 0x17,  // RELEASE (6)
     .length = 6,
     .reserved = kOwnRules,
     .allowed_when_reserved = true,
     .usage = {0x17},
     .execute = release_unit},
    {.opcode = 0x1a,  // MODE SENSE (6)
     .length = 6,
     .usage = {0x1a, 0x08, 0xff, 0xff, 0xff},
     .execute = mode_sense},
    {.opcode = 0x1b,  // START STOP UNIT
     .length = 6,
     .usage = {0x1b, 0x01, 0, 0x0f, 0xf7},
     .execute = start_stop_unit},
    {.opcode = 0x1e,  // PREVENT ALLOW MEDIUM REMOVAL
     .length = 6,
     .usage = {0x1e, 0, 0, 0, 0x03},
     .execute = prevent_allow},
    {.opcode = 0x25,  // READ CAPACITY (10)
     .length = 10,
     .reserved = kAllowed,
     .usage = {0x25},
     .execute = read_capacity_10},
    {.opcode = 0x28,  // READ (10)
     .length = 10,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff},
     .obsolete = 0x02,
     .prepare = prepare_read,
     .execute = read},
    {.opcode = 0x2a,  // WRITE (10)
     .length = 10,
     .flags = kModifiesMedium,
     .usage = {0x2a, 0x18, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff},
     .obsolete = 0x02,
     .prepare = prepare_write,
     .execute = write},
    {.opcode = 0x2e,  // WRITE AND VERIFY (10)
     .length = 10,
     .flags = kModifiesMedium,
     .usage = {0x2e, 0x16, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff},
     .prepare = prepare_write_and_verify,
     .execute = write_and_verify},
    {.opcode = 0x2f,  // VERIFY (10)
     .length = 10,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff},
     .prepare = prepare_verify,
     .execute = verify},
    {.opcode = 0x34,  // PRE-FETCH (10)
     .length = 10,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff},
     .prepare = prepare_range,
     .execute = pre_fetch},
    {.opcode = 0x35,  // SYNCHRONIZE CACHE (10)
     .length = 10,
     .usage = {0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff},
     .obsolete = 0x04,
     .prepare = prepare_range,
     .execute = synchronize_cache},
    {.opcode = 0x37,  // READ DEFECT DATA (10)
     .length = 10,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff},
     .execute = read_defect_data},
    {.opcode = 0x41,  // WRITE SAME (10)
     .length = 10,
     .flags = kModifiesMedium,
     .usage = {0x41, 0x08, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff},
     .prepare = prepare_write_same,
     .execute = write_same},
    {.opcode = 0x42,  // UNMAP
     .length = 10,
     .flags = kModifiesMedium | kNeedsUnmap,
     .usage = {0x42, 0, 0, 0, 0, 0, 0x3f, 0xff, 0xff},
     .prepare = prepare_unmap,
     .execute = unmap},
    {.opcode = 0x4d,  // LOG SENSE
     .length = 10,
     .reserved = kAllowed,
     .usage = {0x4d, 0x01, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = log_sense},
    {.opcode = 0x55,  // MODE SELECT (10)
     .length = 10,
     .usage = {0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff},
     .execute = mode_select},
    {.opcode = 0x56,  // RESERVE (10)
     .length = 10,
     .reserved = kOwnRules,
     .usage = {0x56},
     .execute = reserve_unit},
    {.opcode = 0x57,  // RELEASE (10)
     .length = 10,
     .reserved = kOwnRules,
     .allowed_when_reserved = true,
     .usage = {0x57},
     .execute = release_unit},
    {.opcode = 0x5a,  // MODE SENSE (10)
     .length = 10,
     .usage = {0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff},
     .execute = mode_sense},
    {.opcode = 0x5e,  // PERSISTENT RESERVE IN: READ KEYS
     .service_action = 0x00,
     .length = 10,
     .reserved = kAllowed,
     .usage = {0x5e, 0x00, 0, 0, 0, 0, 0, 0xff, 0xff},
     .execute = persistent_reserve_in},
    {.opcode = 0x5e,  // READ RESERVATION
     .service_action = 0x01,
     .length = 10,
     .reserved = kAllowed,
     .usage = {0x5e, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff},
     .execute = persistent_reserve_in},
    {.opcode = 0x5e,  // REPORT CAPABILITIES
     .service_action = 0x02,
     .length = 10,
     .reserved = kAllowed,
     .usage = {0x5e, 0x02, 0, 0, 0, 0, 0, 0xff, 0xff},
     .execute = persistent_reserve_in},
    {.opcode = 0x5e,  // READ FULL STATUS
     .service_action = 0x03,
     .length = 10,
     .reserved = kAllowed,
     .usage = {0x5e, 0x03, 0, 0, 0, 0, 0, 0xff, 0xff},
     .execute = persistent_reserve_in},
    {.opcode = 0x5f,  // PERSISTENT RESERVE OUT: REGISTER
     .service_action = 0x00,
     .length = 10,
     .reserved = kOwnRules,
     .usage = {0x5f, 0x00, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = persistent_reserve_out},
    {.opcode = 0x5f,  // RESERVE
     .service_action = 0x01,
     .length = 10,
     .reserved = kOwnRules,
     .usage = {0x5f, 0x01, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = persistent_reserve_out},
    {.opcode = 0x5f,  // RELEASE
     .service_action = 0x02,
     .length = 10,
     .reserved = kOwnRules,
     .usage = {0x5f, 0x02, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = persistent_reserve_out},
    {.opcode = 0x5f,  // CLEAR
     .service_action = 0x03,
     .length = 10,
     .reserved = kOwnRules,
     .usage = {0x5f, 0x03, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = persistent_reserve_out},
    {.opcode = 0x5f,  // PREEMPT
     .service_action = 0x04,
     .length = 10,
     .reserved = kOwnRules,
     .usage = {0x5f, 0x04, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = persistent_reserve_out},
    {.opcode = 0x5f,  // PREEMPT AND ABORT
     .service_action = 0x05,
     .length = 10,
     .reserved = kOwnRules,
     .usage = {0x5f, 0x05, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = persistent_reserve_out},
    {.opcode = 0x5f,  // REGISTER AND IGNORE EXISTING KEY
     .service_action = 0x06,
     .length = 10,
     .reserved = kOwnRules,
     .usage = {0x5f, 0x06, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = persistent_reserve_out},
    {.opcode = 0x5f,  // REGISTER AND MOVE
     .service_action = 0x07,
     .length = 10,
     .reserved = kOwnRules,
     .usage = {0x5f, 0x07, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = persistent_reserve_out},
    {.opcode = 0x83,  // EXTENDED COPY (LID1)
     .service_action = 0x00,
     .length = 16,
     .flags = kModifiesMedium,
     .usage = {0x83, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .prepare = prepare_extended_copy,
     .execute = extended_copy},
    {.opcode = 0x84,  // RECEIVE COPY STATUS (LID1)
     .service_action = 0x00,
     .length = 16,
     .usage = {0x84, 0x00, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = receive_copy_status},
    {.opcode = 0x84,  // RECEIVE COPY OPERATING PARAMETERS
     .service_action = 0x03,
     .length = 16,
     .usage = {0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = receive_copy_parameters},
    {.opcode = 0x88,  // READ (16)
     .length = 16,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0x88, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .obsolete = 0x02,
     .prepare = prepare_read,
     .execute = read},
    {.opcode = 0x89,  // COMPARE AND WRITE
     .length = 16,
     .flags = kModifiesMedium,
     .usage = {0x89, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0x3f},
     .obsolete = 0x02,
     .prepare = prepare_compare_and_write,
     .execute = compare_and_write},
    {.opcode = 0x8a,  // WRITE (16)
     .length = 16,
     .flags = kModifiesMedium,
     .usage = {0x8a, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .obsolete = 0x02,
     .prepare = prepare_write,
     .execute = write},
    {.opcode = 0x8b,  // ORWRITE (16)
     .length = 16,
     .flags = kModifiesMedium,
     .usage = {0x8b, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .obsolete = 0x02,
     .prepare = prepare_write,
     .execute = or_write},
    {.opcode = 0x8e,  // WRITE AND VERIFY (16)
     .length = 16,
     .flags = kModifiesMedium,
     .usage = {0x8e, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .prepare = prepare_write_and_verify,
     .execute = write_and_verify},
    {.opcode = 0x8f,  // VERIFY (16)
     .length = 16,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0x8f, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .prepare = prepare_verify,
     .execute = verify},
    {.opcode = 0x90,  // PRE-FETCH (16)
     .length = 16,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0x90, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .prepare = prepare_range,
     .execute = pre_fetch},
    {.opcode = 0x91,  // SYNCHRONIZE CACHE (16)
     .length = 16,
     .usage = {0x91, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .obsolete = 0x04,
     .prepare = prepare_range,
     .execute = synchronize_cache},
    {.opcode = 0x93,  // WRITE SAME (16)
     .length = 16,
     .flags = kModifiesMedium,
     .usage = {0x93, 0x09, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .prepare = prepare_write_same,
     .execute = write_same},
    {.opcode = 0x9e,  // READ CAPACITY (16)
     .service_action = 0x10,
     .length = 16,
     .reserved = kAllowed,
     .usage = {0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = read_capacity_16},
    {.opcode = 0x9e,  // GET LBA STATUS (16)
     .service_action = 0x12,
     .length = 16,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0x9e, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
     .execute = get_lba_status},
    {.opcode = 0xa0,  // REPORT LUNS
     .length = 12,
     .flags = kIgnoresAttention,
     .reserved = kAllowed,
     .allowed_when_reserved = true,
     .usage = {0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = report_luns},
    {.opcode = 0xa3,  // REPORT SUPPORTED OPERATION CODES
     .service_action = 0x0c,
     .length = 12,
     .reserved = kAllowed,
     .usage = {0xa3, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
     .execute = report_supported_opcodes},
    {.opcode = 0xa3,  // REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
     .service_action = 0x0d,
     .length = 12,
     .reserved = kAllowed,
     .usage = {0xa3, 0x0d, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
     .execute = report_supported_task_functions},
    {.opcode = 0xa8,  // READ (12)
     .length = 12,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0xa8, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .obsolete = 0x02,
     .prepare = prepare_read,
     .execute = read},
    {.opcode = 0xaa,  // WRITE (12)
     .length = 12,
     .flags = kModifiesMedium,
     .usage = {0xaa, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .obsolete = 0x02,
     .prepare = prepare_write,
     .execute = write},
    {.opcode = 0xae,  // WRITE AND VERIFY (12)
     .length = 12,
     .flags = kModifiesMedium,
     .usage = {0xae, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .prepare = prepare_write_and_verify,
     .execute = write_and_verify},
    {.opcode = 0xaf,  // VERIFY (12)
     .length = 12,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0xaf, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
     .prepare = prepare_verify,
     .execute = verify},
    {.opcode = 0xb7,  // READ DEFECT DATA (12)
     .length = 12,
     .flags = kReadsMedium,
     .reserved = kReadAllowed,
     .usage = {0xb7, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
     .execute = read_defect_data},
};

// Where every opcode of this table that has service actions carries them.
constexpr std::uint8_t kServiceActionMask = 0x1f;

}  // namespace

constinit const std::array<const Command*, 256> kFirstRows = [] {
  std::array<const Command*, 256> rows{};
  for (std::size_t i = std::size(kCommands); i-- > 0;) rows[kCommands[i].opcode] = &kCommands[i];
  return rows;
}();

std::span<const Command> commands() {
  return kCommands;
}

bool available(const Command& command, const LogicalUnit& unit) {
  return !command.is(kNeedsUnmap) || unit.bdev().supports_unmap();
}

Lookup find_among_rows(const LogicalUnit& unit, const std::uint8_t* cdb, const Command*& found) {
  const Command* command = kFirstRows[cdb[0]];
  if (command == nullptr) return Lookup::kUnknownOpcode;
  if (command->service_action != kNoSa) {
    const std::uint8_t wanted = cdb[1] & kServiceActionMask;
    const Command* const end = kCommands + std::size(kCommands);
    while (command != end && command->opcode == cdb[0] && command->service_action != wanted) ++command;
    if (command == end || command->opcode != cdb[0]) return Lookup::kUnknownServiceAction;
  }
  if (!available(*command, unit)) return Lookup::kUnknownOpcode;
  found = command;
  return Lookup::kFound;
}

bool check_usage_by_bytes(LunChannel& channel, Task& task, const Command& command) {
  for (std::uint16_t i = 1; i < command.length; ++i) {
    std::uint8_t meaningful = command.usage[i];
    if (i == 1) meaningful |= command.obsolete;
    // A service action was matched already; its own bits are no flags.
    if (i == 1 && command.service_action != kNoSa) meaningful |= kServiceActionMask;
    const auto wrong = static_cast<std::uint8_t>(task.cdb[i] & ~meaningful);
    if (wrong == 0) continue;
    std::uint8_t bit = 7;
    while ((wrong >> bit & 1) == 0) --bit;
    finish_invalid_cdb(channel, task, i, bit);
    return false;
  }
  return true;
}

}  // namespace pollux::scsi
