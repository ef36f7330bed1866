#pragma once
// What the tests of hostile guests and front ends share: a guest that verifies its data on another device beside each
// of them and must not lose a request, and ways to misbehave. A bad request fails, a bad ring is given up, a bad
// message ends the connection: nothing else.

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "initiator/service_fixture.h"

namespace pollux::initiator {

inline constexpr std::uint16_t kQueueSize = 64;

inline FrontEndOptions options_for(const std::string& socket) {
  FrontEndOptions options;
  options.socket_path = socket;
  options.ring.size = kQueueSize;
  return options;
}

// The guest that behaves, and that somebody else must not disturb.
class HostileFixture : public ServiceFixture {
 public:
  HostileFixture()
      : socket(blk("bad", ram())), good_socket(blk("good", ram())), good_front_end_(options_for(good_socket)) {
    good_front_end_.start();
    for (std::uint16_t i = 0; i < 2; ++i) {
      loads_.push_back(std::make_unique<QueueLoad>(good_front_end_, disk_, i, i, 2,
                                                   LoadOptions{.length_bytes = 8 << 20, .queue_depth = 4}));
    }
    for (auto& load : loads_) {
      threads_.emplace_back([this, &load] {
        try {
          load->run(stop_);
        } catch (const std::exception& error) {
          failed_ = true;
        }
      });
    }
  }
  ~HostileFixture() {
    // On a busy machine the test may be over before the good guest had its turn.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (requests_of(good_socket) < 1000 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    stop_ = true;
    for (auto& thread : threads_) thread.join();
    BOOST_TEST(!failed_);
    for (auto& load : loads_) {
      const LoadResult result = load->result();
      BOOST_TEST(result.errors == 0u);
      BOOST_TEST(result.requests > 0u);
    }
  }

  // The bad device serves the next front end as if nothing had been. A front end is refused while as many as an
  // endpoint takes have hung up but not ended yet; like QEMU it comes again.
  void check_still_served() {
    FrontEnd front_end(options_for(socket));
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (true) {
      try {
        front_end.start();
        break;
      } catch (const std::exception&) {
        if (std::chrono::steady_clock::now() > deadline) throw;
        front_end.disconnect();
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    }
    IoSlot slot(front_end.ram(), 4096);
    for (std::uint16_t queue = 0; queue < 2; ++queue) {
      BOOST_TEST(run_io(front_end, queue, BlkDisk(), slot, Op::kWrite, 0, 4096) == "");
    }
    front_end.stop();
  }

  std::uint64_t requests_of(const std::string& path) {
    for (const auto& info : service().sessions()) {
      if (info.socket_path == path) return info.requests;
    }
    return 0;
  }
  std::uint64_t errors_of(const std::string& path) {
    for (const auto& info : service().sessions()) {
      if (info.socket_path == path) return info.errors;
    }
    return 0;
  }
  // The first queue has been given up, the second works.
  void check_queue_broken(FrontEnd& front_end) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (errors_of(socket) == 0 && std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    BOOST_TEST(errors_of(socket) > 0u);
    IoSlot slot(front_end.ram(), 4096);
    BOOST_TEST(run_io(front_end, 1, BlkDisk(), slot, Op::kWrite, 0, 4096) == "");
    BOOST_TEST(!front_end.ring(0).take());
    // A request that makes sense comes too late for a broken queue.
    front_end.stop();
    check_still_served();
  }

  const std::string socket;
  const std::string good_socket;

 private:
  const BlkDisk disk_;
  FrontEnd good_front_end_;
  std::vector<std::unique_ptr<QueueLoad>> loads_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};
};

// A driver that writes into its split ring what it likes. Its memory: descriptors, rings and a data page.
class RawRing {
 public:
  explicit RawRing(FrontEnd& front_end) : front_end_(front_end), addresses_(front_end.ring(0).addresses(0)) {
    data = front_end.ram().allocate(16384, 4096);
    table = reinterpret_cast<SplitDesc*>(front_end.ram().allocate(16384, 4096));
  }
  SplitDesc* descs() { return reinterpret_cast<SplitDesc*>(addresses_.desc_user_addr); }
  std::uint64_t guest(const void* pointer) { return front_end_.ram().guest_addr(pointer); }
  void show(std::span<const std::uint16_t> heads) {
    auto* avail = reinterpret_cast<std::uint16_t*>(addresses_.avail_user_addr);
    for (const std::uint16_t head : heads) avail[2 + next_++ % kQueueSize] = head;
    show_index(next_);
  }
  void show_index(std::uint16_t index) {
    auto* avail = reinterpret_cast<std::uint16_t*>(addresses_.avail_user_addr);
    __atomic_store_n(&avail[1], index, __ATOMIC_RELEASE);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    front_end_.kick(0);
  }
  void show_one(std::uint16_t head = 0) { show(std::span(&head, 1)); }
  // Waits for the next answer and returns how many bytes it claims.
  std::uint32_t answer() {
    auto* used = reinterpret_cast<std::uint16_t*>(addresses_.used_user_addr);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (__atomic_load_n(&used[1], __ATOMIC_ACQUIRE) == answered_) {
      if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("no answer");
      std::this_thread::yield();
    }
    return reinterpret_cast<std::uint32_t*>(&used[2])[2 * (answered_++ % kQueueSize) + 1];
  }
  // A read of one sector in descriptors 0, 1 and 2.
  void good_read() {
    const BlkHeader header{kBlkIn, 0, 0};
    std::memcpy(data, &header, sizeof(header));
    data[1024] = std::byte{kNoAnswer};
    descs()[0] = {guest(data), 16, kDescNext, 1};
    descs()[1] = {guest(data + 512), 512, kDescNext | kDescWrite, 2};
    descs()[2] = {guest(data + 1024), 1, kDescWrite, 0};
  }
  int status() const { return std::to_integer<int>(data[1024]); }

