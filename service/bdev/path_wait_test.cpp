#include "bdev/path_wait.h"

#include <boost/test/unit_test.hpp>

#include <array>
#include <chrono>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "base/units.h"
#include "bdev/losing_path.h"
#include "bdev/ram.h"
#include "bdev/verified_load.h"
#include "reactor/reactor.h"

namespace pollux::bdev {
namespace {

using reactor::call;
using reactor::Reactor;
using reactor::ReactorGroup;
using reactor::Task;
using test::LosingPath;
using namespace std::chrono_literals;

struct Asked : PathWait::Request {
  PathWait* wait = nullptr;
  int answers = 0;
  std::array<std::byte, 512> data{};
  iovec piece{data.data(), data.size()};

  explicit Asked(std::uint64_t offset) {
    op = IoOp::kWrite;
    offset_bytes = offset;
    length_bytes = data.size();
    iov = &piece;
    iov_count = 1;
    complete = on_complete;
  }
  // As a front end has it.
  static void on_complete(IoRequest& io) {
    auto& self = static_cast<Asked&>(io);
    if (self.status == IoStatus::kPathLost) return self.wait->hold(self);
    ++self.answers;
  }
};

struct Fixture {
  Fixture() {
    auto started = ReactorGroup::start({{.id = 0}});
    BOOST_REQUIRE(started.has_value());
    reactors = std::move(*started);
    auto ram = make_ram_bdev("ram", kMiB);
    BOOST_REQUIRE(ram.has_value());
    device = std::make_shared<LosingPath>(std::move(*ram));
  }
  Reactor& home() { return reactors->main(); }

  // Submits two requests, waits until both have lost the path `losses` times, goes on with `then`, and waits for the
  // answers.
  template <typename Then>
  Task<Result<std::array<IoStatus, 2>>> ask(std::chrono::milliseconds patience, unsigned losses, Then then) {
    auto channel = co_await device->open_channel(home());
    if (!channel) co_return fail(channel.error());
    PathWait wait(home(), **channel, patience);
    Asked first(0), second(512);
    for (Asked* each : {&first, &second}) {
      each->wait = &wait;
      (*channel)->submit(*each);
    }
    while (device->lost < 2 * losses) co_await home().sleep_us(1000);
    then(wait);
    while (first.answers == 0 || second.answers == 0) co_await home().sleep_us(1000);
    for (Asked* each : {&first, &second}) {
      if (each->answers != 1 || each->complete != &Asked::on_complete) {
        co_return fail(ErrorCode::kInternal, "answered twice, or not as it was");
      }
    }
    co_return std::array{first.status, second.status};
  }
  template <typename Then>
  void check(IoStatus expected, std::chrono::milliseconds patience, unsigned losses, Then then) {
    const auto statuses = call(home(), ask(patience, losses, then));
    BOOST_REQUIRE_MESSAGE(statuses.has_value(), (statuses ? "" : statuses.error().message));
    for (const IoStatus status : *statuses) BOOST_CHECK(status == expected);
  }

  std::unique_ptr<ReactorGroup> reactors;
  std::shared_ptr<LosingPath> device;
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(path_wait, Fixture)

BOOST_AUTO_TEST_CASE(requests_go_through_when_the_path_is_back) {
  check(IoStatus::kOk, 60s, 3, [this](PathWait&) { device->answer = IoStatus::kOk; });
  BOOST_TEST(device->lost >= 6U);
}

BOOST_AUTO_TEST_CASE(requests_fail_when_the_path_stays_away) {
  constexpr auto kPatience = 300ms;
  const std::uint64_t begin_ns = monotonic_ns();
  check(IoStatus::kIoError, kPatience, 1, [](PathWait&) {});
  BOOST_TEST(monotonic_ns() - begin_ns >= static_cast<std::uint64_t>(kPatience / 1ns));
}

BOOST_AUTO_TEST_CASE(another_error_is_the_answer) {
  check(IoStatus::kMediumError, 60s, 1, [this](PathWait&) { device->answer = IoStatus::kMediumError; });
}

BOOST_AUTO_TEST_CASE(what_is_given_up_fails_at_once) {
  check(IoStatus::kIoError, 1h, 1, [](PathWait& wait) { wait.give_up(); });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace pollux::bdev
