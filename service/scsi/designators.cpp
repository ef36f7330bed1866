#include "scsi/designators.h"

#include <algorithm>

namespace pollux::scsi {

std::array<std::uint8_t, 8> naa_designator(const Uuid& uuid) {
  std::array<std::uint8_t, 8> naa;
  for (std::size_t i = 0; i < naa.size(); ++i) naa[i] = uuid.bytes[i] ^ uuid.bytes[i + 8];
  naa[0] = 0x30 | (naa[0] & 0x0f);
  return naa;
}

std::array<std::uint8_t, 18> uuid_designator(const Uuid& uuid) {
  std::array<std::uint8_t, 18> designator{};
  designator[0] = 0x10;  // an RFC 4122 UUID follows
  std::copy(uuid.bytes.begin(), uuid.bytes.end(), designator.begin() + 2);
  return designator;
}

bool names(const LogicalUnit& unit, const Designator& designator) {
  if (designator.code_set != 1 || designator.association != 0) return false;
  const Uuid& uuid = unit.options().uuid;
  switch (designator.type) {
    case kNaaDesignator:
      return std::ranges::equal(designator.bytes, naa_designator(uuid));
    case kUuidDesignator:
      return std::ranges::equal(designator.bytes, uuid_designator(uuid));
    default:
      return false;
  }
}

}  // namespace pollux::scsi
