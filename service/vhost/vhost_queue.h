#pragma once
// VhostQueue: one virtqueue at work on one reactor: it takes chains, hands them to the device behind it and answers
// them in any order.
//
// Made by a session on its own thread, then attached to a reactor's QueuePoller; from there until stop() has called
// back it belongs to that reactor. Devices derive from it. At most one interrupt a turn, whatever completes.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/memory.h"
#include "base/unique_fd.h"
#include "reactor/reactor.h"
#include "vhost/tenant.h"
#include "virtio/virtqueue.h"

namespace pollux::vhost {

struct QueueCounters {
  std::atomic<std::uint64_t> requests{0};
  std::atomic<std::uint64_t> errors{0};

  // One writer, the reactor.
  static void add(std::atomic<std::uint64_t>& counter, std::uint64_t n = 1) {
    counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
};

// The descriptors through which guest and device wake each other. Call and error may be absent.
struct QueueFds {
  UniqueFd kick;
  SignalFd call;
  SignalFd error;
};

class VhostQueue {
 public:
  VhostQueue(std::unique_ptr<virtio::Virtqueue> ring, QueueFds fds) : ring_(std::move(ring)), fds_(std::move(fds)) {}
  virtual ~VhostQueue() = default;
  VhostQueue(const VhostQueue&) = delete;
  VhostQueue& operator=(const VhostQueue&) = delete;

  // All on the reactor.
  // Begins to take chains. kInternal or kInvalid: the kick descriptor cannot be watched.
  // `tenant`: whose requests these are; as long as the queue runs.
  Status start(reactor::Reactor& reactor, ReactorStock& stock, Tenant& tenant);
  Tenant& tenant() const { return *tenant_; }
  unsigned poll();
  // After a poll() that found nothing: where only a change gives poll() something to do again, but for stop() and for
  // wants_chain(). No word: something is under way.
  virtio::Glance glance() const;
  // Kicks stay on until the queue has something to take.
  bool arm();
  // Takes nothing more; `stopped` is called from a later poll() once nothing is in flight and every answer is shown.
  void stop(std::function<void()> stopped);
  // Takes stop() back; false when the queue has stopped already. The callback is not called any more.
  bool resume();
  void set_call(SignalFd call);
  void set_error(SignalFd error) { fds_.error = std::move(error); }
  QueueFds release_fds() { return std::move(fds_); }

  // After stop() has called back.
  std::uint32_t base() const { return ring_->base(); }
  const char* broken_reason() const { return ring_->broken_reason(); }
  // Any thread.
  const QueueCounters& counters() const { return counters_; }
  bool broken() const { return broken_.load(std::memory_order_relaxed); }

 protected:
  // A chain was popped. The pieces are in the reactor's scratch: keep what is needed. Answer with finish(), now or
  // later.
  virtual void accept(const virtio::Chain& chain, virtio::IovecList& pieces) = 0;
  // Hands on a part of what goes to the device in several turns. Once a turn, after goes_on().
  virtual void go_on() {}
  // The queue is to stop and something is in flight: called until it has ended, each time the reactor polls it.
  virtual void hurry() {}
  // Of a queue that takes its chains on demand: whether one is wanted now; if not, kicks do not wake the reactor.
  virtual bool demands_chain() const { return true; }
  void take_on_demand() { on_demand_ = true; }

  // The memory of one request: a queue has one for each entry of its ring, made with the queue. `Base` is the request
  // of the device behind it.
  template <typename Queue, typename Base>
  struct QueueRequest : Base {
    Queue* queue = nullptr;
    std::uint16_t id = 0;
    std::uint16_t entries = 0;
    bool busy = false;
    // Of the tenant's bytes in flight.
    std::uint32_t held_bytes = 0;
  };
  template <typename Queue, typename Request, typename Callback>
  static void number(Queue& queue, memory::Vector<Request>& requests, Callback on_complete) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      requests[i].queue = &queue;
      requests[i].id = static_cast<std::uint16_t>(i);
      requests[i].complete = on_complete;
    }
  }
  void begin() { ++in_flight_; }
  // The memory for a chain whose request begins; null: its id is in flight already, which breaks the queue.
  // `most_bytes`: what goes to the device at one time.
  template <typename Request>
  Request* begin(memory::Vector<Request>& requests, const virtio::Chain& chain, std::uint32_t most_bytes = UINT32_MAX) {
    Request& request = requests[chain.id];
    if (request.busy) {
      break_queue("a request id that is in flight already");
      return nullptr;
    }
    begin();
    request.busy = true;
    request.entries = chain.entries;
    request.held_bytes =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(chain.readable_bytes + chain.writable_bytes, most_bytes));
    tenant_->take_bytes(request.held_bytes);
    turn_bytes_ += request.held_bytes;
    return &request;
  }
  // Answers a chain whose request began. Its data must be in place.
  void finish(std::uint16_t id, std::uint16_t entries, std::uint32_t written) {
    ring_->push(id, entries, written);
    --in_flight_;
  }
  // The same for one that began with its memory.
  template <typename Request>
  void finish(Request& request, std::uint32_t written) {
    request.busy = false;
    tenant_->give_bytes(request.held_bytes);
    finish(request.id, request.entries, written);
  }
  // From the next turn on go_on() is called, until that is taken back.
  void goes_on(bool more) { goes_on_ = more; }
  void break_queue(const char* reason) { ring_->break_queue(reason); }

  // For a queue whose requests take next to nothing, and which a guest needs to end those that hold its budget.
  void ignore_budget() { ignores_budget_ = true; }

  virtio::Virtqueue& ring() { return *ring_; }
  bool stopping() const { return static_cast<bool>(stopped_); }
  bool wants_chain() const { return !on_demand_ || demands_chain(); }
  bool within_budget() const { return tenant_->open() || ignores_budget_; }

  QueueCounters counters_;

 private:
  bool in_its_turn();
  unsigned accept_batch();
  unsigned accept_ready();
  void publish();
  void signal_call();
  void report_broken();
  unsigned go_on_stopping();

  std::unique_ptr<virtio::Virtqueue> ring_;
  QueueFds fds_;
  ReactorStock* stock_ = nullptr;
  Tenant* tenant_ = nullptr;
  reactor::Reactor* reactor_ = nullptr;
  std::uint32_t in_flight_ = 0;
  // An answer that was shown is to be followed by an interrupt.
  bool want_call_ = false;
  // Of the requests that this turn has begun.
  std::uint64_t turn_bytes_ = 0;
  bool goes_on_ = false;
  bool ignores_budget_ = false;
  bool on_demand_ = false;
  std::function<void()> stopped_;
  std::atomic<bool> broken_{false};
};

}  // namespace pollux::vhost
