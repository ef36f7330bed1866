// Guests and front ends that lie. Each test is one way of doing so; all of them run beside a guest that verifies its
// data on another device, and that must not lose a request. A bad request fails, a bad ring is given up, a bad message
// ends the connection: nothing else.

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "initiator/service_fixture.h"

namespace pollux::initiator {
namespace {

constexpr std::uint16_t kQueueSize = 64;

FrontEndOptions options_for(const std::string& socket) {
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

  // The bad device serves whoever comes next as if nothing had been.
  void check_still_served() {
    FrontEnd front_end(options_for(socket));
    front_end.start();
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
    table = reinterpret_cast<SplitDescriptor*>(front_end.ram().allocate(16384, 4096));
  }
  SplitDescriptor* descs() { return reinterpret_cast<SplitDescriptor*>(addresses_.desc); }
  std::uint64_t guest(const void* pointer) { return front_end_.ram().guest_addr(pointer); }
  void show(std::span<const std::uint16_t> heads) {
    auto* avail = reinterpret_cast<std::uint16_t*>(addresses_.avail);
    for (const std::uint16_t head : heads) avail[2 + next_++ % kQueueSize] = head;
    show_index(next_);
  }
  void show_index(std::uint16_t index) {
    auto* avail = reinterpret_cast<std::uint16_t*>(addresses_.avail);
    __atomic_store_n(&avail[1], index, __ATOMIC_RELEASE);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    front_end_.kick(0);
  }
  void show_one(std::uint16_t head = 0) { show(std::span(&head, 1)); }
  // Waits for the next answer and returns how many bytes it claims.
  std::uint32_t answer() {
    auto* used = reinterpret_cast<std::uint16_t*>(addresses_.used);
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
    descs()[0] = {guest(data), 16, kNext, 1};
    descs()[1] = {guest(data + 512), 512, kNext | kWrite, 2};
    descs()[2] = {guest(data + 1024), 1, kWrite, 0};
  }
  int status() const { return std::to_integer<int>(data[1024]); }

  std::byte* data;
  SplitDescriptor* table;

 private:
  FrontEnd& front_end_;
  VuAddr addresses_;
  std::uint16_t next_ = 0;
  std::uint16_t answered_ = 0;
};

// Writes a ring that is to be given up.
void break_ring(HostileFixture& fixture, const std::function<void(FrontEnd&, RawRing&)>& misbehave,
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
void fail_request(HostileFixture& fixture, const std::function<void(RawRing&)>& misbehave, int status,
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
void end_connection(HostileFixture& fixture, const std::function<void(FrontEnd&, Wire&)>& misbehave,
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
void send(Wire& wire, Vu request, const T& payload, std::span<const int> fds = {}) {
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

int memory_file(std::uint64_t bytes) {
  const int fd = ::memfd_create("hostile", MFD_CLOEXEC);
  BOOST_REQUIRE(::ftruncate(fd, static_cast<off_t>(bytes)) == 0);
  return fd;
}

BOOST_FIXTURE_TEST_SUITE(hostile, HostileFixture)

// ---- Class 2: descriptor tables.

BOOST_AUTO_TEST_CASE(a_loop_of_descriptors_breaks_the_queue) {
  break_ring(*this, [](FrontEnd&, RawRing& ring) {
    ring.descs()[1] = {ring.guest(ring.data), 16, kNext, 1};
    ring.show_one();
  });
}
BOOST_AUTO_TEST_CASE(a_successor_past_the_table_breaks_the_queue) {
  break_ring(*this, [](FrontEnd&, RawRing& ring) {
    ring.descs()[0].next = kQueueSize;
    ring.show_one();
  });
}
BOOST_AUTO_TEST_CASE(an_indirect_table_that_was_not_negotiated_breaks_the_queue) {
  break_ring(*this, [](FrontEnd&, RawRing& ring) {
    ring.descs()[0] = {ring.guest(ring.table), 16, kTable, 0};
    ring.show_one();
  });
}
BOOST_AUTO_TEST_CASE(a_nested_indirect_table_breaks_the_queue) {
  break_ring(
      *this,
      [](FrontEnd&, RawRing& ring) {
        ring.table[0] = {ring.guest(ring.table), 16, kTable, 0};
        ring.descs()[0] = {ring.guest(ring.table), 16, kTable, 0};
        ring.show_one();
      },
      true);
}
BOOST_AUTO_TEST_CASE(indirect_tables_of_impossible_length_break_the_queue) {
  for (const std::uint32_t length : {0u, 8u, 17u, 16u * 1025, 0xfffffff0u}) {
    break_ring(
        *this,
        [length](FrontEnd&, RawRing& ring) {
          ring.descs()[0] = {ring.guest(ring.table), length, kTable, 0};
          ring.show_one();
        },
        true);
  }
}
BOOST_AUTO_TEST_CASE(indirect_tables_outside_of_memory_or_unaligned_break_the_queue) {
  for (const std::uint64_t address : {std::uint64_t{0}, UINT64_MAX - 15, std::uint64_t{GuestRam::kGuestBase + 3}}) {
    break_ring(
        *this,
        [address](FrontEnd&, RawRing& ring) {
          ring.descs()[0] = {address, 48, kTable, 0};
          ring.show_one();
        },
        true);
  }
}
BOOST_AUTO_TEST_CASE(a_loop_within_an_indirect_table_breaks_the_queue) {
  break_ring(
      *this,
      [](FrontEnd&, RawRing& ring) {
        ring.table[0] = {ring.guest(ring.data), 16, kNext, 1};
        ring.table[1] = {ring.guest(ring.data), 16, kNext, 0};
        ring.descs()[0] = {ring.guest(ring.table), 32, kTable, 0};
        ring.show_one();
      },
      true);
}

// ---- Class 3: addresses.

BOOST_AUTO_TEST_CASE(data_outside_of_memory_fail_the_request) {
  const std::uint64_t end = GuestRam::kGuestBase + (32 << 20);
  for (const std::uint64_t address : {std::uint64_t{0}, end, end - 256, UINT64_MAX, UINT64_MAX - 511}) {
    fail_request(
        *this, [address](RawRing& ring) { ring.descs()[1].addr = address; }, kBlkIoError);
  }
}
BOOST_AUTO_TEST_CASE(data_of_no_length_are_no_data) {
  fail_request(
      *this, [](RawRing& ring) { ring.descs()[1].len = 0; }, kBlkOk);
}
BOOST_AUTO_TEST_CASE(data_of_four_gigabytes_fail_the_request) {
  fail_request(
      *this, [](RawRing& ring) { ring.descs()[1].len = 0xffffff00; }, kBlkIoError);
}
BOOST_AUTO_TEST_CASE(a_status_outside_of_memory_gives_the_chain_back) {
  fail_request(
      *this, [](RawRing& ring) { ring.descs()[2].addr = 0; }, kNoAnswer, 0);
}

// ---- Class 4: what is readable and what is writable.

BOOST_AUTO_TEST_CASE(readable_after_writable_breaks_the_queue) {
  break_ring(*this, [](FrontEnd&, RawRing& ring) {
    ring.descs()[2].flags = 0;
    ring.show_one();
  });
}
BOOST_AUTO_TEST_CASE(a_request_without_a_status_byte_is_given_back) {
  fail_request(
      *this, [](RawRing& ring) { ring.descs()[0].flags = 0; }, kNoAnswer, 0);
}
BOOST_AUTO_TEST_CASE(a_header_that_the_device_is_to_write_is_no_header) {
  fail_request(
      *this, [](RawRing& ring) { ring.descs()[0].flags = kNext | kWrite; }, kBlkIoError);
}
BOOST_AUTO_TEST_CASE(a_short_header_fails_the_request) {
  fail_request(
      *this, [](RawRing& ring) { ring.descs()[0].len = 15; }, kBlkIoError);
}

// ---- Class 5: indices.

BOOST_AUTO_TEST_CASE(an_available_index_that_jumps_breaks_the_queue) {
  for (const std::uint16_t jump : {kQueueSize + 1, 1000, 32768, 65535}) {
    break_ring(*this, [jump](FrontEnd&, RawRing& ring) { ring.show_index(jump); });
  }
}
BOOST_AUTO_TEST_CASE(a_head_past_the_table_breaks_the_queue) {
  for (const std::uint16_t head : {kQueueSize, std::uint16_t{0xffff}}) {
    break_ring(*this, [head](FrontEnd&, RawRing& ring) { ring.show_one(head); });
  }
}
BOOST_AUTO_TEST_CASE(a_packed_id_past_the_table_breaks_the_queue) {
  FrontEndOptions options = options_for(socket);
  options.ring.packed = true;
  FrontEnd front_end(options);
  front_end.start();
  auto* descs = reinterpret_cast<PackedDescriptor*>(front_end.ring(0).addresses(0).desc);
  descs[0] = {GuestRam::kGuestBase, 16, kQueueSize, 0};
  __atomic_store_n(&descs[0].flags, kPackedAvail, __ATOMIC_RELEASE);
  front_end.kick(0);
  check_queue_broken(front_end);
}
BOOST_AUTO_TEST_CASE(a_packed_chain_without_end_breaks_the_queue) {
  FrontEndOptions options = options_for(socket);
  options.ring.packed = true;
  FrontEnd front_end(options);
  front_end.start();
  auto* descs = reinterpret_cast<PackedDescriptor*>(front_end.ring(0).addresses(0).desc);
  for (std::uint16_t i = kQueueSize; i-- > 0;) {
    descs[i] = {GuestRam::kGuestBase, 16, 0, 0};
    __atomic_store_n(&descs[i].flags, static_cast<std::uint16_t>(kPackedAvail | kNext), __ATOMIC_RELEASE);
  }
  front_end.kick(0);
  check_queue_broken(front_end);
}
BOOST_AUTO_TEST_CASE(one_descriptor_offered_twice_at_once_is_served_or_breaks_the_queue) {
  FrontEnd front_end(options_for(socket));
  front_end.start();
  RawRing ring(front_end);
  ring.good_read();
  const std::uint16_t heads[] = {0, 0, 0, 0};
  ring.show(heads);
  front_end.get_vring_base(0);
  front_end.disconnect();
  check_still_served();
}
BOOST_AUTO_TEST_CASE(queues_that_are_not_there_end_the_connection) {
  for (const std::uint32_t index : {2u, 255u, 256u, 0xffffffffu}) {
    for (const Vu request : {Vu::kSetVringNum, Vu::kSetVringBase, Vu::kGetVringBase, Vu::kSetVringEnable}) {
      end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, request, VuState{index, 1}); });
    }
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetVringAddr, VuAddr{.index = index}); });
  }
  const Fd event(::eventfd(0, EFD_CLOEXEC));
  for (const Vu request : {Vu::kSetVringKick, Vu::kSetVringCall, Vu::kSetVringErr}) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, request, std::uint64_t{2}, event.span()); });
  }
}
BOOST_AUTO_TEST_CASE(an_in_flight_region_of_another_size_ends_the_connection) {
  const Fd file(memory_file(1 << 20));
  for (const VuInflight wrong :
       {VuInflight{64, 0, 2, 64, 0}, VuInflight{1 << 20, 0, 0, 64, 0}, VuInflight{1 << 20, 0, 3, 64, 0},
        VuInflight{1 << 20, 0, 2, 0, 0}, VuInflight{1 << 20, 0, 2, 65535, 0}, VuInflight{1 << 20, 0, 2, 32, 0},
        VuInflight{2 << 20, 0, 2, 64, 0}, VuInflight{UINT64_MAX, 4096, 2, 64, 0},
        VuInflight{1 << 20, UINT64_MAX - 100, 2, 64, 0}, VuInflight{65536, 8, 2, 64, 0}}) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetInflightFd, wrong, file.span()); });
  }
  check_still_served();
}
BOOST_AUTO_TEST_CASE(an_in_flight_region_full_of_nonsense_hurts_its_own_guest_alone) {
  std::mt19937 random(1);
  for (const bool packed : {false, true}) {
    for (int round = 0; round < 20; ++round) {
      FrontEndOptions options = options_for(socket);
      options.inflight = true;
      options.reply_ack = false;
      options.ring.packed = packed;
      FrontEnd front_end(options);
      front_end.start();
      front_end.disconnect();
      void* region = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, front_end.inflight_fd(), 0);
      BOOST_REQUIRE(region != MAP_FAILED);
      auto* words = static_cast<std::uint16_t*>(region);
      // Version and size stay as they are, so that the rest is believed.
      for (int i = 6; i < 2048; ++i)
        words[i] = static_cast<std::uint16_t>(round % 2 ? random() % (kQueueSize + 2) : random());
      ::munmap(region, 4096);
      try {
        front_end.reconnect();
        front_end.get_vring_base(0);
      } catch (const std::exception&) {
        // Refused, which is as good.
      }
    }
  }
  check_still_served();
}

