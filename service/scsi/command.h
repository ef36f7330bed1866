#pragma once
// Command: one row of the table that drives everything: which CDBs there are, which of their bits mean something, who
// may send them in spite of reservations, and which functions carry them out.
//
// A command runs in two parts. prepare() looks at the CDB and sets task.work.lba and .blocks when it touches the
// medium; it changes nothing. When the task's turn has come execute() does the work. Either ends the task through one
// of the functions of reply.h, or execute() leaves it with the device.

#include <array>
#include <cstdint>
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
// What the CDB's opcode (and service action) is on this logical unit.
Lookup find_command(const LogicalUnit& unit, const std::uint8_t* cdb, const Command*& found);
bool available(const Command& command, const LogicalUnit& unit);

// The command's CDB has no bit set that means nothing; otherwise the task ends with INVALID FIELD IN CDB there.
bool check_usage(LunChannel& channel, Task& task, const Command& command);

}  // namespace pollux::scsi
