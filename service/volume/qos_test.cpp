#include "volume/qos.h"

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <future>

#include "volume/test_support.h"
#include "volume/volume_service.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;
using reactor::call;

namespace {

constexpr std::uint64_t kSecondNs = 1'000'000'000;

bdev::IoRequest request(bdev::IoOp op, std::uint64_t bytes) {
  bdev::IoRequest made;
  made.op = op;
  made.length_bytes = bytes;
  return made;
}

// How many requests of this kind may start within a second when more are always waiting.
std::uint64_t starts_in_a_second(const QosLimits& limits, bdev::IoOp op, std::uint64_t bytes) {
  QosLimiter limiter;
  limiter.set(limits);
  const auto one = request(op, bytes);
  std::uint64_t now = 10 * kSecondNs;
  std::uint64_t count = 0;
  while (true) {
    const std::uint64_t due = limiter.book(one, now);
    now = std::max(now, due);
    if (now >= 11 * kSecondNs) return count;
    ++count;
  }
}

struct Fixture {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(2);
  VolumeService service{*reactors};
  Uuid id = Uuid::random();
  std::shared_ptr<bdev::Bdev> device;

  Fixture() {
    run(service.create_pool({.id = Uuid::random(),
                             .name = "pool",
                             .bdev = {.kind = bdev::Spec::Kind::kRam, .path = {}, .size_bytes = 64 * kMiB}}));
    run(service.create_volume("pool", {.id = id, .name = "one", .size_bytes = 16 * kMiB}));
    device = run(service.open(id));
  }
  ~Fixture() {
    device.reset();
    run(service.close());
  }
  template <typename T>
  T run(reactor::Task<Result<T>> task) {
    return must(call(reactors->main(), std::move(task)));
  }
  // `count` writes of 4 KiB on this reactor, four at a time; when the last was answered.
  std::future<std::chrono::steady_clock::time_point> writes(RemoteChannel& channel, int count) {
    return std::async(std::launch::async, [&channel, count] {
      const auto bytes = pattern(4096, 1);
      for (int i = 0; i < count; ++i) {
        if (channel.write(static_cast<std::uint64_t>(i) % 1024 * 4096, bytes) != bdev::IoStatus::kOk) {
          throw std::runtime_error("a write failed");
        }
      }
      return std::chrono::steady_clock::now();
    });
  }
};

reactor::Task<Status> hurry(RemoteChannel& channel) {
  co_await channel.reactor().enter();
  channel.channel().expedite();
  co_return Status{};
}

double seconds(std::chrono::steady_clock::duration span) {
  return std::chrono::duration<double>(span).count();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(qos)

BOOST_AUTO_TEST_CASE(any_rate_is_kept_to_within_its_credit) {
  const double credit = static_cast<double>(QosLimiter::kCreditNs) / static_cast<double>(kSecondNs);
  for (const std::uint64_t rate : {1U, 7U, 100U, 999U, 12'345U, 1'000'000U}) {
    BOOST_TEST_CONTEXT(rate << " a second") {
      const auto most = static_cast<std::uint64_t>(static_cast<double>(rate) * (1 + credit)) + 2;
      const std::uint64_t by_count = starts_in_a_second({.total_iops = rate}, bdev::IoOp::kRead, 4096);
      BOOST_TEST(by_count >= rate);
      BOOST_TEST(by_count <= most + rate / 500);
      const std::uint64_t by_bytes = starts_in_a_second({.write_bytes_per_s = rate * 4096}, bdev::IoOp::kWrite, 4096);
      BOOST_TEST(by_bytes >= rate);
      BOOST_TEST(by_bytes <= most + rate / 500);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_limit_counts_what_it_names_alone) {
  QosLimiter limiter;
  limiter.set({.read_iops = 1});
  constexpr std::uint64_t kNow = kSecondNs;
  limiter.book(request(bdev::IoOp::kRead, 512), kNow);
  BOOST_TEST(limiter.book(request(bdev::IoOp::kRead, 512), kNow) > kNow);
  BOOST_TEST(limiter.book(request(bdev::IoOp::kWrite, 512), kNow) <= kNow);
  BOOST_TEST(limiter.book(request(bdev::IoOp::kFlush, 0), kNow) <= kNow);
  limiter.set({.write_bytes_per_s = 4096});
  limiter.book(request(bdev::IoOp::kWrite, 4096), kNow);
  BOOST_TEST(limiter.book(request(bdev::IoOp::kWrite, 4096), kNow) > kNow);
  BOOST_TEST(limiter.book(request(bdev::IoOp::kUnmap, kGiB), kNow) <= kNow);
  BOOST_TEST(limiter.book(request(bdev::IoOp::kRead, kGiB), kNow) <= kNow);
  limiter.set({});
  BOOST_TEST(!limiter.active());
}

BOOST_FIXTURE_TEST_CASE(reactors_share_the_limit_of_a_volume, Fixture) {
  RemoteChannel first(*device, reactors->at(0));
  RemoteChannel second(*device, reactors->at(1));
  run(service.set_qos(id, {.write_iops = 200}));
  const auto begin = std::chrono::steady_clock::now();
  auto one = writes(first, 40);
  auto two = writes(second, 40);
  const auto end = std::max(one.get(), two.get());
  // 80 writes at 200 a second; the credit lets one or two go early.
  BOOST_TEST(seconds(end - begin) > 0.37);
  // Reads are free.
  std::vector<std::byte> back(4096);
  const auto reading = std::chrono::steady_clock::now();
  for (int i = 0; i < 50; ++i) BOOST_REQUIRE((first.read(0, back) == bdev::IoStatus::kOk));
  BOOST_TEST(seconds(std::chrono::steady_clock::now() - reading) < 0.25);
}

BOOST_FIXTURE_TEST_CASE(who_waits_goes_on_when_the_limit_is_lifted_or_the_channel_is_told_to_hurry, Fixture) {
  RemoteChannel channel(*device, reactors->at(1));
  run(service.set_qos(id, {.total_iops = 1}));
  const auto begin = std::chrono::steady_clock::now();
  auto waiting = writes(channel, 60);
  BOOST_REQUIRE((waiting.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout));
  run(service.set_qos(id, {}));
  BOOST_TEST(seconds(waiting.get() - begin) < 20);
  // A minute for each.
  run(service.set_qos(id, {.total_bytes_per_s = 64}));
  // Once for each that waits: what comes later waits again.
  for (int count : {2, 1}) {
    auto held = writes(channel, count);
    BOOST_REQUIRE((held.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout));
    const auto told = std::chrono::steady_clock::now();
    run(hurry(channel));
    BOOST_TEST(seconds(held.get() - told) < 20);
  }
}

BOOST_FIXTURE_TEST_CASE(what_was_told_to_hurry_counts_all_the_same, Fixture) {
  RemoteChannel channel(*device, reactors->at(1));
  run(service.set_qos(id, {.total_iops = 10}));
  writes(channel, 1).get();
  for (int i = 0; i < 10; ++i) {
    auto held = writes(channel, 1);
    while (held.wait_for(std::chrono::milliseconds(1)) == std::future_status::timeout) run(hurry(channel));
  }
  // Eleven were done in next to no time. The next has to wait for all of them.
  const auto begin = std::chrono::steady_clock::now();
  BOOST_TEST(seconds(writes(channel, 1).get() - begin) > 0.5);
}

BOOST_AUTO_TEST_SUITE_END()
