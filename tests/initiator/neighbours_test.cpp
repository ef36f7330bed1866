// What one guest, or its front end, does to the others on its reactor: nothing. For each thing that they share there is
// a guest that takes all it can get, or a descriptor that would block its user.

#include "initiator/neighbours.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <climits>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "initiator/hanging_disk.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

// A large disk that is all zeros and answers at once, as a volume does where nothing was ever written.
class ZeroDisk final : public bdev::Bdev {
 public:
  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return 16ULL << 30; }
  std::uint32_t block_bytes() const override { return 512; }
  Result<std::unique_ptr<bdev::Channel>> open_channel(reactor::Reactor&) override {
    return std::make_unique<ZeroChannel>();
  }

 private:
  class ZeroChannel final : public bdev::Channel {
   public:
    void submit(bdev::IoRequest& request) override {
      for (std::uint16_t i = 0; i < request.iov_count; ++i)
        std::memset(request.iov[i].iov_base, 0, request.iov[i].iov_len);
      request.status = bdev::IoStatus::kOk;
      request.complete(request);
    }
  };
  const std::string name_ = "zero";
};

void put_be(std::uint8_t* to, std::uint64_t value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) to[i] = static_cast<std::uint8_t>(value >> (8 * (bytes - 1 - i)));
}

// VERIFY(16) of so many blocks, against nothing but the medium.
std::vector<Segment> verify(const ScsiDisk& disk, GuestRam& ram, IoSlot& slot, std::uint32_t blocks) {
  std::uint8_t cdb[16] = {0x8f};
  put_be(cdb + 10, blocks, 4);
  return disk.command(ram, slot, cdb, 0, 0);
}

// A guest with a scsi disk and request queues of `entries`, which has heard its unit attention.
struct ScsiGuest {
  // `number`: another one for each guest of a test, which names it and its disk.
  ScsiGuest(ServiceFixture& fixture, std::uint8_t number, std::shared_ptr<bdev::Bdev> bdev,
            std::uint16_t request_queues = 1, std::uint16_t entries = 128)
      : disk(number, 0, 512),
        front_end(options(fixture.scsi("guest" + std::to_string(number), request_queues), request_queues, entries)) {
    fixture.add("guest" + std::to_string(number), number, std::move(bdev));
    front_end.start();
    IoSlot slot(front_end.ram(), 0);
    const std::uint8_t test_unit_ready[6] = {};
    run_request(front_end, disk.first_queue(), disk.command(front_end.ram(), slot, test_unit_ready, 0, 0));
  }
  static FrontEndOptions options(const std::string& socket, std::uint16_t request_queues, std::uint16_t entries) {
    FrontEndOptions options;
    options.socket_path = socket;
    options.queues = static_cast<std::uint16_t>(2 + request_queues);
    options.ring = {.size = entries, .indirect = true};
    options.ram_bytes = 128 << 20;
    return options;
  }
  void send(std::uint16_t queue, std::span<const Segment> segments) {
    BOOST_REQUIRE(front_end.ring(queue).add(segments, 1));
  }
  void show() {
    for (std::uint16_t queue = 2; queue < front_end.queues(); ++queue) {
      front_end.ring(queue).show();
      front_end.kick(queue);
    }
  }
  // False: some were not answered in time.
  bool take_all() {
    const auto all_taken = [&] {
      bool all = true;
      for (std::uint16_t queue = 2; queue < front_end.queues(); ++queue) {
        while (front_end.ring(queue).take()) {
        }
        all = all && front_end.ring(queue).in_flight() == 0;
      }
      return all;
    };
    return wait_until(all_taken, std::chrono::seconds(60));
  }

  const ScsiDisk disk;
  FrontEnd front_end;
};

FrontEndOptions options_for(const std::string& socket, std::uint16_t queues = 1) {
  FrontEndOptions options;
  options.socket_path = socket;
  options.queues = queues;
  options.ring.size = 64;
  return options;
}

BOOST_FIXTURE_TEST_SUITE(neighbours, Neighbours)

BOOST_AUTO_TEST_CASE(an_interrupt_that_cannot_be_delivered_holds_nobody_up) {
  FrontEnd bad(options_for(blk("bad", ram(), 1)));
  bad.start();
  const int call = ::eventfd(0, EFD_CLOEXEC);
  bad.request(Vu::kSetVringCall, std::uint64_t{0}, std::span(&call, 1));
  const std::uint64_t full = ULLONG_MAX - 1;
  std::uint64_t count = 0;
  const IoSlot slot(bad.ram(), 4096);
  const auto begin = [&] {
    // Whatever flags the service gave the file, its owner takes them away; a full counter then makes writers wait.
    BOOST_REQUIRE(::fcntl(call, F_SETFL, O_NONBLOCK) == 0);
    static_cast<void>(::read(call, &count, sizeof(count)));
    BOOST_REQUIRE(::write(call, &full, sizeof(full)) == sizeof(full));
    BOOST_REQUIRE(::fcntl(call, F_SETFL, 0) == 0);
    IoSlot io = slot;
    BOOST_REQUIRE(bad.ring(0).add(BlkDisk().build(bad.ram(), io, Op::kRead, 0, 4096, 0), 1));
    bad.ring(0).want_call();
    bad.ring(0).show();
    bad.kick(0);
  };
  const auto end = [&] {
    BOOST_REQUIRE(::read(call, &count, sizeof(count)) == sizeof(count));
    BOOST_TEST(wait_until([&] { return bad.ring(0).take().has_value(); }));
  };
  BOOST_TEST(part_kept(begin, end) >= kEnough);
  ::close(call);
}

