#pragma once
// Histogram: how long things took, in nanoseconds or cycles, exact to 3 %. Adding is a handful of instructions, so
// every request of a benchmark is counted and not a sample of them.

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

namespace pollux::initiator {

class Histogram {
 public:
  void add(std::uint64_t value) {
    ++counts_[index(value)];
    ++total_;
    sum_ += value;
    max_ = std::max(max_, value);
  }
  std::uint64_t total() const { return total_; }
  double mean() const { return total_ == 0 ? 0 : static_cast<double>(sum_) / static_cast<double>(total_); }
  std::uint64_t max() const { return max_; }

  // The upper bound of the bucket in which this part (0 to 1) of all values is reached; 0 when there are none.
  double at(double part) const {
    const auto wanted = static_cast<std::uint64_t>(part * static_cast<double>(total_));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      if (counts_[i] != 0 && seen > wanted) return static_cast<double>(std::min(upper(i), max_));
    }
    return static_cast<double>(max_);
  }

 private:
  // Values below 2^kBits have a bucket each, larger ones 2^kBits buckets an octave.
  static constexpr unsigned kBits = 5;
  static constexpr std::size_t kPerOctave = std::size_t{1} << kBits;

  static std::size_t index(std::uint64_t value) {
    if (value < kPerOctave) return value;
    const unsigned shift = static_cast<unsigned>(std::bit_width(value)) - kBits - 1;
    return (std::size_t{shift} << kBits) + (value >> shift);
  }
  static std::uint64_t upper(std::size_t bucket) {
    if (bucket < 2 * kPerOctave) return bucket;
    const std::size_t shift = (bucket >> kBits) - 1;
    return ((bucket - (shift << kBits) + 1) << shift) - 1;
  }

  std::array<std::uint64_t, (64 - kBits + 1) * kPerOctave> counts_{};
  std::uint64_t total_ = 0;
  std::uint64_t sum_ = 0;
  std::uint64_t max_ = 0;
};

}  // namespace pollux::initiator
