// Guests that lie in their rings: descriptors, addresses, indices and the in-flight region. The classes are those of
// README.md.

#include <random>

#include "initiator/hostile_fixture.h"

namespace pollux::initiator {
namespace {

BOOST_FIXTURE_TEST_SUITE(hostile_rings, HostileFixture)

// ---- Class 1: fetched once.

BOOST_AUTO_TEST_CASE(a_guest_that_rewrites_its_requests_while_they_are_served_hurts_itself_alone) {
  // Whatever is checked and whatever is used are one copy. Half of the time each field is what no check would
  // let through.
  FrontEndOptions options = options_for(socket);
  options.ring.indirect = true;
  FrontEnd front_end(options);
  front_end.start();
  RawRing ring(front_end);
  ring.good_read();
  for (int i = 0; i < 3; ++i) ring.table[i] = ring.descs()[i];
  ring.descs()[0] = {ring.guest(ring.table), 48, kDescIndirect, 0};
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

// ---- Class 2: descriptor tables.

BOOST_AUTO_TEST_CASE(a_loop_of_descriptors_breaks_the_queue) {
  break_ring(*this, [](FrontEnd&, RawRing& ring) {
    ring.descs()[1] = {ring.guest(ring.data), 16, kDescNext, 1};
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
    ring.descs()[0] = {ring.guest(ring.table), 16, kDescIndirect, 0};
    ring.show_one();
  });
}
BOOST_AUTO_TEST_CASE(a_nested_indirect_table_breaks_the_queue) {
  break_ring(
      *this,
      [](FrontEnd&, RawRing& ring) {
        ring.table[0] = {ring.guest(ring.table), 16, kDescIndirect, 0};
        ring.descs()[0] = {ring.guest(ring.table), 16, kDescIndirect, 0};
        ring.show_one();
      },
      true);
}
BOOST_AUTO_TEST_CASE(the_rings_own_table_as_an_indirect_one_breaks_the_queue) {
  break_ring(
      *this,
      [](FrontEnd&, RawRing& ring) {
        ring.descs()[0] = {ring.guest(ring.descs()), 16 * kQueueSize, kDescIndirect, 0};
        ring.show_one();
      },
      true);
}
BOOST_AUTO_TEST_CASE(indirect_tables_of_impossible_length_break_the_queue) {
  for (const std::uint32_t length : {0u, 8u, 17u, 16u * 1025, 0xfffffff0u}) {
    break_ring(
        *this,
        [length](FrontEnd&, RawRing& ring) {
          ring.descs()[0] = {ring.guest(ring.table), length, kDescIndirect, 0};
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
          ring.descs()[0] = {address, 48, kDescIndirect, 0};
          ring.show_one();
        },
        true);
  }
}
BOOST_AUTO_TEST_CASE(a_loop_within_an_indirect_table_breaks_the_queue) {
  break_ring(
      *this,
      [](FrontEnd&, RawRing& ring) {
        ring.table[0] = {ring.guest(ring.data), 16, kDescNext, 1};
        ring.table[1] = {ring.guest(ring.data), 16, kDescNext, 0};
        ring.descs()[0] = {ring.guest(ring.table), 32, kDescIndirect, 0};
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
      *this, [](RawRing& ring) { ring.descs()[0].flags = kDescNext | kDescWrite; }, kBlkIoError);
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
  auto* descs = reinterpret_cast<PackedDesc*>(front_end.ring(0).addresses(0).desc_user_addr);
  descs[0] = {GuestRam::kGuestBase, 16, kQueueSize, 0};
  __atomic_store_n(&descs[0].flags, kDescAvail, __ATOMIC_RELEASE);
  front_end.kick(0);
  check_queue_broken(front_end);
}
BOOST_AUTO_TEST_CASE(a_packed_chain_without_end_breaks_the_queue) {
  FrontEndOptions options = options_for(socket);
  options.ring.packed = true;
  FrontEnd front_end(options);
  front_end.start();
  auto* descs = reinterpret_cast<PackedDesc*>(front_end.ring(0).addresses(0).desc_user_addr);
  for (std::uint16_t i = kQueueSize; i-- > 0;) {
    descs[i] = {GuestRam::kGuestBase, 16, 0, 0};
    __atomic_store_n(&descs[i].flags, static_cast<std::uint16_t>(kDescAvail | kDescNext), __ATOMIC_RELEASE);
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
    for (const VhostUserRequest request : {VhostUserRequest::kSetVringNum, VhostUserRequest::kSetVringBase,
                                           VhostUserRequest::kGetVringBase, VhostUserRequest::kSetVringEnable}) {
      end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, request, VringState{index, 1}); });
    }
    end_connection(
        *this, [&](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetVringAddr, VringAddr{.index = index}); });
  }
  const Fd event(::eventfd(0, EFD_CLOEXEC));
  for (const VhostUserRequest request :
       {VhostUserRequest::kSetVringKick, VhostUserRequest::kSetVringCall, VhostUserRequest::kSetVringErr}) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, request, std::uint64_t{2}, event.span()); });
  }
}
BOOST_AUTO_TEST_CASE(an_in_flight_region_of_another_size_ends_the_connection) {
  const Fd file(memory_file(1 << 20));
  for (const Inflight wrong :
       {Inflight{64, 0, 2, 64, 0}, Inflight{1 << 20, 0, 0, 64, 0}, Inflight{1 << 20, 0, 3, 64, 0},
        Inflight{1 << 20, 0, 2, 0, 0}, Inflight{1 << 20, 0, 2, 65535, 0}, Inflight{1 << 20, 0, 2, 32, 0},
        Inflight{2 << 20, 0, 2, 64, 0}, Inflight{UINT64_MAX, 4096, 2, 64, 0},
        Inflight{1 << 20, UINT64_MAX - 100, 2, 64, 0}, Inflight{65536, 8, 2, 64, 0}}) {
    end_connection(*this,
                   [&](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetInflightFd, wrong, file.span()); });
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

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
