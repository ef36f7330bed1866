#pragma once
// Command: one row of the table that drives everything: which CDBs there are, which of their bits mean something, who
// may send them in spite of reservations, and which functions carry them out.
//
// A command runs in two parts. prepare() looks at the CDB and sets task.work.lba and .blocks when it touches the
// medium; it changes nothing. When the task's turn has come execute() does the work. Either ends the task through one
// of the functions of reply.h, or execute() leaves it with the device.

#include <array>
#include <cstdint>
#include <cstring>
#include <span>

#include "scsi/lun_channel.h"
#include "scsi/task.h"

namespace pollux::scsi {

inline constexpr std::uint16_t kNoServiceAction = 0xffff;

struct Command {
  enum Flags : std::uint16_t {
    kModifiesMedium = 1u << 0,  // waits for exclusive ranges; refused when write-protected
    kReadsMedium = 1u << 1,
    kIgnoresAttention = 1u << 2,  // SAM-5 5.14: INQUIRY, REPORT LUNS, REQUEST SENSE
    kNeedsUnmap = 1u << 3,        // there only when the device can unmap
  };
  // What a persistent reservation of another nexus, to which this one is no party, does to it (SPC-5 table on
  // "allowed commands in the presence of various reservations", SBC-4 the same).
  enum class Reserved : std::uint8_t {
    kAllowed,      // whatever the type
    kReadAllowed,  // allowed under Write Exclusive types, a conflict under Exclusive Access types
    kConflict,
    kOwnRules,  // the command asks by itself
  };

  std::uint8_t opcode = 0;
  std::uint16_t service_action = kNoServiceAction;
  std::uint8_t length = 0;
  std::uint16_t flags = 0;
  Reserved reserved = Reserved::kConflict;
  // May be sent while another nexus holds an SPC-2 reservation (RESERVE).
  bool allowed_when_reserved = false;
  // The CDB usage data of SPC-5 6.35.3: byte 0 is the opcode, set bits are evaluated.
  std::array<std::uint8_t, 16> usage{};
  // Bits of byte 1 that older standards define, initiators still set, and that change nothing here (FUA_NV, SYNC_NV).
  std::uint8_t obsolete = 0;
  bool (*prepare)(LunChannel&, Task&) = nullptr;
  void (*execute)(LunChannel&, Task&) = nullptr;

  bool is(Flags flag) const { return (flags & flag) != 0; }
};

// All rows, by opcode and service action.
std::span<const Command> commands();

enum class Lookup : std::uint8_t { kFound, kUnknownOpcode, kUnknownServiceAction };
bool available(const Command& command, const LogicalUnit& unit);

// The first row of each opcode; null where there is none.
extern const std::array<const Command*, 256> kFirstRows;
Lookup find_among_rows(const LogicalUnit& unit, const std::uint8_t* cdb, const Command*& found);
// What the CDB's opcode (and service action) is on this logical unit.
inline Lookup find_command(const LogicalUnit& unit, const std::uint8_t* cdb, const Command*& found) {
  const Command* const first = kFirstRows[cdb[0]];
  if (first == nullptr || first->service_action != kNoServiceAction || first->is(Command::kNeedsUnmap))
    return find_among_rows(unit, cdb, found);
  found = first;
  return Lookup::kFound;
}

bool check_usage_by_bytes(LunChannel& channel, Task& task, const Command& command);
// The command's CDB has no bit set that means nothing; otherwise the task ends with INVALID FIELD IN CDB there.
inline bool check_usage(LunChannel& channel, Task& task, const Command& command) {
  // All bytes at once: no bit that is not evaluated, nor any past the CDB's end, is how nearly every CDB looks.
  std::uint64_t cdb[2], usage[2];
  static_assert(sizeof(usage) == sizeof(command.usage) && sizeof(cdb) <= sizeof(task.cdb));
  std::memcpy(cdb, task.cdb.data(), sizeof(cdb));
  std::memcpy(usage, command.usage.data(), sizeof(usage));
  if (((cdb[0] & ~usage[0]) | (cdb[1] & ~usage[1])) == 0) [[likely]]
    return true;
  return check_usage_by_bytes(channel, task, command);
}

}  // namespace pollux::scsi
