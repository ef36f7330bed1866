#include "bdev/bdev.h"

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>

#include <linux/magic.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "base/units.h"
#include "bdev/ram.h"
#include "bdev/spec.h"
#include "bdev/uring.h"
#include "reactor/reactor.h"

namespace pollux::bdev {

// Names the device in the test report.
static std::ostream& operator<<(std::ostream& out, Spec::Kind kind) {
  return out << (kind == Spec::Kind::kRam ? "ram" : "uring");
}

namespace {

using reactor::call;
using reactor::Reactor;
using reactor::ReactorGroup;
using reactor::Task;

constexpr std::uint64_t kSize = 16 * kMiB;

struct Fixture {
  Fixture() {
    char path[] = "/var/tmp/pollux-bdev-XXXXXX";
    const int fd = mkstemp(path);
    BOOST_REQUIRE(fd >= 0);
    close(fd);
    unlink(path);
    file = path;
    auto started = ReactorGroup::start({{.id = 0}, {.id = 1}});
    BOOST_REQUIRE(started.has_value());
    reactors = std::move(*started);
  }
  ~Fixture() { unlink(file.c_str()); }

  std::shared_ptr<Bdev> open_kind(Spec::Kind kind) {
    auto bdev = bdev::open({.kind = kind, .path = file, .size_bytes = kSize});
    BOOST_REQUIRE_MESSAGE(bdev.has_value(), (bdev ? "" : bdev.error().message));
    return std::move(*bdev);
  }

  std::string file;
  std::unique_ptr<ReactorGroup> reactors;
};

std::vector<unsigned char> noise(std::size_t bytes, unsigned seed) {
  std::vector<unsigned char> data(bytes);
  std::mt19937 random(seed);
  for (auto& each : data) each = static_cast<unsigned char>(random());
  return data;
}

// Writes on one reactor, reads on the other; `shift` misaligns the memory.
Task<Result<bool>> round_trip(ReactorGroup& reactors, Bdev& bdev, std::uint64_t offset, std::size_t length,
                              std::size_t shift) {
  auto out = noise(length + shift, 7);
  std::vector<unsigned char> in(length + shift, 0);
  co_await reactors.at(0).enter();
  {
    auto channel = co_await bdev.open_channel(reactors.at(0));
    if (!channel) co_return fail(channel.error());
    POLLUX_CO_TRY(to_status(co_await write(**channel, offset, out.data() + shift, length, IoRequest::kFua), "write"));
    POLLUX_CO_TRY(to_status(co_await flush(**channel), "flush"));
  }
  co_await reactors.at(1).enter();
  {
    auto channel = co_await bdev.open_channel(reactors.at(1));
    if (!channel) co_return fail(channel.error());
    POLLUX_CO_TRY(to_status(co_await read(**channel, offset, in.data() + shift, length), "read"));
  }
  co_return std::memcmp(in.data() + shift, out.data() + shift, length) == 0;
}

Task<Result<bool>> zeroed(Reactor& reactor, Bdev& bdev, bool by_unmap) {
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  auto data = noise(64 * kKiB, 9);
  POLLUX_CO_TRY(to_status(co_await write(**channel, 0, data.data(), data.size()), "write"));
  const auto status =
      by_unmap ? co_await unmap(**channel, 8 * kKiB, 32 * kKiB) : co_await write_zeroes(**channel, 8 * kKiB, 32 * kKiB);
  POLLUX_CO_TRY(to_status(status, "zero"));
  std::vector<unsigned char> in(64 * kKiB);
  POLLUX_CO_TRY(to_status(co_await read(**channel, 0, in.data(), in.size()), "read"));
  auto expected = data;
  std::fill(expected.begin() + 8 * kKiB, expected.begin() + 40 * kKiB, 0);
  co_return in == expected;
}

// Zeros in the middle of what was written: a range of more than one piece, where it has to be written piece by piece.
Task<Result<bool>> zeroed_at_length(Reactor& reactor, Bdev& bdev) {
  constexpr std::size_t kBytes = 2 * kMiB;
  constexpr std::size_t kFrom = 3 * 4096;
  constexpr std::size_t kLength = kMiB + 5 * 4096;
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  auto expected = noise(kBytes, 11);
  POLLUX_CO_TRY(to_status(co_await write(**channel, 0, expected.data(), kBytes), "write"));
  POLLUX_CO_TRY(to_status(co_await write_zeroes(**channel, kFrom, kLength), "zero"));
  std::vector<unsigned char> in(kBytes);
  POLLUX_CO_TRY(to_status(co_await read(**channel, 0, in.data(), kBytes), "read"));
  std::fill(expected.begin() + kFrom, expected.begin() + kFrom + kLength, 0);
  co_return in == expected;
}

struct Burst {
  static constexpr int kRequests = 2000;
  struct Slot : IoRequest {
    Burst* burst;
    iovec vector;
    alignas(512) std::array<unsigned char, 4096> buffer;
  };
  std::vector<Slot> slots{kRequests};
  int left = kRequests;
  int failed = 0;
  reactor::Completion<bool> all;
};

// More at once than the ring or the channel has room for.
Task<Result<int>> burst(Reactor& reactor, Bdev& bdev) {
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  Burst run;
  for (int i = 0; i < Burst::kRequests; ++i) {
    auto& slot = run.slots[i];
    slot.burst = &run;
    slot.vector = {slot.buffer.data(), slot.buffer.size()};
    slot.op = IoOp::kWrite;
    slot.offset_bytes = static_cast<std::uint64_t>(i) * 4096;
    slot.length_bytes = 4096;
    slot.iov = &slot.vector;
    slot.iov_count = 1;
    slot.complete = [](IoRequest& request) {
      auto& mine = static_cast<Burst::Slot&>(request);
      mine.burst->failed += mine.status != IoStatus::kOk;
      if (--mine.burst->left == 0) mine.burst->all.set(true);
    };
    (*channel)->submit(slot);
  }
  co_await run.all;
  co_return run.failed;
}

Task<Result<IoStatus>> read_at(Reactor& reactor, Bdev& bdev, std::uint64_t offset, std::uint64_t length) {
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  std::vector<unsigned char> buffer(64 * kKiB);
  co_return co_await read(**channel, offset, buffer.data(), length);
}

struct alignas(4096) Page {
  std::array<unsigned char, 4096> bytes;
};

// A request with memory of its own, that counts its answers.
struct Counted : IoRequest {
  iovec vector;
  // Not inside: a coroutine's frame, where requests live here, is aligned for nothing larger than a long double.
  std::unique_ptr<Page> buffer = std::make_unique<Page>();
  int answers = 0;

