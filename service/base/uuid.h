#pragma once
// Uuid: the identity of pools, volumes, attachments and jobs (RFC 4122), 16 bytes in network order, so that it can be
// written to disk as it is and compared with memcmp.

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace pollux {

struct Uuid {
  std::array<std::uint8_t, 16> bytes{};

  // A random (version 4) UUID.
  static Uuid random();
  // Accepts the canonical 36-character form in either case; anything else is kInvalid.
  static Result<Uuid> parse(std::string_view text);

  // Canonical lower-case text.
  std::string to_string() const;
  bool is_nil() const { return *this == Uuid{}; }

  auto operator<=>(const Uuid&) const = default;
};

}  // namespace pollux

template <>
struct std::hash<pollux::Uuid> {
  std::size_t operator()(const pollux::Uuid& id) const noexcept;
};
