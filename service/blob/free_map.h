#pragma once
// FreeMap: which clusters are free, a bit each, with a bit for each 64 of those that says whether one is: a search in a
// full pool looks at the 4096th part of it at most. Grows without copying. Home reactor only.

#include <bit>
#include <cassert>
#include <cstdint>

#include "base/growing_array.h"
#include "base/units.h"
#include "blob/format.h"

namespace pollux::blob {

class FreeMap {
 public:
  FreeMap() = default;
  explicit FreeMap(std::uint32_t clusters) { grow(clusters); }

  void grow(std::uint32_t clusters) {
    words_.grow(div_ceil<std::size_t>(clusters, 64));
    some_.grow(div_ceil<std::size_t>(words_.size(), 64));
  }
  bool has(ClusterNo cluster) const { return ((words_[cluster / 64] >> (cluster % 64)) & 1) != 0; }
  void add(ClusterNo cluster) {
    words_[cluster / 64] |= 1ULL << (cluster % 64);
    some_[cluster / 4096] |= 1ULL << (cluster / 64 % 64);
    ++count_;
  }
  void remove(ClusterNo cluster) {
    std::uint64_t& word = words_[cluster / 64];
    word &= ~(1ULL << (cluster % 64));
    if (word == 0) some_[cluster / 4096] &= ~(1ULL << (cluster / 64 % 64));
    --count_;
  }
  std::uint32_t count() const { return count_; }
  // The first free cluster of the first word from `word` on, round the end, that has one. Precondition: count() > 0.
  ClusterNo find(std::size_t word) const {
    assert(count_ > 0);
    std::size_t at = word / 64;
    // Of the first group what lies before `word` comes last.
    std::uint64_t group = some_[at] & (~0ULL << (word % 64));
    while (group == 0) {
      at = at + 1 == some_.size() ? 0 : at + 1;
      group = some_[at];
    }
    const std::size_t found = at * 64 + static_cast<std::size_t>(std::countr_zero(group));
    return static_cast<ClusterNo>(found * 64 + static_cast<std::size_t>(std::countr_zero(words_[found])));
  }
  // Of 64 clusters each.
  std::uint64_t word(std::size_t index) const { return index < words_.size() ? words_[index] : 0; }
  std::size_t words() const { return words_.size(); }

 private:
  GrowingArray<std::uint64_t> words_;
  GrowingArray<std::uint64_t> some_;
  std::uint32_t count_ = 0;
};

}  // namespace pollux::blob
