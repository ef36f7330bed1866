#pragma once
// How the fields of rings and in-flight regions are read and written: the other side changes them at the same time.

#include <cstddef>
#include <cstdint>

#include "protocol/virtio_ring.h"

namespace pollux::virtio {

inline constexpr std::uint16_t kMaxQueueSize = 1024;

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
  static_assert(sizeof(Desc) == 16 && offsetof(Desc, len) == 8);
  const auto* words = reinterpret_cast<const std::uint64_t*>(desc);
  const std::uint64_t high = load_once(words + 1);
  // Field by field, so that the copy stays in registers; both formats have two fields of 16 bits behind the length.
  return {load_once(words), static_cast<std::uint32_t>(high), static_cast<std::uint16_t>(high >> 32),
          static_cast<std::uint16_t>(high >> 48)};
}

}  // namespace pollux::virtio
