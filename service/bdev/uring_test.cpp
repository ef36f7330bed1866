// What the kernel's devices ask for beyond the contract that bdev_test.cpp holds against every kind of device.
//
//   POLLUX_TEST_DEVICE    a block device that may be overwritten, for the test that is to run on a kernel and a device
//                         of a certain kind; without it that test takes a loop device of each block size

#include "bdev/uring.h"

#include <sched.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/units.h"
#include "bdev/crowd.h"
#include "bdev/direct_io.h"
#include "bdev/loop_device.h"
#include "reactor/reactor.h"

using namespace pollux;
using namespace pollux::bdev;
using pollux::bdev::test::LoopDevice;
using reactor::call;
using reactor::Reactor;
using reactor::ReactorGroup;
using reactor::Task;

namespace {

constexpr std::uint64_t kSize = 16 * kMiB;

struct Fixture {
  Fixture() {
    auto started = ReactorGroup::start({{.id = 0}});
    BOOST_REQUIRE(started.has_value());
    reactors = std::move(*started);
  }
  static std::shared_ptr<Bdev> open(const std::string& path) {
    auto bdev = make_uring_bdev(path, 0);
    BOOST_REQUIRE_MESSAGE(bdev.has_value(), (bdev ? "" : bdev.error().message));
    return std::move(*bdev);
  }
  Reactor& home() { return reactors->main(); }

  std::unique_ptr<ReactorGroup> reactors;
};

Task<Result<IoStatus>> change(Reactor& reactor, Bdev& bdev, IoOp op, std::uint8_t flags) {
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  const std::vector<std::byte> data(8192, std::byte{0x5a});
  switch (op) {
    case IoOp::kUnmap:
      co_return co_await unmap(**channel, 4096, data.size(), flags);
    case IoOp::kWriteZeroes:
      co_return co_await write_zeroes(**channel, 4096, data.size(), flags);
    default:
      co_return co_await write(**channel, 4096, data.data(), data.size(), flags);
  }
}

// A request's memory: where each piece begins within its page, and how long it is.
struct Piece {
  std::size_t at;
  std::size_t length;
};
using Pieces = std::vector<Piece>;

// As guests make them: of any alignment, and of any length that adds up to whole blocks.
const Pieces kLayouts[] = {
    {{0, 4096}},
    {{16, 4096}},
    {{1, 4096}},
    {{2, 8192}},
    {{4, 4096}},
    {{512, 3584}, {0, 512}},
    {{16, 4080}, {0, 16}},
    {{0, 4080}, {4080, 16}},
    {{0, 512}, {0, 3584}},
    {{3584, 512}, {0, 4096}, {0, 3584}},
    {{4, 508}, {0, 3588}},
    {{0, 4096}, {0, 1}, {1, 4095}},
    {{256, 256}, {512, 256}, {1024, 3584}},
    {{4092, 4}, {0, 4088}, {0, 4}},
    {{496, 512}, {16, 512}, {4092, 3072}},
};

// Memory with the shape of a layout, a guard between the pieces.
struct Scattered {
  explicit Scattered(const Pieces& pieces) {
    for (const Piece& piece : pieces) {
      memory.push_back(std::make_unique<std::byte[]>(3 * 4096 + piece.length));
      const auto base = reinterpret_cast<std::uintptr_t>(memory.back().get());
      auto* page = reinterpret_cast<std::byte*>(align_up<std::uintptr_t>(base, 4096));
      iov.push_back({page + piece.at, piece.length});
      length_bytes += piece.length;
    }
  }
  void fill(std::mt19937_64& random) {
    for (const iovec& piece : iov) {
      for (std::size_t i = 0; i < piece.iov_len; ++i) {
        static_cast<std::byte*>(piece.iov_base)[i] = static_cast<std::byte>(random());
      }
    }
  }
  std::vector<std::byte> bytes() const {
    std::vector<std::byte> all;
    for (const iovec& piece : iov) {
      const auto* from = static_cast<const std::byte*>(piece.iov_base);
      all.insert(all.end(), from, from + piece.iov_len);
    }
    return all;
  }

