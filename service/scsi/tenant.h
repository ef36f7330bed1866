#pragma once
// Tenant: one initiator on one reactor, and what its commands may take of what all initiators there share: scratch
// memory and the reactor's time.
//
// A task holds at most one scratch buffer, and holds it while its device has requests of it, however long that lasts.
// So each tenant has a buffer of its own and a bounded part of the others: the tasks of one that has used its part up
// wait for each other, and nobody else waits for them.
//
// A command of many steps whose device answers at once would keep the reactor until it is through; VERIFY of a volume
// that was never written is one. After some steps it goes on in a later turn, one such command of a tenant a turn.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/budget.h"
#include "reactor/reactor.h"
#include "scsi/scratch.h"
#include "scsi/task.h"

namespace pollux::scsi {

class Tenant;

// The buffers of a reactor. All calls there.
class ScratchPool {
 public:
  ScratchPool();

 private:
  friend class Tenant;
  // `count` more, or fewer, of which as many are free.
  void grow(std::size_t count);
  void shrink(std::size_t count);
  // Tenants with tasks that wait get what has come back, in turns.
  void serve_waiting();

  void wait(Tenant& tenant);

  std::vector<std::unique_ptr<ScratchBuffer>> free_;
  std::size_t total_ = 0;
  Commons commons_{kScratchBuffers};
  Tenant* first_waiting_ = nullptr;
  Tenant* last_waiting_ = nullptr;
  bool serving_ = false;
};

// All calls on the reactor.
class Tenant {
 public:
  // The same one for as long as it is referred to.
  static std::shared_ptr<Tenant> of(reactor::Reactor& reactor, const std::string& initiator);
  Tenant(reactor::Reactor& reactor, std::shared_ptr<ScratchPool> scratch);
  ~Tenant();
  Tenant(const Tenant&) = delete;
  Tenant& operator=(const Tenant&) = delete;

  // Sets task.work.scratch and calls `then`, now or when a buffer is free for this tenant.
  void acquire_scratch(Task& task, void (*then)(LunChannel&, Task&));
  // Gives task.work.scratch back, if there is one.
  void release_scratch(Task& task);

  // Calls LunChannel::go_on() in a later turn.
  void go_on_later(Task& task);

 private:
  friend class ScratchPool;
  static constexpr std::int64_t kOwnBuffers = 1;
  // Tasks by Work::queue_next, oldest first.
  struct Queue {
    Task* first = nullptr;
    Task* last = nullptr;
    void push(Task& task);
    Task& pop();
  };
  void take_buffer(Task& task);
  // The first that waits goes on, with a buffer.
  void serve();
  static void run_later(reactor::Message& message);

  reactor::Reactor& reactor_;
  std::shared_ptr<ScratchPool> pool_;
  Budget budget_;
  Queue for_scratch_;
  Tenant* next_waiting_ = nullptr;
  Queue for_turn_;
  // Posted while a task is in for_turn_.
  struct Later : reactor::Message {
    Tenant* tenant = nullptr;
  } later_;
};

}  // namespace pollux::scsi
