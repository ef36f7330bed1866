#pragma once
// Session: one front end's conversation with one device: features, memory, rings, and the queues that come out of it.
//
// Messages are handled on the connection's thread, completely: when a message is answered, the reactors have done their
// part. Every field is checked here; a message that makes no sense ends the connection, and changes nothing before it
// does. A queue runs while its ring is described, its kick descriptor is there and it is enabled, whatever the order in
// which the front end said so: firmware that uses one queue alone gets that one.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/log_limiter.h"
#include "protocol/vhost_user.h"
#include "vhost/device.h"
#include "vhost/mapped_memory.h"
#include "vhost/queue_poller.h"
#include "vhost/transport.h"
#include "virtio/dirty_log.h"
#include "virtio/guest_memory.h"
#include "virtio/inflight.h"

namespace pollux::vhost {

class Session final : public Connection {
 public:
  // `name` is the socket's, for the log. Device, placement, memory share and limiter must outlive the session's
  // on_close().
  // `predecessors`: sessions that are leaving; no queue of this one starts before theirs have ended.
  Session(std::string name, Device& device, Placement& placement, MemoryShare& memory_share, LogLimiter& limiter,
          std::vector<std::shared_ptr<Session>> predecessors);
  ~Session() override;

  Stage stage() const override { return stage_.load(std::memory_order_relaxed); }
  bool dismiss() override;
  Verdict on_message(Message& message) override;
  void on_hangup() override { leaving_.store(true, std::memory_order_relaxed); }
  void on_close() override;

  // Any thread but a reactor. A front end whose queues do not run does not listen: it is told again when they start.
  void config_changed();
  // Moves queues away from reactors that have too many. One whose requests do not end soon stays, as do all of a
  // session that is busy: whatever it does ends with its queues on the reactors that have the fewest.
  void rebalance();
  struct Totals {
    std::uint32_t active_queues = 0;
    std::uint64_t requests = 0;
    std::uint64_t errors = 0;
  };
  Totals totals() const;
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  // Its front end has hung up, or it is being closed; its queues may still have requests in flight.
  bool leaving() const { return leaving_.load(std::memory_order_relaxed); }

 private:
  struct Vring {
    std::uint16_t size = 0;
    protocol::VringAddr addr{};
    bool has_addr = false;
    std::uint32_t base = 0;
    bool enabled = false;
    // With the queue while that runs.
    QueueFds fds;
    std::unique_ptr<VhostQueue> queue;
    QueuePoller* poller = nullptr;
  };

  // Each: what becomes of the message, or why the connection ends.
  Result<Verdict> handle(Message& message);
  Result<Verdict> get_features(Message& message);
  Result<Verdict> set_features(Message& message);
  Result<Verdict> get_protocol_features(Message& message);
  Result<Verdict> set_protocol_features(Message& message);
  Result<Verdict> get_queue_num(Message& message);
  Result<Verdict> set_backend_req_fd(Message& message);
  Result<Verdict> get_config(Message& message);
  Result<Verdict> set_config(Message& message);
  // session_memory.cpp
  Result<Verdict> set_mem_table(Message& message);
  Result<Verdict> get_max_mem_slots(Message& message);
  Result<Verdict> add_mem_reg(Message& message);
  Result<Verdict> rem_mem_reg(Message& message);
  Result<Verdict> set_log_base(Message& message);
  Result<Verdict> get_inflight_fd(Message& message);
  Result<Verdict> set_inflight_fd(Message& message);
  Status use_memory(std::vector<std::shared_ptr<const virtio::Region>> regions);
  // session_vrings.cpp
  Result<Verdict> set_vring_num(Message& message);
  Result<Verdict> set_vring_addr(Message& message);
  Result<Verdict> set_vring_base(Message& message);
  Result<Verdict> get_vring_base(Message& message);
  Result<Verdict> set_vring_enable(Message& message);
  Result<Verdict> set_vring_fd(Message& message);
  Result<Vring*> vring_at(std::uint64_t index);
  // The ring that a message with a VringState is about.
  Result<Vring*> vring_of(const Message& message, protocol::VringState& state);
  bool ready(const Vring& vring) const;
  Status start_if_ready(std::uint16_t index);
  // From here on its place is its own; false when that went to another already.
  bool serve();
  void await_predecessors();
  void stop(Vring& vring);
  // False: requests have not ended in that time, and the queue goes on.
  bool stop_within(Vring& vring, std::chrono::milliseconds time);
  // What is left to do once the queue has stopped.
  void put_away(Vring& vring);
  bool any_running() const;
  unsigned load_of(const Vring& vring) const;
  // Stops the running queues, lets `change` happen, and starts them again.
  Status change_at_rest(const std::function<Status()>& change);

  // Tells the log what the front end has done wrong.
  void blame(const std::string& what);
  bool negotiated(std::uint64_t feature) const { return (features_ & feature) != 0; }

  const std::string name_;
  Device& device_;
  Placement& placement_;
  MemoryShare& memory_share_;
  LogLimiter& limiter_;

  // Held while a message is handled, which lasts as long as the disk's slowest request.
  mutable std::mutex mutex_;
  std::atomic<Stage> stage_{Stage::kSilent};
  std::atomic<bool> leaving_{false};
  // Its queues have ended.
  std::atomic<bool> closed_{false};
  // Emptied once they have closed.
  std::vector<std::shared_ptr<Session>> predecessors_;
  bool owned_ = false;
  std::uint64_t features_ = 0;
  std::atomic<std::uint64_t> protocol_features_{0};
  std::vector<Vring> vrings_;
  // The configuration space as the front end knows it; empty: it has not asked since it connected.
  std::vector<std::byte> known_config_;
  std::shared_ptr<const virtio::GuestMemory> memory_;
  std::vector<MemoryShare::Lease> memory_leases_;
  std::shared_ptr<virtio::DirtyLog> log_;
  MemoryShare::Lease log_lease_;
  std::shared_ptr<virtio::InflightRegion> inflight_;
  MemoryShare::Lease inflight_lease_;
  UniqueFd inflight_fd_;
  // Of the channel on which the front end is told things, under its own mutex.
  std::mutex channel_mutex_;
  UniqueFd backend_req_;
  // Of queues that have ended.
  std::uint64_t past_requests_ = 0;
  std::uint64_t past_errors_ = 0;
  // The counts as they were last seen: the caller of totals() does not wait for a message that waits for a disk.
  mutable std::mutex known_mutex_;
  mutable Totals known_;
};

}  // namespace pollux::vhost
