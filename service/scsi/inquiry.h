#pragma once
// Standard INQUIRY data (SPC-5 6.6.2), which LUNs without a logical unit answer as well.

#include <cstddef>
#include <cstdint>
#include <span>

#include "scsi/logical_unit.h"

namespace pollux::scsi {

inline constexpr std::size_t kStandardInquiryBytes = 96;
// Writes kStandardInquiryBytes and answers that.
std::size_t standard_inquiry(const LogicalUnitOptions& options, std::span<std::uint8_t> out);

}  // namespace pollux::scsi
