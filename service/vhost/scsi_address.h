#pragma once
// How virtio-scsi addresses a logical unit (VIRTIO 1.2 5.6.6.1).

#include <cstdint>
#include <cstring>
#include <optional>

#include "protocol/virtio_scsi.h"

namespace pollux::vhost {

// The first byte is 1, the second the target, and two bytes of a single level LUN follow.
struct ScsiAddress {
  std::uint8_t target = 0;
  std::uint16_t lun = 0;
  // The REPORT LUNS well-known logical unit of the target.
  bool well_known = false;
};

// Nothing for an address that no logical unit can have.
inline std::optional<ScsiAddress> decode_lun(const protocol::ScsiLunField& field) {
  std::uint64_t word = 0;
  std::memcpy(&word, field.data(), sizeof(word));
  if ((word & 0xffffffff'000000ff) != 1) return std::nullopt;
  if (field[2] == 0xc1) return field[3] == 0x01 ? std::optional(ScsiAddress{field[1], 0, true}) : std::nullopt;
  // SAM-5 4.7.7: peripheral device addressing on bus 0, or flat space addressing.
  const unsigned method = field[2] >> 6;
  if (method == 0 && field[2] == 0) return ScsiAddress{field[1], field[3], false};
  if (method == 1) return ScsiAddress{field[1], static_cast<std::uint16_t>((field[2] & 0x3f) << 8 | field[3]), false};
  return std::nullopt;
}

// As guests expect it in events: Linux compares it with what REPORT LUNS said, which for LUNs below 256 has peripheral
// device addressing.
inline protocol::ScsiLunField encode_lun(std::uint8_t target, std::uint16_t lun) {
  const auto high = static_cast<std::uint8_t>(lun < 256 ? 0 : 0x40 | lun >> 8);
  return {1, target, high, static_cast<std::uint8_t>(lun & 0xff), 0, 0, 0, 0};
}

}  // namespace pollux::vhost