  std::byte* data;
  SplitDesc* table;

 private:
  FrontEnd& front_end_;
  VringAddr addresses_;
  std::uint16_t next_ = 0;
  std::uint16_t answered_ = 0;
};

// Writes a ring that is to be given up.
inline void break_ring(HostileFixture& fixture, const std::function<void(FrontEnd&, RawRing&)>& misbehave,
                       bool indirect = false) {
  FrontEndOptions options = options_for(fixture.socket);
  options.ring.indirect = indirect;
  FrontEnd front_end(options);
  front_end.start();
  RawRing ring(front_end);
  ring.good_read();
  misbehave(front_end, ring);
  fixture.check_queue_broken(front_end);
}

// Sends a request that is to fail alone, and one after it that is to succeed.
inline void fail_request(HostileFixture& fixture, const std::function<void(RawRing&)>& misbehave, int status,
                         std::uint32_t written = 1) {
  FrontEnd front_end(options_for(fixture.socket));
  front_end.start();
  RawRing ring(front_end);
  ring.good_read();
  misbehave(ring);
  ring.show_one();
  BOOST_TEST(ring.answer() == written);
  BOOST_TEST(ring.status() == status);
  ring.good_read();
  ring.show_one();
  BOOST_TEST(ring.answer() == 513u);
  BOOST_TEST(ring.status() == kBlkOk);
  front_end.stop();
}

// Sends a message after the usual beginning; the connection must end.
inline void end_connection(HostileFixture& fixture, const std::function<void(FrontEnd&, Wire&)>& misbehave,
                           std::uint64_t features = 0) {
  FrontEndOptions options = options_for(fixture.socket);
  options.reply_ack = false;
  options.inflight = true;
  options.features = features;
  FrontEnd front_end(options);
  front_end.start();
  misbehave(front_end, front_end.wire());
  BOOST_TEST(front_end.wire().closed_by_peer());
}

template <typename T>
void send(Wire& wire, VhostUserRequest request, const T& payload, std::span<const int> fds = {}) {
  wire.send(static_cast<std::uint32_t>(request), Wire::bytes_of(payload), fds);
}

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() { ::close(fd_); }
  int get() const { return fd_; }
  std::span<const int> span() const { return {&fd_, 1}; }

 private:
  int fd_;
};

inline int memory_file(std::uint64_t bytes) {
  const int fd = ::memfd_create("hostile", MFD_CLOEXEC);
  BOOST_REQUIRE(::ftruncate(fd, static_cast<off_t>(bytes)) == 0);
  return fd;
}

}  // namespace pollux::initiator
