#pragma once
// TimerHeap: the running timers of a reactor, the one that is due first in front. A binary heap whose entries know their
// place in it: starting, cancelling and firing one of n takes log n steps, and no memory once as many have run before.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace pollux::reactor {

// Entry: has due_ns_ and place_, which is the heap's.
template <typename Entry>
class TimerHeap {
 public:
  bool empty() const { return entries_.empty(); }
  // Precondition: !empty().
  Entry& first() const { return *entries_.front(); }
  void add(Entry& entry) {
    entries_.push_back(&entry);
    rise(entries_.size() - 1);
  }
  void remove(Entry& entry) {
    const std::size_t place = entry.place_;
    Entry* const last = entries_.back();
    entries_.pop_back();
    if (last == &entry) return;
    entries_[place] = last;
    last->place_ = place;
    sink(place);
    rise(last->place_);
  }

 private:
  void rise(std::size_t at) {
    Entry* const entry = entries_[at];
    for (; at > 0 && entry->due_ns_ < entries_[(at - 1) / 2]->due_ns_; at = (at - 1) / 2) {
      put(at, entries_[(at - 1) / 2]);
    }
    put(at, entry);
  }
  void sink(std::size_t at) {
    Entry* const entry = entries_[at];
    for (std::size_t child = 2 * at + 1; child < entries_.size(); child = 2 * at + 1) {
      if (child + 1 < entries_.size() && entries_[child + 1]->due_ns_ < entries_[child]->due_ns_) ++child;
      if (entries_[child]->due_ns_ >= entry->due_ns_) break;
      put(at, entries_[child]);
      at = child;
    }
    put(at, entry);
  }
  void put(std::size_t at, Entry* entry) {
    entries_[at] = entry;
    entry->place_ = at;
  }

  std::vector<Entry*> entries_;
};

}  // namespace pollux::reactor
