#include "base/uuid.h"

#include <uuid/uuid.h>

#include <cstring>

namespace pollux {

namespace {
constexpr std::size_t kTextLength = 36;
}

Uuid Uuid::random() {
  Uuid id;
  uuid_generate_random(id.bytes.data());
  return id;
}

Result<Uuid> Uuid::parse(std::string_view text) {
  char terminated[kTextLength + 1] = {};
  Uuid id;
  if (text.size() == kTextLength) {
    std::memcpy(terminated, text.data(), kTextLength);
    if (uuid_parse(terminated, id.bytes.data()) == 0) return id;
  }
  return fail(ErrorCode::kInvalid, "'" + std::string(text.substr(0, 64)) +
                                       "' is not a UUID (expected xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx)");
}

std::string Uuid::to_string() const {
  char text[kTextLength + 1];
  uuid_unparse_lower(bytes.data(), text);
  return text;
}

}  // namespace pollux

std::size_t std::hash<pollux::Uuid>::operator()(const pollux::Uuid& id) const noexcept {
  std::uint64_t halves[2];
  std::memcpy(halves, id.bytes.data(), sizeof(halves));
  return halves[0] ^ (halves[1] * 0x9e3779b97f4a7c15ULL);
}
