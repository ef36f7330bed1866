#include "bdev/bdev.h"

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>

#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <cstring>
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
    auto channel = bdev.open_channel(reactors.at(0));
    if (!channel) co_return fail(channel.error());
    POLLUX_CO_TRY(to_status(co_await write(**channel, offset, out.data() + shift, length, IoRequest::kFua), "write"));
    POLLUX_CO_TRY(to_status(co_await flush(**channel), "flush"));
  }
  co_await reactors.at(1).enter();
  {
    auto channel = bdev.open_channel(reactors.at(1));
    if (!channel) co_return fail(channel.error());
    POLLUX_CO_TRY(to_status(co_await read(**channel, offset, in.data() + shift, length), "read"));
  }
  co_return std::memcmp(in.data() + shift, out.data() + shift, length) == 0;
}

Task<Result<bool>> zeroed(Reactor& reactor, Bdev& bdev, bool by_unmap) {
  auto channel = bdev.open_channel(reactor);
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
  auto channel = bdev.open_channel(reactor);
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
  auto channel = bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  std::vector<unsigned char> buffer(64 * kKiB);
  co_return co_await read(**channel, offset, buffer.data(), length);
}

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

BOOST_FIXTURE_TEST_CASE(a_file_in_use_is_busy_and_free_again_after_closing, Fixture) {
  auto first = open_kind(Spec::Kind::kUring);
  auto second = make_uring_bdev(file, 0);
  BOOST_REQUIRE(!second.has_value());
  BOOST_CHECK(second.error().code == ErrorCode::kBusy);
  first.reset();
  BOOST_TEST(make_uring_bdev(file, 0).has_value());
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
    Result<std::unique_ptr<Channel>> open_channel(Reactor&) override { return fail(ErrorCode::kUnsupported, "no I/O"); }
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
