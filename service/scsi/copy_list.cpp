#include "scsi/copy_list.h"

#include <algorithm>

#include "base/units.h"
#include "scsi/bytes.h"
#include "scsi/designators.h"

namespace pollux::scsi {

namespace {

constexpr SenseData wrong_byte(std::size_t byte) {
  return {.code = sense::kInvalidFieldInParameters,
          .field = FieldPointer{false, static_cast<std::uint16_t>(byte), std::nullopt}};
}

}  // namespace

std::uint16_t CopyList::targets_length() const {
  return get_be16(bytes_.data() + 2);
}
std::uint32_t CopyList::segments_length() const {
  return get_be32(bytes_.data() + 8);
}

std::uint16_t CopyList::segment_count() const {
  return static_cast<std::uint16_t>(segments_length() / kCopySegmentBytes);
}

CopySegment CopyList::segment(std::uint16_t index) const {
  const std::uint8_t* at = bytes_.data() + kCopyHeaderBytes + targets_length() + index * kCopySegmentBytes;
  return {get_be64(at + 12), get_be64(at + 20), get_be16(at + 10)};
}

std::optional<SenseData> CopyList::check(const LogicalUnit& unit) const {
  const std::uint64_t targets = targets_length();
  const std::uint64_t segments = segments_length();
  const std::uint64_t inline_data = get_be32(bytes_.data() + 12);
  if (targets + segments > kMaxCopyDescriptorBytes || kCopyHeaderBytes + targets + segments > bytes_.size()) {
    return SenseData{.code = sense::kParameterListLength};
  }
  if (inline_data != 0) return wrong_byte(12);
  if (targets % kCopyTargetBytes != 0) return wrong_byte(2);
  if (targets / kCopyTargetBytes > kMaxCopyTargets) return SenseData{.code = sense::kTooManyTargetDescriptors};
  for (std::size_t at = kCopyHeaderBytes; at < kCopyHeaderBytes + targets; at += kCopyTargetBytes) {
    if (auto wrong = check_target(unit, at)) return wrong;
  }
  // An unknown type may have another length, so the types come before the lengths.
  const std::size_t first = kCopyHeaderBytes + targets;
  if (segments >= 4 && bytes_[first] != kBlockToBlock) {
    return SenseData{.code = sense::kUnsupportedSegmentDescriptor};
  }
  if (segments % kCopySegmentBytes != 0) return wrong_byte(8);
  if (segments / kCopySegmentBytes > kMaxCopySegments) return SenseData{.code = sense::kTooManySegmentDescriptors};
  for (std::size_t at = first; at < first + segments; at += kCopySegmentBytes) {
    if (auto wrong = check_segment(unit, at)) return wrong;
  }
  return std::nullopt;
}

// SPC-4 6.4.5.1 and 6.4.5.2.
std::optional<SenseData> CopyList::check_target(const LogicalUnit& unit, std::size_t at) const {
  const std::uint8_t* target = bytes_.data() + at;
  if (target[0] != kIdentificationTarget) return SenseData{.code = sense::kUnsupportedTargetDescriptor};
  // LU ID TYPE, which has but one value for this descriptor; NUL, a device that swallows: there is none.
  if (target[1] >> 6 != 0) return wrong_byte(at + 1);
  if ((target[1] & 0x20) != 0) return SenseData{.code = sense::kCopyTargetNotReachable};
  if ((target[1] & 0x1f) != 0) return wrong_byte(at + 1);
  const std::size_t length = target[7];
  if (length > 20) return wrong_byte(at + 7);
  const Designator named{.code_set = static_cast<std::uint8_t>(target[4] & 0x0f),
                         .association = static_cast<std::uint8_t>(target[5] >> 4 & 3),
                         .type = static_cast<std::uint8_t>(target[5] & 0x0f),
                         .bytes = std::span(target + 8, length)};
  if (!names(unit, named)) return SenseData{.code = sense::kCopyTargetNotReachable};
  if (get_be24(target + 29) != unit.block_bytes()) return wrong_byte(at + 29);
  return std::nullopt;
}

// SPC-4 6.4.6.2.
std::optional<SenseData> CopyList::check_segment(const LogicalUnit& unit, std::size_t at) const {
  const std::uint8_t* segment = bytes_.data() + at;
  if (segment[0] != kBlockToBlock) return SenseData{.code = sense::kUnsupportedSegmentDescriptor};
  if (get_be16(segment + 2) != kCopySegmentBytes - 4) return wrong_byte(at + 2);
  const std::size_t targets = targets_length() / kCopyTargetBytes;
  if (get_be16(segment + 4) >= targets || get_be16(segment + 6) >= targets) {
    return SenseData{.code = sense::kCopyTargetNotReachable};
  }
  const std::uint64_t blocks = get_be16(segment + 10);
  if (!range_fits(get_be64(segment + 12), blocks, unit.size_blocks()) ||
      !range_fits(get_be64(segment + 20), blocks, unit.size_blocks())) {
    return SenseData{.code = sense::kCopyAborted};
  }
  return std::nullopt;
}

}  // namespace pollux::scsi
