#pragma once
// FrontEnd: the other end of a vhost-user socket, as QEMU is: it shares guest memory, describes rings, starts and stops
// them, and can lose and find its back end again. Every message can also be sent raw, for tests that misbehave.
//
// Errors are exceptions (std::runtime_error): this is a test's tool. A back end that does not answer within the
// deadline is an error.

#include <sys/socket.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "initiator/driver_ring.h"
#include "initiator/guest_ram.h"

namespace pollux::initiator {

struct Reply {
  std::uint32_t request = 0;
  std::vector<std::byte> payload;
  int fd = -1;
};

// A connection that knows nothing but framing.
class Wire {
 public:
  // Retries until the deadline while nobody listens.
  static std::unique_ptr<Wire> connect(const std::string& socket_path, unsigned deadline_ms = 10000);
  ~Wire();

  void send(std::uint32_t request, std::span<const std::byte> payload, std::span<const int> fds = {},
            std::uint32_t flags = 1);
  // Any bytes, message or not.
  void send_bytes(std::span<const std::byte> bytes, std::span<const int> fds = {});
  Reply receive();
  // True when the back end closes the connection before the deadline; messages that arrive meanwhile are discarded.
  bool closed_by_peer(unsigned deadline_ms = 10000);
  int fd() const { return fd_; }

  template <typename T>
  static std::span<const std::byte> bytes_of(const T& value) {
    return std::as_bytes(std::span(&value, 1));
  }

 private:
  explicit Wire(int fd) : fd_(fd) {}
  int fd_;
};

struct FrontEndOptions {
  std::string socket_path;
  // Virtqueues, and the entries of each.
  std::uint16_t queues = 2;
  RingOptions ring;
  // Feature bits to take if they are offered, beside those that the ring options need.
  std::uint64_t features = 0;
  bool inflight = false;
  bool reply_ack = true;
  // As a driver of the field does it: SET_VRING_ENABLE before addresses.
  bool enable_first = false;
  std::uint64_t ram_bytes = 32 << 20;
  unsigned ram_regions = 1;
};

class FrontEnd {
 public:
  explicit FrontEnd(const FrontEndOptions& options);
  ~FrontEnd();
  FrontEnd(const FrontEnd&) = delete;
  FrontEnd& operator=(const FrontEnd&) = delete;

  // Connects, negotiates, shares memory and starts all queues; or only the given one.
  void start(std::optional<std::uint16_t> only = std::nullopt);
  // GET_VRING_BASE for each; returns when the back end has finished what it had.
  void stop();
  // Starts all queues again where stop() left them, on the same connection: a guest was paused and goes on.
  void resume();
  // Drops the connection without a word.
  void disconnect();
  // The same for good: the rings, whose memory may be gone, are not looked at any more.
  void abandon();
  // Connects again, to the same or another process, and goes on with the rings where it took them to be when it lost
  // its back end.
  void reconnect();
  // True when the back end has closed the connection before the deadline. Takes down how far the rings are then.
  bool wait_lost(int deadline_ms);
  // Takes down how far the rings are as a front end does that finds its back end gone and cannot ask it: QEMU takes
  // used->idx of that moment, whatever is answered later.
  void note_positions();

  DriverRing& ring(std::uint16_t index) { return *queues_.at(index).ring; }
  GuestRam& ram() { return ram_; }
  Wire& wire() { return *wire_; }
  std::uint64_t offered() const { return offered_; }
  std::uint64_t offered_protocol() const { return offered_protocol_; }
  std::uint64_t features() const { return features_; }
  std::uint16_t queues() const { return options_.queues; }

  void kick(std::uint16_t index);
  // Waits for an interrupt; false after the deadline.
  bool wait_call(std::uint16_t index, int deadline_ms);
  // Interrupts since the last look or wait.
  std::uint64_t take_calls(std::uint16_t index);
  // Waits for a message on the back-end channel and returns its request number; nothing after the deadline.
  std::optional<std::uint32_t> wait_backend_message(int deadline_ms);

  std::vector<std::byte> config(std::uint32_t offset, std::uint32_t size);
  void set_config(std::uint32_t offset, std::span<const std::byte> bytes);
  void set_features(std::uint64_t features);
  void set_mem_table();
  void set_ring_addresses(std::uint16_t index, std::uint32_t flags);
  std::uint32_t get_vring_base(std::uint16_t index);

  // Sends, and waits for the acknowledgement where there is one.
  template <typename T>
  void request(VhostUserRequest kind, const T& payload, std::span<const int> fds = {}) {
    request_bytes(kind, Wire::bytes_of(payload), fds);
  }
  void request_bytes(VhostUserRequest kind, std::span<const std::byte> payload, std::span<const int> fds = {});
  std::uint64_t get_u64(VhostUserRequest kind);
  int inflight_fd() const { return inflight_fd_; }

 private:
  struct Queue {
    std::unique_ptr<DriverRing> ring;
    int kick = -1;
    int call = -1;
    // As of the loss of the back end, until the queue starts again.
    std::optional<std::uint32_t> noted_base;
  };
  void negotiate();
  void share_inflight();
  void start_queue(std::uint16_t index);

  FrontEndOptions options_;
  GuestRam ram_;
  std::vector<Queue> queues_;
  std::unique_ptr<Wire> wire_;
  std::uint64_t offered_ = 0;
  std::uint64_t offered_protocol_ = 0;
  std::uint64_t features_ = 0;
  std::uint64_t protocol_ = 0;
  int backend_channel_[2] = {-1, -1};
  int inflight_fd_ = -1;
  Inflight inflight_{};
  std::optional<std::uint16_t> only_;
};

}  // namespace pollux::initiator