  Counted() {
    vector = {buffer->bytes.data(), buffer->bytes.size()};
    op = IoOp::kRead;
    length_bytes = vector.iov_len;
    iov = &vector;
    iov_count = 1;
    complete = [](IoRequest& request) { ++static_cast<Counted&>(request).answers; };
  }
};

// What arm() answered in the call that took the completion.
Task<Result<bool>> armed_over_a_completion(Reactor& reactor, Bdev& bdev) {
  auto channel = co_await bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  auto* poller = dynamic_cast<reactor::Poller*>(channel->get());
  if (poller == nullptr) co_return fail(ErrorCode::kInternal, "not a poller");
  Counted request;
  (*channel)->submit(request);
  bool armed = false;
  // The loop does not turn meanwhile: only arm() can take it.
  while (request.answers == 0) armed = poller->arm();
  co_return armed;
}

// Each answer on one channel sends a request on the other, so that arming one finds work for another that is armed.
struct PingPong {
  static constexpr int kRounds = 300;
  struct Side : Counted {
    PingPong* game = nullptr;
    Channel* other = nullptr;
    Side* next = nullptr;
  } sides[2];
  int left = kRounds;
  reactor::Completion<bool> over;
};

Task<Result<bool>> ping_pong(Reactor& reactor, Bdev& bdev) {
  auto first = co_await bdev.open_channel(reactor);
  if (!first) co_return fail(first.error());
  auto second = co_await bdev.open_channel(reactor);
  if (!second) co_return fail(second.error());
  PingPong game;
  for (int i = 0; i < 2; ++i) {
    game.sides[i].game = &game;
    game.sides[i].other = (i == 0 ? second : first)->get();
    game.sides[i].next = &game.sides[1 - i];
    game.sides[i].complete = [](IoRequest& request) {
      auto& side = static_cast<PingPong::Side&>(request);
      if (--side.game->left == 0) return side.game->over.set(true);
      side.other->submit(*side.next);
    };
  }
  (*first)->submit(game.sides[0]);
  co_return co_await game.over;
}

// A channel that goes away in the answer to its last request.
struct Leaver : Counted {
  std::unique_ptr<Channel> channel;
  reactor::Completion<bool> gone;
};

Task<Result<bool>> leave(Reactor& reactor, Bdev& bdev) {
  for (int round = 0; round < 20; ++round) {
    auto channel = co_await bdev.open_channel(reactor);
    if (!channel) co_return fail(channel.error());
    Leaver leaver;
    leaver.channel = std::move(*channel);
    leaver.complete = [](IoRequest& request) {
      auto& mine = static_cast<Leaver&>(request);
      mine.channel.reset();
      mine.gone.set(true);
    };
    leaver.channel->submit(leaver);
    co_await leaver.gone;
    co_await reactor.yield();
  }
  co_return true;
}

// A ramfs that this thread alone sees: a file system that knows neither O_DIRECT nor fallocate().
struct Ramfs {
  Ramfs() {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return;
    if (mkdtemp(path) == nullptr) return;
    mounted = mount("ramfs", path, "ramfs", 0, nullptr) == 0;
  }
  ~Ramfs() {
    if (mounted) umount(path);
    rmdir(path);
  }
  char path[32] = "/var/tmp/pollux-ramfs-XXXXXX";
  bool mounted = false;
};

const auto kKinds = boost::unit_test::data::make({Spec::Kind::kRam, Spec::Kind::kUring});

}  // namespace

BOOST_DATA_TEST_CASE_F(Fixture, what_is_written_is_read_back_on_another_reactor, kKinds, kind) {
  auto bdev = open_kind(kind);
  for (auto [offset, length] :
       {std::pair<std::uint64_t, std::size_t>{0, 512}, {512, 4096}, {kSize - 64 * kKiB, 64 * kKiB}}) {
    for (std::size_t shift : {0, 1, 16}) {
      auto same = call(reactors->main(), round_trip(*reactors, *bdev, offset, length, shift));
      BOOST_REQUIRE_MESSAGE(same.has_value(), (same ? "" : same.error().message));
      BOOST_TEST(*same);
    }
  }
}

BOOST_DATA_TEST_CASE_F(Fixture, unmapped_and_zeroed_ranges_read_as_zeros_and_their_neighbours_stay, kKinds, kind) {
  auto bdev = open_kind(kind);
  for (bool by_unmap : {true, false}) {
    auto right = call(reactors->at(1), zeroed(reactors->at(1), *bdev, by_unmap));
    BOOST_REQUIRE_MESSAGE(right.has_value(), (right ? "" : right.error().message));
    BOOST_TEST(*right);
  }
}

BOOST_FIXTURE_TEST_CASE(a_file_on_tmpfs_reads_as_zeros_where_it_was_zeroed, Fixture) {
  struct statfs shm {};
  BOOST_REQUIRE(statfs("/dev/shm", &shm) == 0);
  BOOST_REQUIRE(shm.f_type == TMPFS_MAGIC);
  file = "/dev/shm/pollux-bdev-" + std::to_string(getpid());
  auto bdev = open_kind(Spec::Kind::kUring);
  for (bool by_unmap : {true, false}) {
    const auto right = call(reactors->at(1), zeroed(reactors->at(1), *bdev, by_unmap));
    BOOST_REQUIRE_MESSAGE(right.has_value(), (right ? "" : right.error().message));
    BOOST_TEST(*right);
  }
  const auto right = call(reactors->at(1), zeroed_at_length(reactors->at(1), *bdev));
  BOOST_REQUIRE_MESSAGE(right.has_value(), (right ? "" : right.error().message));
  BOOST_TEST(*right);
}

BOOST_FIXTURE_TEST_CASE(a_file_system_without_o_direct_and_fallocate_will_do, Fixture) {
  const Ramfs ramfs;
  if (!ramfs.mounted) {
    BOOST_TEST_MESSAGE("skipped: mounting a ramfs needs root");
    return;
  }
  auto bdev = make_uring_bdev(std::string(ramfs.path) + "/pool.img", kSize);
  BOOST_REQUIRE_MESSAGE(bdev.has_value(), (bdev ? "" : bdev.error().message));
  auto right = call(reactors->at(1), zeroed_at_length(reactors->at(1), **bdev));
  BOOST_REQUIRE_MESSAGE(right.has_value(), (right ? "" : right.error().message));
  BOOST_TEST(*right);
  // What cannot be unmapped stays, without an error.
  const auto stays = call(reactors->at(1), zeroed(reactors->at(1), **bdev, true));
  BOOST_REQUIRE_MESSAGE(stays.has_value(), (stays ? "" : stays.error().message));
  BOOST_TEST(!*stays);
}

BOOST_DATA_TEST_CASE_F(Fixture, more_requests_than_the_ring_holds_all_complete, kKinds, kind) {
  auto bdev = open_kind(kind);
  auto failed = call(reactors->at(1), burst(reactors->at(1), *bdev));
  BOOST_REQUIRE(failed.has_value());
  BOOST_TEST(*failed == 0);
}

BOOST_DATA_TEST_CASE_F(Fixture, ranges_past_the_end_and_odd_ones_are_invalid, kKinds, kind) {
  auto bdev = open_kind(kind);
  for (auto [offset, length] : {std::pair<std::uint64_t, std::uint64_t>{kSize, 512},
                                {kSize - 512, 1024},
                                {100, 512},
                                {0, 100},
                                {UINT64_MAX - 511, 1024}}) {
    auto status = call(reactors->main(), read_at(reactors->main(), *bdev, offset, length));
    BOOST_REQUIRE(status.has_value());
    BOOST_CHECK(*status == IoStatus::kInvalid);
  }
}

BOOST_FIXTURE_TEST_CASE(arming_that_took_a_completion_does_not_let_the_reactor_sleep, Fixture) {
  auto bdev = open_kind(Spec::Kind::kUring);
  for (int i = 0; i < 20; ++i) {
    auto armed = call(reactors->at(0), armed_over_a_completion(reactors->at(0), *bdev));
    BOOST_REQUIRE_MESSAGE(armed.has_value(), (armed ? "" : armed.error().message));
    BOOST_TEST(!*armed);
  }
}

BOOST_FIXTURE_TEST_CASE(two_channels_on_one_reactor_that_sleeps_at_once_wake_each_other, Fixture) {
  auto bdev = open_kind(Spec::Kind::kUring);
  auto eager = ReactorGroup::start({{.id = 2, .idle_after_us = 0}});
  BOOST_REQUIRE(eager.has_value());
  constexpr std::uint64_t kDeadlineMs = 30'000;
  const auto played = call((*eager)->main(), ping_pong((*eager)->main(), *bdev), kDeadlineMs);
  BOOST_REQUIRE_MESSAGE(played.has_value(), (played ? "" : played.error().message));
}

BOOST_DATA_TEST_CASE_F(Fixture, a_channel_may_go_in_the_answer_to_its_last_request, kKinds, kind) {
  auto bdev = open_kind(kind);
  const auto left = call(reactors->at(0), leave(reactors->at(0), *bdev));
  BOOST_TEST(left.has_value());
}

BOOST_FIXTURE_TEST_CASE(a_file_that_grew_tells_its_listeners_and_can_be_used_to_its_new_end, Fixture) {
  auto bdev = open_kind(Spec::Kind::kUring);
  std::uint64_t told = 0;
  const auto token = bdev->on_resize([&told](std::uint64_t bytes) { told = bytes; });
  bdev->refresh_size();
  BOOST_TEST(told == 0U);
  BOOST_REQUIRE(truncate(file.c_str(), 2 * kSize) == 0);
  bdev->refresh_size();
  BOOST_TEST(told == 2 * kSize);
  BOOST_TEST(bdev->size_bytes() == 2 * kSize);
  const auto status = call(reactors->at(0), read_at(reactors->at(0), *bdev, 2 * kSize - 4096, 4096));
  BOOST_REQUIRE(status.has_value());
  BOOST_TEST((*status == IoStatus::kOk));
  // One that shrank keeps its size: what lies beyond fails by itself.
  BOOST_REQUIRE(truncate(file.c_str(), kSize) == 0);
  bdev->refresh_size();
  BOOST_TEST(bdev->size_bytes() == 2 * kSize);
}

BOOST_FIXTURE_TEST_CASE(a_file_in_use_is_busy_and_free_again_after_closing, Fixture) {
  auto first = open_kind(Spec::Kind::kUring);
  auto second = make_uring_bdev(file, 0);
  BOOST_REQUIRE(!second.has_value());
  BOOST_CHECK(second.error().code == ErrorCode::kBusy);
  first.reset();
  BOOST_TEST(make_uring_bdev(file, 0).has_value());
}

// Opens the file, has a channel that has worked, says so and waits to be killed.
[[noreturn]] void hold(const std::string& file, int tell) {
  auto own = ReactorGroup::start({{.id = 0}});
  auto bdev = make_uring_bdev(file, kSize);
  if (!own || !bdev) _exit(1);
  auto channel = call((*own)->at(0), [](Bdev& device, Reactor& reactor) -> Task<Result<std::unique_ptr<Channel>>> {
    co_await reactor.enter();
    auto opened = co_await device.open_channel(reactor);
    if (opened && co_await flush(**opened) != IoStatus::kOk) _exit(1);
    co_return opened;
  }(**bdev, (*own)->at(0)));
  if (!channel || ::write(tell, "x", 1) != 1) _exit(1);
  while (true) pause();
}

// A service that is started again waits for this.
BOOST_FIXTURE_TEST_CASE(a_file_is_free_as_soon_as_whoever_held_it_was_killed, Fixture) {
  for (int life = 0; life < 5; ++life) {
    int ready[2];
    BOOST_REQUIRE(pipe(ready) == 0);
    const pid_t child = fork();
    if (child == 0) hold(file, ready[1]);
    close(ready[1]);
    char byte;
    BOOST_REQUIRE(::read(ready[0], &byte, 1) == 1);
    close(ready[0]);
    BOOST_TEST(!make_uring_bdev(file, kSize).has_value());
    kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    BOOST_TEST(make_uring_bdev(file, kSize).has_value());
  }
}

BOOST_FIXTURE_TEST_CASE(what_is_not_there_or_not_absolute_is_refused, Fixture) {
  auto missing = make_uring_bdev(file, 0);
  BOOST_REQUIRE(!missing.has_value());
  BOOST_CHECK(missing.error().code == ErrorCode::kNotFound);
  auto relative = make_uring_bdev("pool.img", kSize);
  BOOST_REQUIRE(!relative.has_value());
  BOOST_CHECK(relative.error().code == ErrorCode::kInvalid);
  auto odd = make_ram_bdev("ram", 1000);
  BOOST_REQUIRE(!odd.has_value());
  BOOST_CHECK(odd.error().code == ErrorCode::kInvalid);
}

BOOST_AUTO_TEST_CASE(resize_listeners_hear_until_their_token_is_gone) {
  struct Growing : Bdev {
    std::string label = "growing";
    std::uint64_t bytes = 4096;
    const std::string& name() const override { return label; }
    std::uint64_t size_bytes() const override { return bytes; }
    std::uint32_t block_bytes() const override { return 512; }
    Opening open_channel(Reactor&) override { co_return fail(ErrorCode::kUnsupported, "no I/O"); }
    void grow() {
      bytes *= 2;
      notify_resized();
    }
  } bdev;
  std::uint64_t heard = 0;
  auto token = bdev.on_resize([&](std::uint64_t bytes) { heard = bytes; });
  bdev.grow();
  BOOST_TEST(heard == 8192u);
  token.reset();
  bdev.grow();
  BOOST_TEST(heard == 8192u);
}

}  // namespace pollux::bdev
