#pragma once
// The event queue of a scsi controller (VIRTIO 1.2 5.6.6.3): buffers that the guest lends, in which it hears of disks
// that come, go and grow.
//
// Events go from control threads into an inbox on the queue's reactor. Without a buffer they wait there; when too many
// wait, the rest is dropped and the guest is told that it has missed some.

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "reactor/reactor.h"
#include "vhost/scsi_protocol.h"
#include "vhost/vhost_queue.h"

namespace pollux::vhost {

// On its reactor, but for its address.
struct ScsiEventInbox {
  // Linux lends 8 buffers; a plan for 255 disks attached at once.
  static constexpr std::size_t kMaxWaiting = 256;

  explicit ScsiEventInbox(reactor::Reactor& owner) : reactor(owner) {}
  reactor::Reactor& reactor;
  std::deque<ScsiEvent> waiting;
  bool missed = false;
};

// The inboxes of the event queues that are running: one a session.
class ScsiEventInboxes {
 public:
  std::shared_ptr<ScsiEventInbox> open(reactor::Reactor& reactor);
  // Any thread but a reactor. Whether a guest is listening.
  bool any() const;
  // Any thread but a reactor.
  void raise(const ScsiEvent& event);

 private:
  mutable std::mutex mutex_;
  std::vector<std::weak_ptr<ScsiEventInbox>> inboxes_;
};

class ScsiEventQueue final : public VhostQueue {
 public:
  ScsiEventQueue(std::unique_ptr<virtio::Virtqueue> ring, QueueFds fds, std::shared_ptr<ScsiEventInbox> inbox)
      : VhostQueue(std::move(ring), std::move(fds)), inbox_(std::move(inbox)) {}

 private:
  void take(const virtio::Chain& chain, virtio::IovecList& pieces) override;
  bool wants_chain() const override { return !inbox_->waiting.empty() || inbox_->missed; }

  const std::shared_ptr<ScsiEventInbox> inbox_;
};

}  // namespace pollux::vhost