// ---- Class 6: messages.

BOOST_AUTO_TEST_CASE(unknown_requests_end_the_connection) {
  for (const std::uint32_t request : {0u, 19u, 99u, 0xffffffffu}) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) { wire.send(request, {}); });
  }
}
BOOST_AUTO_TEST_CASE(wrong_versions_end_the_connection) {
  for (const std::uint32_t flags : {0u, 2u, 3u, 5u}) {
    end_connection(*this,
                   [&](FrontEnd&, Wire& wire) { wire.send(static_cast<std::uint32_t>(Vu::kSetOwner), {}, {}, flags); });
  }
}
BOOST_AUTO_TEST_CASE(wrong_numbers_of_descriptors_end_the_connection_and_none_leaks) {
  const Fd event(::eventfd(0, EFD_CLOEXEC));
  const int many[] = {event.get(), event.get(), event.get(), event.get(),
                      event.get(), event.get(), event.get(), event.get()};
  const auto open_files = [] {
    int count = 0;
    for (int fd = 0; fd < 4096; ++fd) count += ::fcntl(fd, F_GETFD) >= 0;
    return count;
  };
  end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetVringKick, std::uint64_t{0}); });
  const int before = open_files();
  for (int round = 0; round < 3; ++round) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetVringKick, std::uint64_t{0}); });
    end_connection(*this,
                   [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetVringKick, std::uint64_t{0x100}, event.span()); });
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetVringKick, std::uint64_t{0}, many); });
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetFeatures, std::uint64_t{0}, many); });
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetInflightFd, VuInflight{}); });
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetLogBase, std::uint64_t{0}, many); });
    end_connection(*this,
                   [&](FrontEnd&, Wire& wire) { wire.send(static_cast<std::uint32_t>(Vu::kSetMemTable), {}, many); });
  }
  BOOST_TEST(open_files() == before);
}
BOOST_AUTO_TEST_CASE(more_descriptors_than_a_message_may_have_end_the_connection_and_none_leaks) {
  const Fd event(::eventfd(0, EFD_CLOEXEC));
  const std::vector<int> flood(64, event.get());
  const auto open_files = [] {
    int count = 0;
    for (int fd = 0; fd < 4096; ++fd) count += ::fcntl(fd, F_GETFD) >= 0;
    return count;
  };
  const int before = open_files();
  for (int round = 0; round < 5; ++round) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetFeatures, std::uint64_t{0}, flood); });
  }
  BOOST_TEST(open_files() == before);
}
BOOST_AUTO_TEST_CASE(payloads_of_the_wrong_size_end_the_connection) {
  const std::byte bytes[64] = {};
  for (const Vu request :
       {Vu::kSetFeatures, Vu::kSetProtocolFeatures, Vu::kSetVringNum, Vu::kSetVringAddr, Vu::kSetVringBase,
        Vu::kGetVringBase, Vu::kSetVringEnable, Vu::kGetConfig, Vu::kSetConfig, Vu::kGetInflightFd, Vu::kRemMemReg}) {
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{63}}) {
      end_connection(*this, [&](FrontEnd&, Wire& wire) {
        wire.send(static_cast<std::uint32_t>(request), std::span(bytes, size));
      });
    }
  }
}
BOOST_AUTO_TEST_CASE(a_payload_larger_than_any_ends_the_connection) {
  end_connection(*this, [](FrontEnd&, Wire& wire) {
    const VuHeader header{static_cast<std::uint32_t>(Vu::kSetFeatures), 1, 0x7fffffff};
    wire.send_bytes(Wire::bytes_of(header));
  });
}
BOOST_AUTO_TEST_CASE(features_that_were_not_offered_end_the_connection) {
  end_connection(*this, [](FrontEnd&, Wire& wire) { send(wire, Vu::kSetFeatures, UINT64_MAX); });
  end_connection(*this, [](FrontEnd&, Wire& wire) { send(wire, Vu::kSetProtocolFeatures, UINT64_MAX); });
}
BOOST_AUTO_TEST_CASE(configuration_space_has_an_end) {
  struct {
    std::uint32_t offset, size, flags;
  } wrong[] = {{256, 1, 0}, {0, 257, 0}, {0xffffffff, 1, 0}, {1, 0xffffffff, 0}};
  for (const auto& header : wrong) {
    std::byte payload[300] = {};
    std::memcpy(payload, &header, sizeof(header));
    const std::size_t size = 12 + std::min<std::size_t>(header.size, 257);
    for (const Vu request : {Vu::kGetConfig, Vu::kSetConfig}) {
      end_connection(*this, [&](FrontEnd&, Wire& wire) {
        wire.send(static_cast<std::uint32_t>(request), std::span(payload, size));
      });
    }
  }
  // The capacity is not the guest's to set.
  std::byte capacity[20] = {};
  capacity[4] = std::byte{8};
  end_connection(*this,
                 [&](FrontEnd&, Wire& wire) { wire.send(static_cast<std::uint32_t>(Vu::kSetConfig), capacity); });
}
BOOST_AUTO_TEST_CASE(rings_outside_of_memory_or_misaligned_end_the_connection) {
  FrontEnd probe(options_for(socket));
  for (const std::uint64_t move : {std::uint64_t{1}, std::uint64_t{64} << 20, UINT64_MAX / 2}) {
    end_connection(*this, [&](FrontEnd& front_end, Wire& wire) {
      VuAddr addresses = front_end.ring(0).addresses(0);
      addresses.desc += move;
      send(wire, Vu::kSetVringAddr, addresses);
    });
    end_connection(*this, [&](FrontEnd& front_end, Wire& wire) {
      VuAddr addresses = front_end.ring(0).addresses(0);
      addresses.used += move;
      send(wire, Vu::kSetVringAddr, addresses);
    });
  }
}
BOOST_AUTO_TEST_CASE(messages_in_any_order_end_in_an_answer_or_a_closed_connection) {
  const unsigned seed = std::random_device{}();
  BOOST_TEST_MESSAGE("seed " << seed);
  std::mt19937 random(seed);
  const Fd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const Fd file(memory_file(1 << 20));
  for (int round = 0; round < 300; ++round) {
    auto wire = Wire::connect(socket);
    try {
      for (int i = 0; i < 30; ++i) {
        std::byte payload[128];
        for (auto& byte : payload) byte = static_cast<std::byte>(random() % 4 ? random() % 3 : random());
        const std::size_t sizes[] = {0, 8, 8, 8, 12, 16, 20, 24, 40, 40, 72, random() % sizeof(payload)};
        const std::size_t size = sizes[random() % std::size(sizes)];
        std::vector<int> fds(random() % 4 == 0 ? random() % 9 : random() % 2, random() % 2 ? event.get() : file.get());
        wire->send(static_cast<std::uint32_t>(random() % 40), std::span(payload, size), fds,
                   1 | (random() % 2 ? 8 : 0));
      }
    } catch (const std::exception&) {
      // Closed already.
    }
  }
  check_still_served();
}
BOOST_AUTO_TEST_CASE(half_a_message_keeps_nobody_else_waiting) {
  auto stuck = Wire::connect(socket);
  const VuHeader header{static_cast<std::uint32_t>(Vu::kSetFeatures), 1, 8};
  stuck->send_bytes(Wire::bytes_of(header));
  auto silent = Wire::connect(socket);
  silent->send_bytes(Wire::bytes_of(header).first(5));
  check_still_served();
}