  std::vector<std::unique_ptr<std::byte[]>> memory;
  std::vector<iovec> iov;
  std::uint64_t length_bytes = 0;
};

struct Scatter : IoRequest {
  reactor::Completion<bool> done;
};

Task<IoStatus> move(Channel& channel, IoOp op, const Scattered& memory, std::uint64_t offset) {
  Scatter request;
  request.op = op;
  request.iov = memory.iov.data();
  request.iov_count = static_cast<std::uint16_t>(memory.iov.size());
  request.offset_bytes = offset;
  request.length_bytes = memory.length_bytes;
  request.complete = [](IoRequest& answered) { static_cast<Scatter&>(answered).done.set(true); };
  channel.submit(request);
  co_await request.done;
  co_return request.status;
}

// Writes with one layout and reads with another.
Task<Result<bool>> scattered_round_trip(Reactor& reactor, Bdev& bdev, const Pieces& out, const Pieces& in) {
  std::mt19937_64 random(7);
  Scattered from(out), to(in);
  from.fill(random);
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  POLLUX_CO_TRY(to_status(co_await move(**channel, IoOp::kWrite, from, 8192), "write"));
  POLLUX_CO_TRY(to_status(co_await move(**channel, IoOp::kRead, to, 8192), "read"));
  co_return from.bytes() == to.bytes();
}

std::string describe(const Pieces& pieces) {
  std::string text;
  for (const Piece& piece : pieces) text += " " + std::to_string(piece.length) + "@" + std::to_string(piece.at);
  return text;
}

void check_layouts(Reactor& reactor, const std::string& path) {
  auto bdev = Fixture::open(path);
  for (const Pieces& layout : kLayouts) {
    const Pieces whole = {{0, Scattered(layout).length_bytes}};
    for (const auto& [out, in] : {std::pair(layout, whole), std::pair(whole, layout)}) {
      BOOST_TEST_CONTEXT(path << ", written from" << describe(out) << ", read to" << describe(in)) {
        const auto same = call(reactor, scattered_round_trip(reactor, *bdev, out, in));
        BOOST_CHECK_MESSAGE(same.has_value(), (same ? "" : same.error().message));
        if (same) BOOST_TEST(*same);
      }
    }
  }
}

// The cores that each of the kernel's workers for io_uring in this process may run on.
std::vector<cpu_set_t> workers() {
  std::vector<cpu_set_t> found;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::ifstream(task.path() / "comm") >> name;
    cpu_set_t cores;
    if (!name.starts_with("iou-wrk-")) continue;
    if (sched_getaffinity(std::stoi(task.path().filename()), sizeof(cores), &cores) == 0) found.push_back(cores);
  }
  return found;
}

Task<Result<std::size_t>> crowd(Reactor& reactor, Bdev& bdev, test::Crowd& crowd) {
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  auto before = co_await crowd.run(**channel, **channel);
  // This runs in a completion of the channel.
  co_await reactor.yield();
  co_return before;
}

// How many of these reads, whose memory the kernel does not take, are answered in one turn at most, when the device has
// ended many of them before the reactor looks.
Task<Result<std::size_t>> most_at_once(Reactor& reactor, Bdev& bdev, std::size_t count, std::uint32_t length_bytes) {
  struct Counted : IoRequest {
    std::size_t* answered;
    bool* failed;
  };
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  std::vector<std::byte> memory(length_bytes + 2);
  const auto base = reinterpret_cast<std::uintptr_t>(memory.data());
  const iovec odd{memory.data() + (base % 2 == 0 ? 1 : 0), length_bytes};
  std::vector<Counted> requests(count);
  std::size_t answered = 0, most = 0;
  bool failed = false;
  for (Counted& request : requests) {
    request.op = IoOp::kRead;
    request.iov = &odd;
    request.iov_count = 1;
    request.length_bytes = length_bytes;
    request.answered = &answered;
    request.failed = &failed;
    request.complete = [](IoRequest& io) {
      const auto& self = static_cast<Counted&>(io);
      ++*self.answered;
      if (io.status != IoStatus::kOk) *self.failed = true;
    };
    (*channel)->submit(request);
  }
  co_await reactor.yield();
  while (answered < count) {
    // Shorter than what a debug build ends with.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const std::size_t before = answered;
    co_await reactor.yield();
    most = std::max(most, answered - before);
  }
  if (failed) co_return fail(ErrorCode::kIoError, "a request failed");
  co_return most;
}

