#include "scsi/sense.h"

#include <algorithm>
#include <cassert>

#include "scsi/bytes.h"

namespace pollux::scsi {

namespace {

// Bytes 15 to 17 of the fixed format; the same three of the descriptor of type 2.
void put_field_pointer(const FieldPointer& field, std::uint8_t* at) {
  at[0] = 0x80 | (field.in_cdb ? 0x40 : 0);
  if (field.bit) at[0] |= 0x08 | (*field.bit & 7);
  put_be16(at + 1, field.byte);
}

std::size_t encode_fixed(const SenseData& data, std::uint8_t* out) {
  out[0] = 0x70;
  out[2] = static_cast<std::uint8_t>(data.code.key);
  if (data.information && *data.information <= UINT32_MAX) {
    out[0] |= 0x80;
    put_be32(out + 3, static_cast<std::uint32_t>(*data.information));
  }
  out[7] = 10;
  out[12] = data.code.asc;
  out[13] = data.code.ascq;
  if (data.field) put_field_pointer(*data.field, out + 15);
  return 18;
}

std::size_t encode_descriptors(const SenseData& data, std::uint8_t* out) {
  out[0] = 0x72;
  out[1] = static_cast<std::uint8_t>(data.code.key);
  out[2] = data.code.asc;
  out[3] = data.code.ascq;
  std::size_t length = 8;
  if (data.information) {
    out[length] = 0x00;
    out[length + 1] = 0x0a;
    out[length + 2] = 0x80;
    put_be64(out + length + 4, *data.information);
    length += 12;
  }
  if (data.field) {
    out[length] = 0x02;
    out[length + 1] = 0x06;
    put_field_pointer(*data.field, out + length + 4);
    length += 8;
  }
  out[7] = static_cast<std::uint8_t>(length - 8);
  return length;
}

}  // namespace

std::size_t encode_sense(const SenseData& data, bool descriptor_format, std::span<std::uint8_t> out) {
  assert(out.size() >= kMaxSenseBytes);
  std::fill(out.begin(), out.end(), std::uint8_t{0});
  return descriptor_format ? encode_descriptors(data, out.data()) : encode_fixed(data, out.data());
}

SenseCode to_sense(UnitAttention attention) {
  constexpr auto kKey = SenseKey::kUnitAttention;
  switch (attention) {
    case UnitAttention::kPowerOn:
      return {kKey, 0x29, 0x00};
    case UnitAttention::kBusDeviceReset:
      return {kKey, 0x29, 0x03};
    case UnitAttention::kNexusLoss:
      return {kKey, 0x29, 0x07};
    case UnitAttention::kReservationsReleased:
      return {kKey, 0x2a, 0x04};
    case UnitAttention::kRegistrationsPreempted:
      return {kKey, 0x2a, 0x05};
    case UnitAttention::kReservationsPreempted:
      return {kKey, 0x2a, 0x03};
    case UnitAttention::kCommandsClearedByAnother:
      return {kKey, 0x2f, 0x00};
    case UnitAttention::kModeParametersChanged:
      return {kKey, 0x2a, 0x01};
    case UnitAttention::kCapacityChanged:
      return {kKey, 0x2a, 0x09};
    case UnitAttention::kReportedLunsChanged:
      return {kKey, 0x3f, 0x0e};
  }
  return {kKey, 0x29, 0x00};
}

SenseCode to_sense(bdev::IoStatus status, bdev::IoOp op) {
  switch (status) {
    case bdev::IoStatus::kOk:
      break;
    case bdev::IoStatus::kIoError:
      // Initiators (Linux) send a command that a write error ended once more. Of a write that brings its data again; a
      // flush may succeed then without what the first lost, and nobody would have heard of it.
      if (op == bdev::IoOp::kFlush) return sense::kInternalTargetFailure;
      return op == bdev::IoOp::kRead ? sense::kUnrecoveredReadError : sense::kWriteError;
    case bdev::IoStatus::kMediumError:
      return sense::kUnrecoveredReadError;
    case bdev::IoStatus::kNoSpace:
      return sense::kSpaceAllocationFailed;
    case bdev::IoStatus::kInvalid:
      // The range was checked against the size that the device stated: it contradicts itself.
      return sense::kInternalTargetFailure;
    case bdev::IoStatus::kReadOnly:
      return sense::kWriteProtected;
    case bdev::IoStatus::kAborted:
      return {SenseKey::kAbortedCommand, 0x00, 0x00};
    case bdev::IoStatus::kPathLost:
      // As for an error of the device: no flush is made to be sent again.
      return op == bdev::IoOp::kFlush ? sense::kInternalTargetFailure : sense::kBecomingReady;
  }
  return sense::kNone;
}

}  // namespace pollux::scsi
