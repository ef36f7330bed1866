#pragma once
// Sizes, alignment arithmetic that cannot overflow silently, and the one logical block size guests see by default.

#include <bit>
#include <concepts>
#include <cstdint>

namespace pollux {

inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = 1024 * kKiB;
inline constexpr std::uint64_t kGiB = 1024 * kMiB;
inline constexpr std::uint64_t kTiB = 1024 * kGiB;

// The smallest unit of addressing in the data path: VIRTIO 1.2 5.2 (virtio-blk) counts in it whatever blk_size says.
inline constexpr std::uint32_t kSectorBytes = 512;

template <std::unsigned_integral T>
constexpr T align_down(T value, T alignment) {
  return value - value % alignment;
}
// Precondition: the result fits T.
template <std::unsigned_integral T>
constexpr T align_up(T value, T alignment) {
  return align_down<T>(value + (alignment - 1), alignment);
}
template <std::unsigned_integral T>
constexpr bool is_aligned(T value, T alignment) {
  return value % alignment == 0;
}
template <std::unsigned_integral T>
constexpr T div_ceil(T value, T divisor) {
  return value / divisor + (value % divisor != 0);
}

// True when [offset, offset + length) lies inside [0, size); offset + length is not computed, so it cannot overflow.
constexpr bool range_fits(std::uint64_t offset, std::uint64_t length, std::uint64_t size) {
  return offset <= size && length <= size - offset;
}

}  // namespace pollux
