#pragma once
// What virtqueues look like in memory: VIRTIO 1.2 2.7 (split) and 2.8 (packed). All fields are little-endian, as is
// every host we run on.

#include <atomic>
#include <bit>
#include <cstdint>

namespace pollux::virtio {

static_assert(std::endian::native == std::endian::little);

inline constexpr std::uint16_t kMaxQueueSize = 1024;

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

// Shared memory changes under our hands: each field is fetched exactly once, by one of these, and the copy is what gets
// validated.
template <typename T>
T load_once(const T* field) {
  return __atomic_load_n(field, __ATOMIC_RELAXED);
}
template <typename T>
T load_acquire(const T* field) {
  return __atomic_load_n(field, __ATOMIC_ACQUIRE);
}
template <typename T>
void store_relaxed(T* field, T value) {
  __atomic_store_n(field, value, __ATOMIC_RELAXED);
}
template <typename T>
void store_release(T* field, T value) {
  __atomic_store_n(field, value, __ATOMIC_RELEASE);
}

// Copies one 16-byte descriptor with two loads; the halves may be of different times, which is the guest's own doing.
template <typename Desc>
Desc load_desc(const Desc* desc) {
  static_assert(sizeof(Desc) == 16);
  const auto* words = reinterpret_cast<const std::uint64_t*>(desc);
  struct Words {
    std::uint64_t low, high;
  };
  return std::bit_cast<Desc>(Words{load_once(words), load_once(words + 1)});
}

}  // namespace pollux::virtio