// ---- Class 7: memory that is not what was said.

BOOST_AUTO_TEST_CASE(memory_regions_that_cannot_be_end_the_connection) {
  const Fd file(memory_file(1 << 20));
  struct Table {
    std::uint32_t count = 1;
    std::uint32_t padding = 0;
    VuRegion region;
  };
  for (const VuRegion region : {VuRegion{0, 2 << 20, 0, 0}, VuRegion{0, 0, 0, 0}, VuRegion{0, 4096, 0, 1 << 20},
                                VuRegion{0, UINT64_MAX, 0, 4096}, VuRegion{0, 4096, 0, UINT64_MAX - 4095},
                                VuRegion{UINT64_MAX - 100, 4096, 0, 0}, VuRegion{0, 4096, UINT64_MAX - 100, 0}}) {
    end_connection(*this,
                   [&](FrontEnd&, Wire& wire) { send(wire, Vu::kSetMemTable, Table{.region = region}, file.span()); });
  }
  for (const std::uint32_t count : {0u, 9u, 0xffffffffu}) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) {
      send(wire, Vu::kSetMemTable, Table{.count = count, .region = {}}, file.span());
    });
  }
  const Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  end_connection(*this, [&](FrontEnd&, Wire& wire) {
    send(wire, Vu::kSetMemTable, Table{.region = {0, 4096, 0, 0}}, null.span());
  });
}
BOOST_AUTO_TEST_CASE(memory_that_shrinks_under_load_hurts_its_own_guest_alone) {
  FrontEnd front_end(options_for(socket));
  front_end.start();
  RawRing ring(front_end);
  ring.good_read();
  BOOST_REQUIRE(::ftruncate(front_end.ram().parts()[0].fd, 0) == 0);
  front_end.kick(0);
  front_end.kick(1);
  front_end.get_vring_base(0);
  front_end.disconnect();
  check_still_served();
}
BOOST_AUTO_TEST_CASE(data_that_vanish_while_they_are_read_hurt_their_own_guest_alone) {
  FrontEnd front_end(options_for(socket));
  front_end.start();
  RawRing ring(front_end);
  ring.good_read();
  // Rings stay, the page that the sector is to be read into goes.
  const std::uint64_t size = front_end.ram().parts()[0].region.size;
  ring.descs()[1].addr = GuestRam::kGuestBase + size - 4096;
  BOOST_REQUIRE(::ftruncate(front_end.ram().parts()[0].fd, static_cast<off_t>(size - 65536)) == 0);
  ring.show_one();
  front_end.get_vring_base(0);
  front_end.disconnect();
  check_still_served();
}

