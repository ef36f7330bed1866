#pragma once
// The event queue of a scsi controller (VIRTIO 1.2 5.6.6.3): buffers that the guest lends, in which it hears of disks
// that come, go and grow.
//
// Events go from control threads into an inbox on the queue's reactor. Without a buffer they wait there; when too many
// wait, the rest is dropped and the guest is told that it has missed some. What happens while no event queue runs (the
// guest is paused or asleep, its front end has not connected yet) is owed to the next one that starts: that events were
// missed, on which a driver looks for disks that have come and gone, and a capacity change for each disk that has
// grown, for which it does not look.

#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "protocol/virtio_scsi.h"
#include "reactor/reactor.h"
#include "vhost/vhost_queue.h"

namespace pollux::vhost {

// Changes of which only the outcome is told.
struct ScsiEventDebt {
  bool missed = false;
  // At most as many as there are disks.
  std::set<protocol::ScsiLunField> grown;

  bool empty() const { return !missed && grown.empty(); }
  void add(const protocol::ScsiEvent& event);
  void add(ScsiEventDebt other);
};

// On its reactor, but for its address.
struct ScsiEventInbox {
  // Linux lends 8 buffers; a plan for 255 disks attached at once.
  static constexpr std::size_t kMaxWaiting = 256;

  explicit ScsiEventInbox(reactor::Reactor& owner) : reactor(owner) {}
  void add(const protocol::ScsiEvent& event);
  // Precondition: not empty().
  protocol::ScsiEvent pop();
  bool empty() const { return waiting.empty() && debt.empty(); }

  reactor::Reactor& reactor;
  std::deque<protocol::ScsiEvent> waiting;
  ScsiEventDebt debt;
};

// The inboxes of the event queues that are running, one a session, and what is owed while none is.
class ScsiEventInboxes {
 public:
  // The guest may have missed events of an earlier process: what that one had to tell died with it. Before any open().
  void owe_rescan();
  // An event queue starts: it is to tell what is owed.
  std::shared_ptr<ScsiEventInbox> open(reactor::Reactor& reactor);
  // It has stopped: what it has not told is owed again. Any thread but a reactor.
  void close(const std::shared_ptr<ScsiEventInbox>& inbox);
  // Any thread but a reactor. Whether a guest is listening.
  bool any() const;
  // Any thread but a reactor.
  void raise(const protocol::ScsiEvent& event);

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<ScsiEventInbox>> inboxes_;
  // Nothing is owed before the first guest: a driver that starts looks for all disks by itself.
  bool had_guest_ = false;
  ScsiEventDebt owed_;
};

// Made and destroyed on a session's thread.
class ScsiEventQueue final : public VhostQueue {
 public:
  ScsiEventQueue(std::unique_ptr<virtio::Virtqueue> ring, QueueFds fds, ScsiEventInboxes& inboxes,
                 reactor::Reactor& reactor)
      : VhostQueue(std::move(ring), std::move(fds)), inboxes_(inboxes), inbox_(inboxes.open(reactor)) {
    ignore_budget();
    take_on_demand();
  }
  ~ScsiEventQueue() override { inboxes_.close(inbox_); }

 private:
  void accept(const virtio::Chain& chain, virtio::IovecList& pieces) override;
  bool demands_chain() const override { return !inbox_->empty(); }

  ScsiEventInboxes& inboxes_;
  const std::shared_ptr<ScsiEventInbox> inbox_;
};

}  // namespace pollux::vhost
