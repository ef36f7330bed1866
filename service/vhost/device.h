#pragma once
// Device: what one socket offers, a blk disk or a scsi controller. Sessions speak vhost-user and bring queues; a device
// knows what its queues mean.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "reactor/reactor.h"
#include "vhost/vhost_queue.h"

namespace pollux::vhost {

class Device {
 public:
  virtual ~Device() = default;

  // The device's own feature bits (below 24), beside the common ones that every session offers.
  virtual std::uint64_t features() const = 0;
  // Virtqueues in all: for scsi with control and event queue.
  virtual std::uint16_t virtqueues() const = 0;
  // Whether requests come by this queue. Those are spread evenly over the reactors; others may be anywhere.
  virtual bool carries_requests(std::uint16_t index) const = 0;
  // The whole configuration space, little-endian.
  virtual std::vector<std::byte> config() const = 0;
  // Whether QEMU asks the back end for it; of some devices it makes the space itself.
  virtual bool config_is_for_qemu() const { return true; }
  // The features that a front end and its guest settled on. While no queue of theirs runs.
  virtual void negotiated(std::uint64_t /*features*/) {}
  // What a guest writes there. What is to outlive the service is durable when this returns; may block until then.
  // kInvalid: the field is not writable; other errors: it stays as it was.
  virtual Status write_config(std::uint32_t offset, std::span<const std::byte> bytes) = 0;
  // A queue of this device for a session, about to be started on the reactor. `features` are those negotiated.
  virtual std::unique_ptr<VhostQueue> make_queue(std::uint16_t index, std::unique_ptr<virtio::Virtqueue> ring,
                                                 QueueFds fds, std::uint64_t features, reactor::Reactor& reactor) = 0;
};

}  // namespace pollux::vhost
