#pragma once
// QueuePoller: all virtqueues that one reactor serves, of all guests. Placement spreads the queues over the reactors.

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "reactor/reactor.h"
#include "vhost/vhost_queue.h"

namespace pollux::vhost {

class Device;

// On its reactor, but for construction and destruction.
class QueuePoller final : public reactor::Poller {
 public:
  QueuePoller(reactor::Reactor& reactor, std::unique_ptr<Signaller> signaller)
      : reactor_(reactor), stock_(std::move(signaller)) {}

  // `load`: 0 for a queue that carries no requests of disks (control, events) and is looked at less often. Queues of
  // one device are one tenant.
  Status add(VhostQueue& queue, unsigned load, const Device& device);
  // The queue must have stopped.
  void remove(VhostQueue& queue);

  unsigned poll() override;
  bool arm() override;

  reactor::Reactor& reactor() { return reactor_; }

 private:
  class List {
   public:
    void add(VhostQueue& queue) { queues_.push_back({&queue, {}}); }
    void remove(const VhostQueue& queue);
    // `all`: those too whose word says that nothing is new.
    unsigned poll(bool all);
    bool arm();

   private:
    // A queue and, while nothing is under way in it, the word of its ring that tells whether there is something new:
    // what an idle guest costs the others is one look at that word.
    struct Entry {
      VhostQueue* queue = nullptr;
      virtio::Glance glance;
    };
    std::vector<Entry> queues_;
    // A removal from within poll() leaves a hole, closed at the next turn.
    bool holes_ = false;
  };

  reactor::Reactor& reactor_;
  ReactorStock stock_;
  std::map<const Device*, Tenant> tenants_;
  List hot_;
  List aside_;
  // Turns until all queues are asked, whatever their words say: one that is to stop, or has an event to tell.
  unsigned until_sweep_ = 1;
};

// Which reactor serves which queue: always the one with the fewest that carry requests. Any thread but a reactor.
class Placement {
 public:
  // Errors of Signaller::make().
  static Result<std::unique_ptr<Placement>> make(reactor::ReactorGroup& reactors);
  ~Placement();
  Placement(const Placement&) = delete;
  Placement& operator=(const Placement&) = delete;

  // Reserves a place; give it back with leave(). `load`: 1 for a queue that carries requests, else 0.
  QueuePoller& enter(unsigned load);
  void leave(QueuePoller& poller, unsigned load);
  // Whether a queue would be better off elsewhere: its reactor has two more than another, or worse.
  bool crowded(const QueuePoller& poller) const;
  // Queues that carry requests, by reactor.
  std::vector<unsigned> loads() const;
  // Called, on the thread that removes a queue, when the loads have become uneven. Set before the first queue is added.
  void on_uneven(std::function<void()> tell) { on_uneven_ = std::move(tell); }

  std::size_t size() const { return pollers_.size(); }
  QueuePoller& at(std::size_t index) { return *pollers_.at(index); }

 private:
  Placement() = default;
  std::size_t index_of(const QueuePoller& poller) const;

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<QueuePoller>> pollers_;
  std::vector<unsigned> loads_;
  std::function<void()> on_uneven_;
};

}  // namespace pollux::vhost