// ---- Class 8: the dirty log.

BOOST_AUTO_TEST_CASE(every_byte_that_the_device_writes_is_logged) {
  for (const bool packed : {false, true}) {
    FrontEndOptions options = options_for(socket);
    options.ring.packed = packed;
    FrontEnd front_end(options);
    front_end.start();
    const Fd log(memory_file(4096));
    struct {
      std::uint64_t size = 4096, offset = 0;
    } base;
    front_end.wire().send(static_cast<std::uint32_t>(Vu::kSetLogBase), Wire::bytes_of(base), log.span());
    front_end.wire().receive();
    front_end.set_features(front_end.features() | kLogAll);
    front_end.set_ring_addresses(0, 1);
    const auto* bitmap = static_cast<const std::uint8_t*>(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, log.get(), 0));
    BOOST_REQUIRE(bitmap != MAP_FAILED);
    const auto dirty = [&](const void* pointer) {
      const std::uint64_t page = front_end.ram().guest_addr(pointer) / 4096;
      return (bitmap[page / 8] >> (page % 8) & 1) != 0;
    };
    IoSlot before(front_end.ram(), 16384), slot(front_end.ram(), 16384), after(front_end.ram(), 16384);
    std::byte* status = front_end.ram().allocate(4096, 4096);
    auto segments = BlkDisk().build(front_end.ram(), slot, Op::kRead, 0, 8192, 1024);
    segments.back().guest_addr = front_end.ram().guest_addr(status);
    run_request(front_end, 0, segments);
    BOOST_TEST(dirty(slot.data));
    BOOST_TEST(dirty(slot.data + 4096));
    BOOST_TEST(!dirty(slot.data + 8192));
    BOOST_TEST(!dirty(before.data));
    BOOST_TEST(!dirty(after.data));
    BOOST_TEST(dirty(status));
    BOOST_TEST(dirty(reinterpret_cast<const void*>(packed ? front_end.ring(0).addresses(0).desc
                                                          : front_end.ring(0).addresses(0).used)));
    ::munmap(const_cast<std::uint8_t*>(bitmap), 4096);
    front_end.stop();
  }
}
BOOST_AUTO_TEST_CASE(a_log_that_is_too_small_is_not_written_past_its_end) {
  FrontEnd front_end(options_for(socket));
  front_end.start();
  const Fd log(memory_file(8192));
  struct {
    std::uint64_t size = 1, offset = 0;
  } base;
  front_end.wire().send(static_cast<std::uint32_t>(Vu::kSetLogBase), Wire::bytes_of(base), log.span());
  front_end.wire().receive();
  front_end.set_features(front_end.features() | kLogAll);
  IoSlot slot(front_end.ram(), 4096);
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kRead, 0, 4096) == "");
  std::byte bytes[8192];
  BOOST_REQUIRE(::pread(log.get(), bytes, sizeof(bytes), 0) == sizeof(bytes));
  BOOST_TEST(std::all_of(bytes + 1, bytes + sizeof(bytes), [](std::byte b) { return b == std::byte{0}; }));
  front_end.stop();
}

