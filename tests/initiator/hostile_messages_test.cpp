// Front ends that lie: messages, shared memory and the dirty log. The classes are those of README.md.

#include <fcntl.h>

#include <algorithm>
#include <fstream>
#include <random>

#include "base/log.h"
#include "initiator/hostile_fixture.h"

namespace pollux::initiator {
namespace {

BOOST_FIXTURE_TEST_SUITE(hostile_messages, HostileFixture)

// ---- Class 6: messages.

BOOST_AUTO_TEST_CASE(unknown_requests_end_the_connection) {
  for (const std::uint32_t request : {0u, 19u, 99u, 0xffffffffu}) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) { wire.send(request, {}); });
  }
}
BOOST_AUTO_TEST_CASE(wrong_versions_end_the_connection) {
  for (const std::uint32_t flags : {0u, 2u, 3u, 5u}) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) {
      wire.send(static_cast<std::uint32_t>(VhostUserRequest::kSetOwner), {}, {}, flags);
    });
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
  end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetVringKick, std::uint64_t{0}); });
  const int before = open_files();
  for (int round = 0; round < 3; ++round) {
    end_connection(*this,
                   [&](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetVringKick, std::uint64_t{0}); });
    end_connection(*this, [&](FrontEnd&, Wire& wire) {
      send(wire, VhostUserRequest::kSetVringKick, std::uint64_t{0x100}, event.span());
    });
    end_connection(*this,
                   [&](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetVringKick, std::uint64_t{0}, many); });
    end_connection(*this,
                   [&](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetFeatures, std::uint64_t{0}, many); });
    end_connection(*this, [&](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetInflightFd, Inflight{}); });
    end_connection(*this,
                   [&](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetLogBase, std::uint64_t{0}, many); });
    end_connection(*this, [&](FrontEnd&, Wire& wire) {
      wire.send(static_cast<std::uint32_t>(VhostUserRequest::kSetMemTable), {}, many);
    });
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
    end_connection(*this,
                   [&](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetFeatures, std::uint64_t{0}, flood); });
  }
  BOOST_TEST(open_files() == before);
}
BOOST_AUTO_TEST_CASE(payloads_of_the_wrong_size_end_the_connection) {
  const std::byte bytes[64] = {};
  for (const VhostUserRequest request :
       {VhostUserRequest::kSetFeatures, VhostUserRequest::kSetProtocolFeatures, VhostUserRequest::kSetVringNum,
        VhostUserRequest::kSetVringAddr, VhostUserRequest::kSetVringBase, VhostUserRequest::kGetVringBase,
        VhostUserRequest::kSetVringEnable, VhostUserRequest::kGetConfig, VhostUserRequest::kSetConfig,
        VhostUserRequest::kGetInflightFd, VhostUserRequest::kRemMemReg}) {
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{63}}) {
      end_connection(*this, [&](FrontEnd&, Wire& wire) {
        wire.send(static_cast<std::uint32_t>(request), std::span(bytes, size));
      });
    }
  }
}
BOOST_AUTO_TEST_CASE(a_payload_larger_than_any_ends_the_connection) {
  end_connection(*this, [](FrontEnd&, Wire& wire) {
    const VhostUserHeader header{static_cast<std::uint32_t>(VhostUserRequest::kSetFeatures), 1, 0x7fffffff};
    wire.send_bytes(Wire::bytes_of(header));
  });
}
BOOST_AUTO_TEST_CASE(features_that_were_not_offered_end_the_connection) {
  end_connection(*this, [](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetFeatures, UINT64_MAX); });
  end_connection(*this, [](FrontEnd&, Wire& wire) { send(wire, VhostUserRequest::kSetProtocolFeatures, UINT64_MAX); });
}
BOOST_AUTO_TEST_CASE(configuration_space_has_an_end) {
  struct {
    std::uint32_t offset, size, flags;
  } wrong[] = {{256, 1, 0}, {0, 257, 0}, {0xffffffff, 1, 0}, {1, 0xffffffff, 0}};
  for (const auto& header : wrong) {
    std::byte payload[300] = {};
    std::memcpy(payload, &header, sizeof(header));
    const std::size_t size = 12 + std::min<std::size_t>(header.size, 257);
    for (const VhostUserRequest request : {VhostUserRequest::kGetConfig, VhostUserRequest::kSetConfig}) {
      end_connection(*this, [&](FrontEnd&, Wire& wire) {
        wire.send(static_cast<std::uint32_t>(request), std::span(payload, size));
      });
    }
  }
  // The capacity is not the guest's to set.
  std::byte capacity[20] = {};
  capacity[4] = std::byte{8};
  end_connection(*this, [&](FrontEnd&, Wire& wire) {
    wire.send(static_cast<std::uint32_t>(VhostUserRequest::kSetConfig), capacity);
  });
}
BOOST_AUTO_TEST_CASE(rings_outside_of_memory_or_misaligned_end_the_connection) {
  FrontEnd probe(options_for(socket));
  for (const std::uint64_t move : {std::uint64_t{1}, std::uint64_t{64} << 20, UINT64_MAX / 2}) {
    end_connection(*this, [&](FrontEnd& front_end, Wire& wire) {
      VringAddr addresses = front_end.ring(0).addresses(0);
      addresses.desc_user_addr += move;
      send(wire, VhostUserRequest::kSetVringAddr, addresses);
    });
    end_connection(*this, [&](FrontEnd& front_end, Wire& wire) {
      VringAddr addresses = front_end.ring(0).addresses(0);
      addresses.used_user_addr += move;
      send(wire, VhostUserRequest::kSetVringAddr, addresses);
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
  const VhostUserHeader header{static_cast<std::uint32_t>(VhostUserRequest::kSetFeatures), 1, 8};
  stuck->send_bytes(Wire::bytes_of(header));
  auto silent = Wire::connect(socket);
  silent->send_bytes(Wire::bytes_of(header).first(5));
  check_still_served();
}

// ---- Class 12: logs without bound.

BOOST_AUTO_TEST_CASE(what_a_front_end_makes_the_log_say_is_bounded) {
  const std::string file = directory() + "/log";
  BOOST_REQUIRE(log::init("warn", file).has_value());
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < 300; ++i) {
    auto wire = Wire::connect(socket);
    wire->send(99, {});
    BOOST_TEST(wire->closed_by_peer());
  }
  const auto seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - began).count();
  BOOST_REQUIRE(log::init("error", "").has_value());
  std::ifstream lines(file);
  long count = 0;
  for (std::string line; std::getline(lines, line);) ++count;
  // A few at once and one a second after that.
  BOOST_TEST(count > 0);
  BOOST_TEST(count <= 5 + seconds + 1);
}

// ---- Class 7: memory that is not what was said.

BOOST_AUTO_TEST_CASE(memory_regions_that_cannot_be_end_the_connection) {
  const Fd file(memory_file(1 << 20));
  struct Table {
    std::uint32_t count = 1;
    std::uint32_t padding = 0;
    MemoryRegion region;
  };
  for (const MemoryRegion region :
       {MemoryRegion{0, 2 << 20, 0, 0}, MemoryRegion{0, 0, 0, 0}, MemoryRegion{0, 4096, 0, 1 << 20},
        MemoryRegion{0, UINT64_MAX, 0, 4096}, MemoryRegion{0, 4096, 0, UINT64_MAX - 4095},
        MemoryRegion{UINT64_MAX - 100, 4096, 0, 0}, MemoryRegion{0, 4096, UINT64_MAX - 100, 0}}) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) {
      send(wire, VhostUserRequest::kSetMemTable, Table{.region = region}, file.span());
    });
  }
  for (const std::uint32_t count : {0u, 9u, 0xffffffffu}) {
    end_connection(*this, [&](FrontEnd&, Wire& wire) {
      send(wire, VhostUserRequest::kSetMemTable, Table{.count = count, .region = {}}, file.span());
    });
  }
  const Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  end_connection(*this, [&](FrontEnd&, Wire& wire) {
    send(wire, VhostUserRequest::kSetMemTable, Table{.region = {0, 4096, 0, 0}}, null.span());
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
  front_end.abandon();
  check_still_served();
}
BOOST_AUTO_TEST_CASE(data_that_vanish_while_they_are_read_hurt_their_own_guest_alone) {
  FrontEnd front_end(options_for(socket));
  front_end.start();
  RawRing ring(front_end);
  ring.good_read();
  // Rings stay, the page that the sector is to be read into goes.
  const std::uint64_t size = front_end.ram().parts()[0].region.size_bytes;
  ring.descs()[1].addr = GuestRam::kGuestBase + size - 4096;
  BOOST_REQUIRE(::ftruncate(front_end.ram().parts()[0].fd, static_cast<off_t>(size - 65536)) == 0);
  ring.show_one();
  front_end.get_vring_base(0);
  front_end.abandon();
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
    front_end.wire().send(static_cast<std::uint32_t>(VhostUserRequest::kSetLogBase), Wire::bytes_of(base), log.span());
    front_end.wire().receive();
    front_end.set_features(front_end.features() | kFeatureLogAll);
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
    BOOST_TEST(dirty(reinterpret_cast<const void*>(packed ? front_end.ring(0).addresses(0).desc_user_addr
                                                          : front_end.ring(0).addresses(0).used_user_addr)));
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
  front_end.wire().send(static_cast<std::uint32_t>(VhostUserRequest::kSetLogBase), Wire::bytes_of(base), log.span());
  front_end.wire().receive();
  front_end.set_features(front_end.features() | kFeatureLogAll);
  IoSlot slot(front_end.ram(), 4096);
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kRead, 0, 4096) == "");
  std::byte bytes[8192];
  BOOST_REQUIRE(::pread(log.get(), bytes, sizeof(bytes), 0) == sizeof(bytes));
  BOOST_TEST(std::all_of(bytes + 1, bytes + sizeof(bytes), [](std::byte b) { return b == std::byte{0}; }));
  front_end.stop();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
