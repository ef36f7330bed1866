#pragma once
// Big-endian fields, as every CDB, parameter list and page has them.

#include <cstdint>

namespace pollux::scsi {

inline std::uint16_t get_be16(const std::uint8_t* at) {
  return static_cast<std::uint16_t>(at[0] << 8 | at[1]);
}
inline std::uint32_t get_be24(const std::uint8_t* at) {
  return static_cast<std::uint32_t>(at[0]) << 16 | get_be16(at + 1);
}
inline std::uint32_t get_be32(const std::uint8_t* at) {
  return static_cast<std::uint32_t>(get_be16(at)) << 16 | get_be16(at + 2);
}
inline std::uint64_t get_be64(const std::uint8_t* at) {
  return static_cast<std::uint64_t>(get_be32(at)) << 32 | get_be32(at + 4);
}
inline void put_be16(std::uint8_t* at, std::uint16_t value) {
  at[0] = static_cast<std::uint8_t>(value >> 8);
  at[1] = static_cast<std::uint8_t>(value);
}
inline void put_be32(std::uint8_t* at, std::uint32_t value) {
  put_be16(at, static_cast<std::uint16_t>(value >> 16));
  put_be16(at + 2, static_cast<std::uint16_t>(value));
}
inline void put_be64(std::uint8_t* at, std::uint64_t value) {
  put_be32(at, static_cast<std::uint32_t>(value >> 32));
  put_be32(at + 4, static_cast<std::uint32_t>(value));
}

}  // namespace pollux::scsi
