#pragma once
// What virtqueues look like in memory: VIRTIO 1.2 2.7 (split) and 2.8 (packed). All fields are little-endian, as is
// every host we run on.

#include <bit>
#include <cstdint>

namespace pollux::protocol {

static_assert(std::endian::native == std::endian::little);

// Descriptor flags of both formats.
inline constexpr std::uint16_t kDescNext = 1;
inline constexpr std::uint16_t kDescWrite = 2;
inline constexpr std::uint16_t kDescIndirect = 4;
// Packed only.
inline constexpr std::uint16_t kDescAvail = 1 << 7;
inline constexpr std::uint16_t kDescUsed = 1 << 15;

struct SplitDesc {
  std::uint64_t addr;
  std::uint32_t len;
  std::uint16_t flags;
  std::uint16_t next;
};
static_assert(sizeof(SplitDesc) == 16);

// The available ring: flags, idx, ring[size], used_event. The used ring: flags, idx, UsedElem[size], avail_event.
inline constexpr std::uint16_t kAvailNoInterrupt = 1;
inline constexpr std::uint16_t kUsedNoNotify = 1;

struct UsedElem {
  std::uint32_t id;
  std::uint32_t len;
};
static_assert(sizeof(UsedElem) == 8);

struct PackedDesc {
  std::uint64_t addr;
  std::uint32_t len;
  std::uint16_t id;
  std::uint16_t flags;
};
static_assert(sizeof(PackedDesc) == 16);

// Event suppression areas of the packed ring (2.8.14).
struct PackedEvent {
  std::uint16_t offset_wrap;
  std::uint16_t flags;
};
static_assert(sizeof(PackedEvent) == 4);
inline constexpr std::uint16_t kPackedEventEnable = 0;
inline constexpr std::uint16_t kPackedEventDisable = 1;
inline constexpr std::uint16_t kPackedEventDesc = 2;

constexpr std::uint64_t split_desc_bytes(std::uint64_t size) {
  return 16 * size;
}
constexpr std::uint64_t split_avail_bytes(std::uint64_t size) {
  return 6 + 2 * size;
}
constexpr std::uint64_t split_used_bytes(std::uint64_t size) {
  return 6 + 8 * size;
}

}  // namespace pollux::protocol