// Whether what a message asks for happens while a channel is being opened.
Task<Result<bool>> turns_while_it_opens(Reactor& reactor, Bdev& bdev) {
  struct Other : reactor::Message {
    bool ran = false;
  } other;
  other.run = [](reactor::Message& message) { static_cast<Other&>(message).ran = true; };
  // Before the answer of any other thread.
  reactor.post(other);
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  const bool ran = other.ran;
  POLLUX_CO_TRY(to_status(co_await flush(**channel), "flush"));
  // This runs in a completion of the channel.
  co_await reactor.yield();
  co_return ran;
}

Task<Result<IoStatus>> flush_one(Reactor& reactor, Bdev& bdev) {
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  co_return co_await flush(**channel);
}

}  // namespace

BOOST_FIXTURE_TEST_CASE(a_reactor_has_its_turns_while_a_channel_is_opened, Fixture) {
  LoopDevice loop(kSize, 512);
  auto bdev = open(loop.path());
  const auto ran = call(home(), turns_while_it_opens(home(), *bdev));
  BOOST_REQUIRE_MESSAGE(ran.has_value(), (ran ? "" : ran.error().message));
  BOOST_TEST(*ran);
}

// 512 are under way at a time; the one is among the next.
BOOST_FIXTURE_TEST_CASE(a_request_does_not_wait_for_all_that_another_user_has_waiting, Fixture) {
  LoopDevice loop(kSize, 512);
  auto bdev = open(loop.path());
  test::Crowd many(IoOp::kRead, 4000, test::Crowd::kBytes);
  const auto before = call(home(), crowd(home(), *bdev, many));
  BOOST_REQUIRE_MESSAGE(before.has_value(), (before ? "" : before.error().message));
  BOOST_TEST(*before < 1200u);
}

BOOST_FIXTURE_TEST_CASE(a_turn_copies_a_bounded_part_of_what_has_come_for_misaligned_memory, Fixture) {
  constexpr std::uint32_t kBytes = 512 * kKiB;
  LoopDevice loop(kSize, 512);
  auto bdev = open(loop.path());
  const auto most = call(home(), most_at_once(home(), *bdev, 64, kBytes));
  BOOST_REQUIRE_MESSAGE(most.has_value(), (most ? "" : most.error().message));
  BOOST_TEST(*most * kBytes <= 2 * kMiB);
}

// With one core there is none to move to.
BOOST_AUTO_TEST_CASE(a_flush_runs_off_the_reactors_core,
                     *boost::unit_test::precondition([](boost::unit_test::test_unit_id) {
                       return std::thread::hardware_concurrency() > 1;
                     })) {
  cpu_set_t before;
  BOOST_REQUIRE(sched_getaffinity(0, sizeof(before), &before) == 0);
  unsigned core = 0;
  while (!CPU_ISSET(core, &before)) ++core;
  auto reactors = ReactorGroup::start({{.id = 0, .core = core}});
  BOOST_REQUIRE(reactors.has_value());
  // As the service does.
  cpu_set_t others = before;
  CPU_CLR(core, &others);
  BOOST_REQUIRE(sched_setaffinity(0, sizeof(others), &others) == 0);
  LoopDevice loop(kSize, 512);
  auto bdev = Fixture::open(loop.path());
  const auto flushed = call((*reactors)->main(), flush_one((*reactors)->main(), *bdev));
  BOOST_REQUIRE_MESSAGE(flushed.has_value(), (flushed ? "" : flushed.error().message));
  const auto found = workers();
  BOOST_REQUIRE(!found.empty());
  for (const cpu_set_t& cores : found) BOOST_TEST(CPU_EQUAL(&cores, &others));
  BOOST_REQUIRE(sched_setaffinity(0, sizeof(before), &before) == 0);
}

