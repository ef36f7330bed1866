#pragma once
// Designators: the names of a logical unit (SPC-5 7.7.6), as VPD page 83h lists them and EXTENDED COPY uses them.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "scsi/logical_unit.h"

namespace pollux::scsi {

enum DesignatorType : std::uint8_t {
  kVendorSpecificDesignator = 0,
  kT10VendorDesignator = 1,
  kNaaDesignator = 3,
  kRelativeTargetPortDesignator = 4,
  kUuidDesignator = 0x0a,
};

struct Designator {
  std::uint8_t code_set = 1;     // 1 binary, 2 ASCII
  std::uint8_t association = 0;  // 0 logical unit, 1 target port
  std::uint8_t type = 0;
  std::span<const std::uint8_t> bytes;
};

// NAA locally assigned (3h): 60 bits folded from the UUID, for initiators that know nothing newer.
std::array<std::uint8_t, 8> naa_designator(const Uuid& uuid);
// The UUID itself (Ah).
std::array<std::uint8_t, 18> uuid_designator(const Uuid& uuid);

// Whether this is one of the logical unit's binary names.
bool names(const LogicalUnit& unit, const Designator& designator);

}  // namespace pollux::scsi
