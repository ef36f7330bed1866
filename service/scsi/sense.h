#pragma once
// Sense data: what went wrong, in the words of SPC-5 4.4, and the one table from device errors to them.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "bdev/bdev.h"
#include "scsi/logical_unit.h"

namespace pollux::scsi {

enum class SenseKey : std::uint8_t {
  kNoSense = 0x0,
  kNotReady = 0x2,
  kMediumError = 0x3,
  kHardwareError = 0x4,
  kIllegalRequest = 0x5,
  kUnitAttention = 0x6,
  kDataProtect = 0x7,
  kCopyAborted = 0xa,
  kAbortedCommand = 0xb,
  kMiscompare = 0xe,
};

struct SenseCode {
  SenseKey key = SenseKey::kNoSense;
  std::uint8_t asc = 0;
  std::uint8_t ascq = 0;

  bool operator==(const SenseCode&) const = default;
};

// Names as in SPC-5 annex on additional sense codes.
namespace sense {
inline constexpr SenseCode kNone{};
// Initiators send such a command again after a while, until its time is over.
inline constexpr SenseCode kBecomingReady{SenseKey::kNotReady, 0x04, 0x01};
inline constexpr SenseCode kWriteError{SenseKey::kMediumError, 0x0c, 0x00};
inline constexpr SenseCode kUnrecoveredReadError{SenseKey::kMediumError, 0x11, 0x00};
inline constexpr SenseCode kParameterListLength{SenseKey::kIllegalRequest, 0x1a, 0x00};
inline constexpr SenseCode kMiscompareDuringVerify{SenseKey::kMiscompare, 0x1d, 0x00};
inline constexpr SenseCode kInvalidOpcode{SenseKey::kIllegalRequest, 0x20, 0x00};
inline constexpr SenseCode kLbaOutOfRange{SenseKey::kIllegalRequest, 0x21, 0x00};
inline constexpr SenseCode kInvalidFieldInCdb{SenseKey::kIllegalRequest, 0x24, 0x00};
inline constexpr SenseCode kLunNotSupported{SenseKey::kIllegalRequest, 0x25, 0x00};
inline constexpr SenseCode kInvalidFieldInParameters{SenseKey::kIllegalRequest, 0x26, 0x00};
inline constexpr SenseCode kInvalidRelease{SenseKey::kIllegalRequest, 0x26, 0x04};
inline constexpr SenseCode kTooManyTargetDescriptors{SenseKey::kIllegalRequest, 0x26, 0x06};
inline constexpr SenseCode kUnsupportedTargetDescriptor{SenseKey::kIllegalRequest, 0x26, 0x07};
inline constexpr SenseCode kTooManySegmentDescriptors{SenseKey::kIllegalRequest, 0x26, 0x08};
inline constexpr SenseCode kUnsupportedSegmentDescriptor{SenseKey::kIllegalRequest, 0x26, 0x09};
inline constexpr SenseCode kWriteProtected{SenseKey::kDataProtect, 0x27, 0x00};
inline constexpr SenseCode kSpaceAllocationFailed{SenseKey::kDataProtect, 0x27, 0x07};
inline constexpr SenseCode kSavingNotSupported{SenseKey::kIllegalRequest, 0x39, 0x00};
inline constexpr SenseCode kInternalTargetFailure{SenseKey::kHardwareError, 0x44, 0x00};
inline constexpr SenseCode kInsufficientRegistrations{SenseKey::kIllegalRequest, 0x55, 0x04};
inline constexpr SenseCode kCopyAborted{SenseKey::kCopyAborted, 0x00, 0x00};
inline constexpr SenseCode kCopyTargetNotReachable{SenseKey::kCopyAborted, 0x0d, 0x02};
}  // namespace sense

// Which byte, and where it says so which bit, was wrong (SPC-5 4.4.2.4.2).
struct FieldPointer {
  bool in_cdb = true;
  std::uint16_t byte = 0;
  std::optional<std::uint8_t> bit;
};

struct SenseData {
  SenseCode code;
  std::optional<std::uint64_t> information;
  std::optional<FieldPointer> field;
};

// Fixed (70h) or descriptor (72h) format. Information that does not fit the fixed format's 32 bits is left out there.
// Returns the length; `out` has at least kMaxSenseBytes.
std::size_t encode_sense(const SenseData& data, bool descriptor_format, std::span<std::uint8_t> out);

SenseCode to_sense(UnitAttention attention);
// For everything but kOk.
SenseCode to_sense(bdev::IoStatus status, bdev::IoOp op);

}  // namespace pollux::scsi
