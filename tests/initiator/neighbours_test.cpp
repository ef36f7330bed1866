// What one guest, or its front end, does to the others on its reactor: nothing. For each thing that they share there is
// a guest that takes all it can get, or a descriptor that would block its user.

#include "initiator/neighbours.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bdev/uring.h"
#include "initiator/fuse_file.h"
#include "initiator/hanging_disk.h"
#include "initiator/scsi_events.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

// A large disk that is all zeros and answers at once, as a volume does where nothing was ever written.
class ZeroDisk final : public bdev::Bdev {
 public:
  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return 16ULL << 30; }
  std::uint32_t block_bytes() const override { return 512; }
  bdev::Opening open_channel(reactor::Reactor&) override {
    co_return std::make_unique<ZeroChannel>();
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

// Memory of this process that it shares with nobody, as guests' is.
std::uint64_t own_memory_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::stoull(line.substr(8)) * 1024;
  }
  throw std::runtime_error("the kernel does not say how much memory there is");
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
  bad.request(VhostUserRequest::kSetVringCall, std::uint64_t{0}, std::span(&call, 1));
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
  for (const VhostUserRequest request :
       {VhostUserRequest::kSetVringKick, VhostUserRequest::kSetVringCall, VhostUserRequest::kSetVringErr}) {
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
  const auto use_scratch = [&] {
    for (unsigned i = 0; i < 100; ++i) {
      const auto segments = i % 2 ? verify(good.disk, good.front_end.ram(), slot, 1024)
                                  : good.disk.build(good.front_end.ram(), slot, Op::kDiscard, 0, 4096, 0);
      run_request(good.front_end, 2, segments, 10'000);
      BOOST_TEST(good.disk.verdict(slot) == "");
    }
  };
  BOOST_CHECK_NO_THROW(use_scratch());
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
      reinterpret_cast<ScsiRequestHeader*>(slot.header)->task_attr = attribute;
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

BOOST_AUTO_TEST_CASE(a_guest_that_has_used_its_budget_up_still_manages_its_tasks_and_hears_of_new_disks) {
  const auto disk = std::make_shared<HangingDisk>();
  ScsiGuest bad(*this, 1, disk, /*request_queues=*/1, /*entries=*/512);
  GuestRam& ram = bad.front_end.ram();
  ScsiEvents events(bad.front_end);
  // More bytes than a tenant may have in flight; all use the same memory.
  constexpr std::uint32_t kBytes = 1 << 20;
  constexpr unsigned kRequests = 400;
  const IoSlot data(ram, kBytes);
  for (unsigned i = 0; i < kRequests; ++i) {
    IoSlot slot(ram, 0);
    slot.data = data.data;
    bad.send(2, bad.disk.build(ram, slot, Op::kRead, 0, kBytes, 0));
  }
  bad.show();
  // No request goes to the device any more.
  BOOST_REQUIRE(wait_until([&] {
    const std::size_t before = disk->kept();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    return before > 8 && disk->kept() == before;
  }));
  BOOST_REQUIRE(disk->kept() < kRequests);
  // VIRTIO 1.2 5.6.6.2: QUERY TASK SET.
  struct __attribute__((packed)) {
    std::uint32_t type = 0;
    std::uint32_t subtype = 7;
    std::uint8_t lun[8] = {1, 1, 0x40, 0};
    std::uint64_t tag = 0;
  } const query;
  constexpr std::uint8_t kSucceeded = 10;
  std::byte* memory = ram.allocate(64);
  std::memcpy(memory, &query, sizeof(query));
  memory[32] = std::byte{kNoAnswer};
  const Segment segments[] = {{ram.guest_addr(memory), sizeof(query), false}, {ram.guest_addr(memory + 32), 1, true}};
  BOOST_CHECK_NO_THROW(run_request(bad.front_end, 0, segments, 10'000));
  BOOST_TEST(std::to_integer<int>(memory[32]) == kSucceeded);
  add("guest1", 9, ServiceFixture::ram());
  BOOST_TEST(events.next().has_value());
  disk->answer();
  BOOST_TEST(bad.take_all());
}

BOOST_AUTO_TEST_CASE(copies_for_misaligned_requests_take_no_more_memory_than_is_in_flight) {
  const std::string path = "/dev/shm/pollux-neighbours-" + std::to_string(::getpid());
  auto file = bdev::make_uring_bdev(path, 64 << 20);
  BOOST_REQUIRE(file.has_value());
  ::unlink(path.c_str());
  // The largest command, at an address that no device takes. What of it is under way is copied.
  constexpr std::uint32_t kBytes = 32 << 20;
  constexpr std::uint64_t kStepBytes = 2 << 20;
  constexpr unsigned kCommands = 24;
  std::vector<std::unique_ptr<ScsiGuest>> guests;
  for (std::uint8_t i = 1; i <= 3; ++i) {
    guests.push_back(std::make_unique<ScsiGuest>(*this, i, *file));
    ScsiGuest& guest = *guests.back();
    GuestRam& ram = guest.front_end.ram();
    const std::uint64_t data = ram.guest_addr(IoSlot(ram, kBytes + 4096).data) + 8;
    for (unsigned k = 0; k < kCommands; ++k) {
      IoSlot slot(ram, 0);
      std::uint8_t write_and_verify[16] = {0x8e};
      put_be(write_and_verify + 10, kBytes / 512, 4);
      auto segments = guest.disk.command(ram, slot, write_and_verify, 0, 0);
      segments.insert(segments.begin() + 1, {data, kBytes, false});
      guest.send(2, segments);
    }
  }
  const std::uint64_t before = own_memory_bytes();
  std::uint64_t most = before;
  for (auto& guest : guests) guest->show();
  const auto all_taken = [&] {
    most = std::max(most, own_memory_bytes());
    return std::ranges::all_of(guests, [](auto& guest) {
      while (guest->front_end.ring(2).take()) {
      }
      return guest->front_end.ring(2).in_flight() == 0;
    });
  };
  BOOST_TEST(wait_until(all_taken, std::chrono::seconds(120)));
  BOOST_TEST_MESSAGE("copies took " << ((most - before) >> 20) << " MiB");
  // A step of each command that a reactor has in flight (architecture.md), and of one of each guest's own.
  const std::uint64_t in_flight = (256ULL << 20) / kBytes + guests.size();
  BOOST_TEST(most - before > kStepBytes);
  BOOST_TEST(most - before <= in_flight * kStepBytes + (16 << 20));
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
        MemoryRegion region;
      } slot{.region = {1ULL << 50, bytes, 1ULL << 50, 0}};
      greedy.back()->request(VhostUserRequest::kAddMemReg, slot, std::span(&file, 1));
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

BOOST_AUTO_TEST_CASE(memory_whose_pages_never_come_is_refused) {
  const std::string folder = directory() + "/fuse";
  const std::string socket = blk("bad", ram(), 1);
  std::unique_ptr<FuseFile> file;
  std::unique_ptr<FrontEnd> bad;
  bool refused = false;
  const auto begin = [&] {
    constexpr std::uint64_t kBytes = 1 << 20;
    constexpr std::uint64_t kAddress = 1ULL << 50;
    file = std::make_unique<FuseFile>(folder, kBytes);
    FrontEndOptions options = options_for(socket);
    options.reply_ack = false;
    bad = std::make_unique<FrontEnd>(options);
    bad->start();
    const struct {
      std::uint64_t padding = 0;
      MemoryRegion region;
    } slot{.region = {kAddress, kBytes, kAddress, 0}};
    const int fd = file->fd();
    bad->request(VhostUserRequest::kAddMemReg, slot, std::span(&fd, 1));
    try {
      bad->get_u64(VhostUserRequest::kGetQueueNum);
    } catch (const std::exception&) {
      refused = true;
      return;
    }
    IoSlot io(bad->ram(), 4096);
    auto segments = BlkDisk().build(bad->ram(), io, Op::kRead, 0, 4096, 0);
    segments[1] = {kAddress, 4096, true};
    BOOST_REQUIRE(bad->ring(0).add(segments, 1));
    bad->ring(0).show();
    bad->kick(0);
  };
  const auto end = [&] {
    file.reset();
    bad->abandon();
  };
  BOOST_TEST(part_kept(begin, end) >= kEnough);
  BOOST_TEST(refused);
}

BOOST_AUTO_TEST_CASE(all_queues_of_a_guest_have_one_turn_together) {
  // As many as a guest may have. What was never written reads as zeros, at once.
  constexpr std::uint16_t kQueues = 64;
  FrontEndOptions options = options_for(blk("bad", std::make_shared<ZeroDisk>(), kQueues), kQueues);
  options.ram_bytes = 64 << 20;
  options.ring = {.size = 64, .indirect = true};
  FrontEnd bad(options);
  bad.start();
  // All pieces are the same memory.
  constexpr std::uint32_t kPieceBytes = 8 << 20;
  constexpr unsigned kPieces = 16;
  const IoSlot data(bad.ram(), kPieceBytes);
  std::vector<IoSlot> slots;
  for (unsigned i = 0; i < kQueues; ++i) slots.emplace_back(bad.ram(), 0);
  const auto begin = [&] {
    for (std::uint16_t queue = 0; queue < kQueues; ++queue) {
      slots[queue].data = data.data;
      auto segments = BlkDisk().build(bad.ram(), slots[queue], Op::kRead, 0, 512, 0);
      segments[1] = {bad.ram().guest_addr(data.data), kPieceBytes, true};
      segments.insert(segments.begin() + 1, kPieces - 1, segments[1]);
      BOOST_REQUIRE(bad.ring(queue).add(segments, 1));
      bad.ring(queue).show();
      bad.kick(queue);
    }
  };
  const auto end = [&] {
    unsigned answers = 0;
    const auto all_taken = [&] {
      for (std::uint16_t queue = 0; queue < kQueues; ++queue) {
        while (bad.ring(queue).take()) ++answers;
      }
      return answers == kQueues;
    };
    BOOST_TEST(wait_until(all_taken, std::chrono::seconds(120)));
    for (const IoSlot& slot : slots) BOOST_TEST(BlkDisk().verdict(slot) == "");
  };
  BOOST_TEST(part_kept(begin, end) >= kEnough);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
