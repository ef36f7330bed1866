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

// How many reads may start from one instant to another when more are always waiting.
std::uint64_t starts(QosLimiter& limiter, std::uint64_t from_ns, std::uint64_t to_ns) {
  const auto one = request(bdev::IoOp::kRead, 4096);
  std::uint64_t now = from_ns;
  std::uint64_t count = 0;
  while (true) {
    now = std::max(now, limiter.book(one, now));
    if (now >= to_ns) return count;
    ++count;
  }
}

// At a thousand a second the ordinary credit is worth five, and the last booking of a span counts in the next.
constexpr std::uint64_t kSlack = 8;

BOOST_AUTO_TEST_CASE(a_burst_goes_at_its_rate_until_what_was_saved_up_is_used) {
  constexpr std::uint64_t kStart = 1000 * kSecondNs;
  const auto near = [](std::uint64_t count, std::uint64_t expected) {
    return count + kSlack >= expected && count <= expected + kSlack;
  };
  QosLimiter limiter;
  for (const bool by_bytes : {false, true}) {
    if (by_bytes) {
      limiter.set({.read_bytes_per_s = 100 * 4096, .read_bytes_burst = {.per_s = 1000 * 4096, .length_s = 9}});
    } else {
      limiter.set({.total_iops = 100, .total_iops_burst = {.per_s = 1000, .length_s = 9}});
    }
    // 9,000 saved up, and 100 more each second: at 1,000 a second that is used up after 10 s.
    for (std::uint64_t second = 0; second < 10; ++second) {
      const std::uint64_t count = starts(limiter, kStart + second * kSecondNs, kStart + (second + 1) * kSecondNs);
      BOOST_TEST(near(count, 1000), count << " in second " << second);
    }
    std::uint64_t count = starts(limiter, kStart + 11 * kSecondNs, kStart + 13 * kSecondNs);
    BOOST_TEST(near(count, 200 + 100), count << " afterwards");
    // 20 s without a request save up 2,000.
    count = starts(limiter, kStart + 33 * kSecondNs, kStart + 34 * kSecondNs);
    BOOST_TEST(near(count, 1000), count << " after a pause");
    count = starts(limiter, kStart + 34 * kSecondNs, kStart + 36 * kSecondNs);
    BOOST_TEST(near(count, 1000 + 300), count << " in the two seconds after that");
  }
}

BOOST_AUTO_TEST_CASE(a_burst_of_one_second_goes_at_any_rate) {
  constexpr std::uint64_t kStart = 1000 * kSecondNs;
  QosLimiter limiter;
  limiter.set({.read_iops = 100, .read_iops_burst = {.per_s = 2000, .length_s = 1}});
  const std::uint64_t at_once = starts(limiter, kStart, kStart + kSecondNs / 1000);
  BOOST_TEST(at_once >= 2000U);
  BOOST_TEST(at_once <= 2000U + kSlack);
  const std::uint64_t later = starts(limiter, kStart + kSecondNs, kStart + 2 * kSecondNs);
  BOOST_TEST(later <= 200U + kSlack);
  // Without the burst there is none of that.
  limiter.set({.read_iops = 100});
  BOOST_TEST(starts(limiter, kStart, kStart + kSecondNs / 1000) <= kSlack);
}

BOOST_AUTO_TEST_CASE(no_limit_burst_or_request_is_too_large_to_count) {
  constexpr std::uint64_t kMost = INT64_MAX;
  QosLimiter limiter;
  limiter.set({.read_iops = 1, .total_bytes_per_s = 1, .read_iops_burst = {.per_s = kMost, .length_s = 3600}});
  std::uint64_t last = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t due = limiter.book(request(bdev::IoOp::kRead, kMost), kSecondNs);
    BOOST_REQUIRE(due >= last);
    last = due;
  }
  BOOST_TEST(last > kSecondNs);
}

BOOST_AUTO_TEST_CASE(what_continues_a_request_counts_its_bytes_alone) {
  constexpr std::uint64_t kNow = kSecondNs;
  for (const auto op : {bdev::IoOp::kRead, bdev::IoOp::kWrite}) {
    auto rest = request(op, 4096);
    rest.flags = bdev::IoRequest::kContinues;
    for (const QosLimits& ops : {QosLimits{.read_iops = 1, .write_iops = 1}, QosLimits{.total_iops = 1}}) {
      QosLimiter limiter;
      limiter.set(ops);
      for (unsigned i = 0; i < 10; ++i) BOOST_TEST(limiter.book(rest, kNow) <= kNow);
      limiter.book(request(op, 4096), kNow);
      BOOST_TEST(limiter.book(rest, kNow) <= kNow);
      BOOST_TEST(limiter.book(request(op, 4096), kNow) > kNow);
    }
    QosLimiter limiter;
    limiter.set({.total_bytes_per_s = 4096});
    limiter.book(rest, kNow);
    BOOST_TEST(limiter.book(rest, kNow) > kNow);
  }
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
