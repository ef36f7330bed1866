#include "scsi/transport_id.h"

#include <algorithm>
#include <cstring>

#include "base/units.h"
#include "scsi/bytes.h"

namespace pollux::scsi {

namespace {

constexpr std::uint8_t kIscsiName = 0x05;
constexpr char kPrefix[] = "iqn.2026-01.invalid.pollux:";
constexpr std::size_t kHeaderBytes = 4;
constexpr std::size_t kMinNameBytes = 20;

}  // namespace

std::vector<std::uint8_t> encode_transport_id(const std::string& initiator) {
  const std::string name = kPrefix + initiator;
  // Null-terminated, padded to a multiple of four.
  const std::size_t padded = std::max(kMinNameBytes, align_up<std::size_t>(name.size() + 1, 4));
  std::vector<std::uint8_t> bytes(kHeaderBytes + padded);
  bytes[0] = kIscsiName;
  put_be16(bytes.data() + 2, static_cast<std::uint16_t>(padded));
  std::memcpy(bytes.data() + kHeaderBytes, name.data(), name.size());
  return bytes;
}

std::optional<std::string> decode_transport_id(std::span<const std::uint8_t> bytes) {
  if (bytes.size() < kHeaderBytes || bytes[0] != kIscsiName) return std::nullopt;
  const std::size_t length = get_be16(bytes.data() + 2);
  if (length > bytes.size() - kHeaderBytes) return std::nullopt;
  const auto name = bytes.subspan(kHeaderBytes, length);
  const auto end = std::find(name.begin(), name.end(), std::uint8_t{0});
  if (end == name.end()) return std::nullopt;
  const std::string text(name.begin(), end);
  const std::size_t prefix = std::strlen(kPrefix);
  if (text.size() <= prefix || text.compare(0, prefix, kPrefix) != 0) return std::nullopt;
  return text.substr(prefix);
}

}  // namespace pollux::scsi