BOOST_AUTO_TEST_CASE(descriptors_that_are_no_eventfds_end_the_connection) {
  const std::string socket = blk("bad", ram(), 1);
  int ends[2];
  BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const int sock = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int memory = ::memfd_create("call", MFD_CLOEXEC);
  const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
  for (const Vu request : {Vu::kSetVringKick, Vu::kSetVringCall, Vu::kSetVringErr}) {
    for (const int fd : {ends[0], ends[1], sock, memory, epoll}) {
      FrontEnd bad(options_for(socket));
      bad.start();
      const std::uint64_t index = 0;
      bad.wire().send(static_cast<std::uint32_t>(request), Wire::bytes_of(index), std::span(&fd, 1));
      BOOST_TEST(bad.wire().closed_by_peer());
    }
  }
  for (const int fd : {ends[0], ends[1], sock, memory, epoll}) ::close(fd);
}

BOOST_AUTO_TEST_CASE(requests_of_many_pieces_that_wait_for_their_device_leave_room_for_others) {
  // As those of a guest whose limits hold them back: more of them than a reactor has arrays for.
  constexpr unsigned kRequests = 500;
  unsigned round = 0;
  std::shared_ptr<HangingDisk> disk;
  std::unique_ptr<FrontEnd> bad;
  const auto begin = [&] {
    disk = std::make_shared<HangingDisk>();
    FrontEndOptions options = options_for(blk("bad" + std::to_string(round++), disk, 1));
    options.ring = {.size = 512, .indirect = true};
    bad = std::make_unique<FrontEnd>(options);
    bad->start();
    const IoSlot slot(bad->ram(), 64 << 10);
    for (unsigned i = 0; i < kRequests; ++i) {
      IoSlot io = slot;
      BOOST_REQUIRE(bad->ring(0).add(BlkDisk().build(bad->ram(), io, Op::kRead, 0, 64 << 10, 4096), i));
    }
    bad->ring(0).show();
    bad->kick(0);
    BOOST_REQUIRE(wait_until([&] { return disk->kept() >= 100; }));
  };
  const auto end = [&] {
    disk->answer();
    unsigned answers = 0;
    BOOST_TEST(wait_until([&] {
      while (bad->ring(0).take()) ++answers;
      return answers == kRequests;
    }));
    bad->stop();
  };
  BOOST_TEST(part_kept(begin, end) >= kEnough);
}

