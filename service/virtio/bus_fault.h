#pragma once
// What happens when a front end truncates the file behind its guest's memory: every touch of a page past the new end
// raises SIGBUS in the thread that touches it, and the default action would end the process for all guests.
//
// Each mapping of guest memory is announced here. The handler finds the mapping that the faulting address belongs to,
// puts private zero pages over the whole of it and marks it lost; the interrupted instruction then goes on. Queues look
// at the mark and stop. A fault outside of every announced mapping is a fault of other code and keeps its default
// action.

#include <atomic>
#include <cstddef>

namespace pollux::virtio {

class BusFaultGuard {
 public:
  // Announces [base, base + length). Any thread but a reactor. `lost` must outlive the guard.
  BusFaultGuard(void* base, std::size_t length, std::atomic<bool>& lost);
  ~BusFaultGuard();
  BusFaultGuard(const BusFaultGuard&) = delete;
  BusFaultGuard& operator=(const BusFaultGuard&) = delete;

  // False when the table of mappings is full: the mapping must then not be used.
  bool active() const { return slot_ >= 0; }

 private:
  int slot_ = -1;
};

}  // namespace pollux::virtio
