#pragma once
// Bounds that both devices announce to their guests.

#include <cstdint>

namespace pollux::vhost {

// Data segments of one request: with header and status it fits a chain of 128.
inline constexpr std::uint32_t kMaxSegments = 126;
// What of one blk request goes to the device at a time. Guests have no bound announced to them, and some read gigabytes
// with one request; larger than what any of them asks for by itself.
inline constexpr std::uint32_t kStepBytes = 2 << 20;
// Data pieces that fit the memory of a request; more need an array of the reactor's pool.
inline constexpr std::uint32_t kInlinePieces = 8;

}  // namespace pollux::vhost
