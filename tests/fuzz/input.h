#pragma once
// What all fuzz targets share: reading an input piece by piece, and stopping when a promise is broken.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace pollux::fuzz {

// Unlike assert(), in every build.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

// What is missing at the end reads as zeros.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : at_(data), left_(size) {}
  bool empty() const { return left_ == 0; }
  std::size_t left() const { return left_; }
  std::uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *at_++;
  }
  std::uint16_t word() {
    const auto high = static_cast<std::uint16_t>(byte() << 8);
    return high | byte();
  }
  // Copies up to `wanted` bytes; returns how many there were.
  std::size_t bytes(void* to, std::size_t wanted) {
    const std::size_t count = std::min(wanted, left_);
    std::copy_n(at_, count, static_cast<std::uint8_t*>(to));
    at_ += count;
    left_ -= count;
    return count;
  }

 private:
  const std::uint8_t* at_;
  std::size_t left_;
};

}  // namespace pollux::fuzz
