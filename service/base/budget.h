#pragma once
// Budget: how much one tenant may hold of something that many tenants share, so that none of them can take it all.
//
// A tenant has a part of its own, which no other can take: it can always go on, whatever the others do. Beyond its
// own it takes from a common rest, of which it may hold less than twice what is left: alone it gets two thirds, two
// that want all get two fifths each, and something is left for the next however many they are. No tenant has to be told
// when another comes.
//
// A budget counts and keeps nothing. What it counts (buffers, bytes) is up to its user. Not thread-safe.

#include <algorithm>
#include <cassert>
#include <cstdint>

namespace pollux {

class Commons {
 public:
  explicit Commons(std::int64_t units) : left_(units) {}
  // Below zero when tenants took more than there is, which those that hold nothing may.
  std::int64_t left() const { return left_; }

 private:
  friend class Budget;
  std::int64_t left_;
};

class Budget {
 public:
  Budget(Commons& commons, std::int64_t own) : commons_(commons), own_(own) {}
  ~Budget() { assert(held_ == 0); }
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  // Whether the tenant may take more. Always, when it holds less than its own or nothing at all.
  bool open() const { return held_ < own_ || held_ == 0 || held_ - own_ < 2 * commons_.left_; }
  // Precondition: open(). One request may be larger than what is left: the tenant is not open again until that has come
  // back.
  void take(std::int64_t units) {
    held_ += units;
    if (held_ > own_) [[unlikely]]
      commons_.left_ -= std::min(held_ - own_, units);
  }
  void give(std::int64_t units) {
    assert(units <= held_);
    if (held_ > own_) [[unlikely]]
      commons_.left_ += std::min(held_ - own_, units);
    held_ -= units;
  }
  std::int64_t held() const { return held_; }

 private:
  Commons& commons_;
  const std::int64_t own_;
  std::int64_t held_ = 0;
};

}  // namespace pollux