BOOST_AUTO_TEST_CASE(the_address_and_the_length_of_each_piece_decide_whether_the_kernel_takes_a_request) {
  const auto takes = [](DirectIo rules, const Pieces& pieces) {
    std::vector<iovec> iov;
    for (const Piece& piece : pieces) iov.push_back({reinterpret_cast<void*>(4096 + piece.at), piece.length});
    return rules.takes(iov.data(), static_cast<std::uint16_t>(iov.size()));
  };
  const DirectIo nvme{.memory_bytes = 4, .block_bytes = 512};
  const DirectIo nvme_4096{.memory_bytes = 4, .block_bytes = 4096};
  const DirectIo old{.memory_bytes = 4096, .block_bytes = 4096};
  const struct {
    Pieces pieces;
    bool by_nvme, by_nvme_4096, by_old;
  } table[] = {
      {{}, true, true, true},
      {{{0, 4096}}, true, true, true},
      {{{0, 4096}, {0, 8192}}, true, true, true},
      {{{4, 4096}}, true, true, false},
      {{{2, 4096}}, false, false, false},
      {{{1, 4096}}, false, false, false},
      {{{512, 512}}, true, false, false},
      {{{0, 3584}, {0, 512}}, true, false, false},
      {{{0, 4080}, {0, 16}}, false, false, false},
      {{{0, 4092}, {0, 4}}, false, false, false},
      {{{0, 4096}, {0, 512}, {0, 3584}}, true, false, false},
      {{{0, 4096}, {0, 4096}, {3, 4096}}, false, false, false},
      {{{0, 4096}, {0, 0}}, true, true, true},
  };
  for (const auto& row : table) {
    BOOST_TEST_CONTEXT(describe(row.pieces)) {
      BOOST_TEST(takes(nvme, row.pieces) == row.by_nvme);
      BOOST_TEST(takes(nvme_4096, row.pieces) == row.by_nvme_4096);
      BOOST_TEST(takes(old, row.pieces) == row.by_old);
    }
  }
}

BOOST_FIXTURE_TEST_CASE(memory_of_any_shape_is_written_and_read, Fixture) {
  if (const char* device = std::getenv("POLLUX_TEST_DEVICE")) return check_layouts(home(), device);
  for (const std::uint32_t block_bytes : {512U, 4096U}) {
    LoopDevice loop(kSize, block_bytes);
    check_layouts(home(), loop.path());
  }
}

BOOST_FIXTURE_TEST_CASE(a_change_with_fua_flushes_the_devices_cache_and_one_without_does_not, Fixture) {
  LoopDevice loop(kSize, 512);
  auto bdev = open(loop.path());
  for (const IoOp op : {IoOp::kWrite, IoOp::kUnmap, IoOp::kWriteZeroes}) {
    for (const bool fua : {false, true}) {
      BOOST_TEST_CONTEXT(to_string(op) << (fua ? " with FUA" : "")) {
        const std::uint64_t before = loop.flushes();
        const std::uint8_t flags = fua ? IoRequest::kFua : 0;
        const auto status = call(home(), change(home(), *bdev, op, flags));
        BOOST_REQUIRE_MESSAGE(status.has_value(), (status ? "" : status.error().message));
        BOOST_TEST((*status == IoStatus::kOk));
        BOOST_TEST((loop.flushes() > before) == fua);
      }
    }
  }
}