// ---- Class 9: ends and changes in the middle of everything.

BOOST_AUTO_TEST_CASE(memory_is_hot_plugged_and_unplugged_under_load) {
  FrontEnd front_end(options_for(socket));
  front_end.start();
  std::atomic<bool> stop{false};
  const BlkDisk disk;
  QueueLoad load(front_end, disk, 0, 0, 1, {.length_bytes = 8 << 20, .queue_depth = 8});
  std::thread worker([&] { load.run(stop); });
  const Fd file(memory_file(1 << 20));
  struct {
    std::uint64_t padding = 0;
    VuRegion region{0x40000000, 1 << 20, 0x10000, 0};
  } slot;
  for (int i = 0; i < 50; ++i) {
    front_end.request(Vu::kAddMemReg, slot, file.span());
    front_end.request(Vu::kRemMemReg, slot);
  }
  for (int i = 0; i < 20; ++i) front_end.set_mem_table();
  stop = true;
  worker.join();
  BOOST_TEST(load.result().errors == 0u);
  BOOST_TEST(load.result().requests > 0u);
  front_end.stop();
}
BOOST_AUTO_TEST_CASE(connections_that_end_with_requests_in_flight_leave_nothing_behind) {
  for (int round = 0; round < 30; ++round) {
    FrontEnd front_end(options_for(socket));
    front_end.start();
    std::vector<std::unique_ptr<IoSlot>> slots;
    for (int i = 0; i < 16; ++i) {
      slots.push_back(std::make_unique<IoSlot>(front_end.ram(), 65536));
      const auto segments = BlkDisk().build(front_end.ram(), *slots.back(), i % 2 ? Op::kRead : Op::kWrite,
                                            65536U * static_cast<unsigned>(i), 65536, 0);
      BOOST_REQUIRE(front_end.ring(0).add(segments, 0));
    }
    front_end.ring(0).show();
    front_end.kick(0);
    front_end.disconnect();
  }
  check_still_served();
}
BOOST_AUTO_TEST_CASE(a_guest_that_rewrites_its_requests_while_they_are_served_hurts_itself_alone) {
  // Class 1: whatever is checked and whatever is used are one copy. Half of the time each field is what no check would
  // let through.
  FrontEndOptions options = options_for(socket);
  options.ring.indirect = true;
  FrontEnd front_end(options);
  front_end.start();
  RawRing ring(front_end);
  ring.good_read();
  for (int i = 0; i < 3; ++i) ring.table[i] = ring.descs()[i];
  ring.descs()[0] = {ring.guest(ring.table), 48, kTable, 0};
  std::atomic<bool> stop{false};
  std::thread flipper([&] {
    std::mt19937 random(3);
    while (!stop.load(std::memory_order_relaxed)) {
      auto& desc = ring.table[random() % 2 + 1];
      __atomic_store_n(&desc.addr, random() % 2 ? ring.guest(ring.data + 2048) : UINT64_MAX - 8, __ATOMIC_RELAXED);
      __atomic_store_n(&desc.len, random() % 2 ? 512u : 0xfffff000u, __ATOMIC_RELAXED);
      auto* header = reinterpret_cast<BlkHeader*>(ring.data);
      __atomic_store_n(&header->sector, random() % 2 ? 0 : UINT64_MAX / 512, __ATOMIC_RELAXED);
      __atomic_store_n(&header->type, random() % 2 ? kBlkIn : kBlkOut, __ATOMIC_RELAXED);
    }
  });
  for (int i = 0; i < 20000 && errors_of(socket) < 100000; ++i) {
    ring.show_one();
    if (i % 32 == 31) std::this_thread::yield();
    if (i % 64 == 63) {
      // Start again on a fresh queue: this one may have been given up.
      front_end.get_vring_base(0);
      break;
    }
  }
  stop = true;
  flipper.join();
  front_end.disconnect();
  check_still_served();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
