#pragma once
// Scratch memory of one reactor, for commands that cannot work on the guest's buffers alone: VERIFY, COMPARE AND WRITE,
// WRITE SAME, parameter lists that outlive a step.
//
// A fixed number of buffers, made when the reactor opens its first LunChannel and shared by all of them. A task holds
// at most one and never waits for anything but the device while it holds it, so waiting for one ends.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "scsi/task.h"

namespace pollux::reactor {
class Reactor;
}

namespace pollux::scsi {

inline constexpr std::size_t kScratchBytes = 64 * 1024;
inline constexpr std::size_t kScratchBuffers = 16;

class alignas(4096) ScratchBuffer {
 public:
  std::uint8_t* data() { return bytes_.data(); }

 private:
  std::array<std::uint8_t, kScratchBytes> bytes_;
};

// All calls but of() on the reactor.
class ScratchPool {
 public:
  // The reactor's own; kept while somebody holds it. Any thread.
  static std::shared_ptr<ScratchPool> of(reactor::Reactor& reactor);
  ScratchPool();

  // Sets task.work.scratch and calls `then`, now or when a buffer is free again.
  void acquire(Task& task, void (*then)(LunChannel&, Task&));
  // Gives task.work.scratch back, if there is one.
  void release(Task& task);

 private:
  void serve_waiting();

  std::vector<std::unique_ptr<ScratchBuffer>> buffers_;
  std::vector<ScratchBuffer*> free_;
  Task* first_waiting_ = nullptr;
  Task* last_waiting_ = nullptr;
  bool serving_ = false;
};

}  // namespace pollux::scsi