BOOST_AUTO_TEST_CASE(scratch_memory_that_waits_for_its_device_leaves_some_for_others) {
  // As that of a guest whose limits hold it back: more commands than a reactor has scratch buffers.
  const auto disk = std::make_shared<HangingDisk>();
  ScsiGuest bad(*this, 1, disk);
  std::vector<IoSlot> slots(64, IoSlot(bad.front_end.ram(), 0));
  for (IoSlot& slot : slots) {
    slot = IoSlot(bad.front_end.ram(), 0);
    bad.send(2, verify(bad.disk, bad.front_end.ram(), slot, 1024));
  }
  bad.show();
  BOOST_REQUIRE(wait_until([&] { return disk->kept() >= 8; }));
  ScsiGuest good(*this, 2, ram());
  IoSlot slot(good.front_end.ram(), 64 << 10);
  for (unsigned i = 0; i < 100; ++i) {
    const auto segments = i % 2 ? verify(good.disk, good.front_end.ram(), slot, 1024)
                                : good.disk.build(good.front_end.ram(), slot, Op::kDiscard, 0, 4096, 0);
    run_request(good.front_end, 2, segments, 10'000);
    BOOST_TEST(good.disk.verdict(slot) == "");
  }
  disk->answer();
  BOOST_TEST(bad.take_all());
}

BOOST_AUTO_TEST_CASE(requests_of_a_gigabyte_go_in_steps_between_those_of_others) {
  FrontEndOptions options = options_for(blk("bad", std::make_shared<ZeroDisk>(), 1));
  options.ring = {.size = 64, .indirect = true};
  FrontEnd bad(options);
  bad.start();
  // All pieces are the same memory.
  constexpr std::uint32_t kPieceBytes = 8 << 20;
  constexpr unsigned kRequests = 8;
  const IoSlot data(bad.ram(), kPieceBytes);
  std::vector<IoSlot> slots;
  for (unsigned i = 0; i < kRequests; ++i) slots.emplace_back(bad.ram(), 0);
  const auto begin = [&] {
    for (IoSlot& slot : slots) {
      slot.data = data.data;
      auto segments = BlkDisk().build(bad.ram(), slot, Op::kRead, 0, 512, 0);
      segments[1] = {bad.ram().guest_addr(data.data), kPieceBytes, true};
      segments.insert(segments.begin() + 1, 125, segments[1]);
      BOOST_REQUIRE(bad.ring(0).add(segments, 1));
    }
    bad.ring(0).show();
    bad.kick(0);
  };
  const auto end = [&] {
    unsigned answers = 0;
    const auto all_taken = [&] {
      while (bad.ring(0).take()) ++answers;
      return answers == kRequests;
    };
    BOOST_TEST(wait_until(all_taken, std::chrono::seconds(120)));
    for (const IoSlot& slot : slots) BOOST_TEST(BlkDisk().verdict(slot) == "");
  };
  BOOST_TEST(part_kept(begin, end) >= kEnough);
}

BOOST_AUTO_TEST_CASE(commands_of_many_steps_go_on_between_those_of_others) {
  ScsiGuest bad(*this, 1, std::make_shared<ZeroDisk>());
  std::vector<IoSlot> slots;
  for (unsigned i = 0; i < 8; ++i) slots.emplace_back(bad.front_end.ram(), 0);
  const auto begin = [&] {
    for (IoSlot& slot : slots) bad.send(2, verify(bad.disk, bad.front_end.ram(), slot, (1U << 30) / 512));
    bad.show();
  };
  const auto end = [&] {
    BOOST_TEST(bad.take_all());
    for (const IoSlot& slot : slots) BOOST_TEST(bad.disk.verdict(slot) == "");
  };
  BOOST_TEST(part_kept(begin, end) >= kEnough);
}

BOOST_AUTO_TEST_CASE(commands_that_wait_behind_an_ordered_one_cost_no_more_than_others) {
  constexpr std::uint16_t kQueues = 4;
  constexpr unsigned kCommands = 1000;
  std::uint8_t round = 0;
  std::shared_ptr<HangingDisk> disk;
  std::unique_ptr<ScsiGuest> bad;
  const auto begin = [&] {
    disk = std::make_shared<HangingDisk>();
    bad = std::make_unique<ScsiGuest>(*this, ++round, disk, kQueues, 1024);
    GuestRam& ram = bad->front_end.ram();
    const IoSlot data(ram, 4096);
    const auto read = [&](std::uint8_t attribute) {
      IoSlot slot(ram, 0);
      slot.data = data.data;
      auto segments = bad->disk.build(ram, slot, Op::kRead, 0, 4096, 0);
      reinterpret_cast<ScsiCommand*>(slot.header)->attribute = attribute;
      return segments;
    };
    bad->send(2, read(0));
    bad->send(2, read(1));
    for (std::uint16_t queue = 2; queue < 2 + kQueues; ++queue) {
      for (unsigned i = 2; i < kCommands; ++i) bad->send(queue, read(0));
    }
    bad->show();
  };
  const auto end = [&] {
    disk->answer();
    BOOST_TEST(bad->take_all());
    bad->front_end.stop();
  };
  BOOST_TEST(part_kept(begin, end) >= kEnough);
}

BOOST_AUTO_TEST_CASE(memory_files_of_any_size_leave_address_space_for_others) {
  // Their memory is mapped before there is none left for it; with the service's part it is in this process too.
  FrontEnd first(options_for(blk("first", ram(), 1)));
  FrontEnd second(options_for(blk("second", ram(), 1)));
  std::vector<std::unique_ptr<FrontEnd>> greedy;
  const int file = ::memfd_create("sparse", MFD_CLOEXEC);
  BOOST_REQUIRE(::ftruncate(file, 1LL << 46) == 0);
  std::string socket;
  const auto share = [&](std::uint64_t bytes) {
    // As many front ends as an endpoint takes.
    if (greedy.size() % 4 == 0) socket = blk("bad" + std::to_string(greedy.size()), ram(), 1);
    FrontEndOptions options = options_for(socket);
    options.ram_bytes = 1 << 20;
    greedy.push_back(std::make_unique<FrontEnd>(options));
    try {
      greedy.back()->start();
      const struct {
        std::uint64_t padding = 0;
        VuRegion region;
      } slot{.region = {1ULL << 50, bytes, 1ULL << 50, 0}};
      greedy.back()->request(Vu::kAddMemReg, slot, std::span(&file, 1));
      return true;
    } catch (const std::exception&) {
      // Refused: what is asked is that others are not.
      return false;
    }
  };
  // As much as there is, whatever pieces it is in.
  for (std::uint64_t bytes = 1ULL << 46; bytes >= 16ULL << 20; bytes /= 2) {
    for (unsigned i = 0; i < 3 && share(bytes); ++i) {
    }
  }
  for (FrontEnd* front_end : {&first, &second}) {
    BOOST_CHECK_NO_THROW(front_end->start());
    IoSlot slot(front_end->ram(), 4096);
    BOOST_TEST(run_io(*front_end, 0, BlkDisk(), slot, Op::kWrite, 0, 4096) == "");
  }
  ::close(file);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
