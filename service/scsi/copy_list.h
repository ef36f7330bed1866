#pragma once
// The parameter list of EXTENDED COPY (LID1) (SPC-4 6.4): which blocks go where.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "scsi/logical_unit.h"
#include "scsi/sense.h"

namespace pollux::scsi {

inline constexpr std::size_t kCopyHeaderBytes = 16;
inline constexpr std::size_t kCopyTargetBytes = 32;
inline constexpr std::size_t kCopySegmentBytes = 28;
inline constexpr std::uint16_t kMaxCopyTargets = 2;
inline constexpr std::uint16_t kMaxCopySegments = 32;
inline constexpr std::uint32_t kMaxCopyDescriptorBytes = 1024;
inline constexpr std::size_t kMaxCopyListBytes = kCopyHeaderBytes + kMaxCopyDescriptorBytes;
// Descriptor types: identification descriptor; block device to block device.
inline constexpr std::uint8_t kIdentificationTarget = 0xe4;
inline constexpr std::uint8_t kBlockToBlock = 0x02;

struct CopySegment {
  std::uint64_t source_lba = 0;
  std::uint64_t destination_lba = 0;
  std::uint32_t blocks = 0;
};

// A list in memory that nobody else changes.
class CopyList {
 public:
  explicit CopyList(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  std::uint8_t list_id() const { return bytes_[0]; }
  // LIST ID USAGE 11b: the list has no identifier and its status is not kept; 10b: not kept.
  bool keeps_status() const { return (bytes_[1] >> 3 & 3) < 2; }
  std::uint16_t segment_count() const;
  CopySegment segment(std::uint16_t index) const;

  // What is wrong with it on this logical unit, if anything: both ends of each segment must be the unit itself.
  std::optional<SenseData> check(const LogicalUnit& unit) const;

 private:
  std::uint16_t targets_length() const;
  std::uint32_t segments_length() const;
  std::optional<SenseData> check_target(const LogicalUnit& unit, std::size_t at) const;
  std::optional<SenseData> check_segment(const LogicalUnit& unit, std::size_t at) const;

  std::span<const std::uint8_t> bytes_;
};

}  // namespace pollux::scsi
