#include "bdev/switch.h"

#include <boost/test/unit_test.hpp>

#include <algorithm>
#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/units.h"
#include "bdev/held_opening.h"
#include "bdev/layer.h"
#include "bdev/ram.h"
#include "bdev/verified_load.h"
#include "reactor/reactor.h"

namespace pollux::bdev {
namespace {

using reactor::call;
using reactor::Reactor;
using reactor::ReactorGroup;
using test::Load;
using test::Users;

constexpr std::uint64_t kDeviceBytes = 4 * kMiB;
constexpr std::uint64_t kPatienceUs = 60'000'000;

// How many of a test's stacks have requests under way, and the most that had any at one time.
class Traffic {
 public:
  void enter(int& in_flight) {
    const std::lock_guard lock(mutex_);
    if (in_flight++ == 0) most_ = std::max(most_, ++stacks_);
  }
  void leave(int& in_flight) {
    const std::lock_guard lock(mutex_);
    if (--in_flight == 0) --stacks_;
  }
  int most() const {
    const std::lock_guard lock(mutex_);
    return most_;
  }

 private:
  mutable std::mutex mutex_;
  int stacks_ = 0;
  int most_ = 0;
};

// A layer whose requests end in the next turn of their reactor, if it lets them.
class Slow : public Layer {
 public:
  struct Options {
    bool opens = true;
    bool answers = true;
    std::uint64_t size_bytes = kDeviceBytes;
    std::uint32_t block_bytes = 512;
    bool read_only = false;
    bool unmaps = true;
    bool extents = false;
    std::uint32_t frame_bytes = sizeof(void*) * 2;
    // Within open_channel().
    std::function<reactor::Task<void>(Reactor&)> on_open;
  };
  Slow(std::shared_ptr<Bdev> below, Options options, Traffic& traffic)
      : Layer(std::move(below), options.frame_bytes), options_(options), traffic_(traffic), answers(options.answers) {}

  std::uint64_t size_bytes() const override { return options_.size_bytes; }
  std::uint32_t block_bytes() const override { return options_.block_bytes; }
  bool read_only() const override { return options_.read_only; }
  bool supports_unmap() const override { return options_.unmaps; }
  bool reports_extents() const override { return options_.extents; }
  Opening open_channel(Reactor& reactor) override;
  void stop_writing() override { writing_stopped = true; }

 private:
  class SlowChannel;
  const Options options_;
  Traffic& traffic_;
  int in_flight_ = 0;  // the traffic's

 public:
  std::atomic<bool> answers;
  // There is a request that it has not answered for that reason.
  std::atomic<bool> keeps{false};
  std::atomic<bool> writing_stopped{false};
  std::atomic<int> channels{0};
};

class Slow::SlowChannel : public Channel {
  struct Frame {
    SlowChannel* channel;
    void (*complete)(IoRequest&);
  };

 public:
  SlowChannel(Slow& layer, Reactor& reactor, std::unique_ptr<Channel> below)
      : layer_(layer), reactor_(reactor), below_(std::move(below)) {
    turn_.channel = this;
    turn_.run = [](reactor::Message& message) { static_cast<Turn&>(message).channel->answer(); };
  }
  ~SlowChannel() override { --layer_.channels; }

  void submit(IoRequest& request) override {
    layer_.traffic_.enter(layer_.in_flight_);
    request.push_frame(Frame{this, request.complete});
    request.complete = [](IoRequest& done) {
      SlowChannel& self = *done.top_frame<Frame>().channel;
      self.done_.push_back(&done);
      if (!std::exchange(self.waits_, true)) self.reactor_.next_turn(self.turn_);
    };
    below_->submit(request);
  }

 private:
  struct Turn : reactor::Message {
    SlowChannel* channel = nullptr;
  };
  void answer() {
    if (!layer_.answers) {
      layer_.keeps = true;
      return reactor_.next_turn(turn_);
    }
    waits_ = false;
    for (IoRequest* request : std::exchange(done_, {})) {
      request->complete = request->pop_frame<Frame>().complete;
      layer_.traffic_.leave(layer_.in_flight_);
      request->complete(*request);
    }
  }

  Slow& layer_;
  Reactor& reactor_;
  std::unique_ptr<Channel> below_;
  std::vector<IoRequest*> done_;
  bool waits_ = false;
  Turn turn_;
};

Opening Slow::open_channel(Reactor& reactor) {
  if (options_.on_open) co_await options_.on_open(reactor);
  if (!options_.opens) co_return fail(ErrorCode::kIoError, "no channel");
  auto channel = co_await below().open_channel(reactor);
  if (!channel) co_return fail(std::move(channel.error()));
  ++channels;
  co_return std::make_unique<SlowChannel>(*this, reactor, std::move(*channel));
}

struct Fixture {
  Fixture() {
    auto started = ReactorGroup::start({{.id = 0}, {.id = 1}});
    BOOST_REQUIRE(started.has_value());
    reactors = std::move(*started);
    auto made = make_ram_bdev("ram", kDeviceBytes);
    BOOST_REQUIRE(made.has_value());
    ram = std::move(*made);
    first = stack();
    auto top = Switch::make(first, reactors->main());
    BOOST_REQUIRE(top.has_value());
    device = std::move(*top);
  }
  std::shared_ptr<Slow> stack(Slow::Options options = {}) { return std::make_shared<Slow>(ram, options, traffic); }
  Status exchange(std::shared_ptr<Bdev> next, std::uint64_t patience_us = kPatienceUs) {
    return call(reactors->main(), device->exchange(std::move(next), patience_us));
  }
  ErrorCode refusal(std::shared_ptr<Bdev> next) {
    const auto exchanged = exchange(std::move(next));
    BOOST_REQUIRE(!exchanged.has_value());
    return exchanged.error().code;
  }

  Traffic traffic;
  std::unique_ptr<ReactorGroup> reactors;
  std::shared_ptr<Bdev> ram;
  std::shared_ptr<Slow> first;
  std::shared_ptr<Switch> device;
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(switching, Fixture)

BOOST_AUTO_TEST_CASE(a_thousand_exchanges_under_load_on_two_reactors_lose_nothing_and_mix_nothing) {
  Load load;
  Users one(reactors->at(0), *device, load, 0);
  Users two(reactors->at(1), *device, load, kMiB);
  BOOST_REQUIRE(load.reaches(2));
  auto now = first;
  for (int i = 0; i < 1000; ++i) {
    auto next = stack();
    BOOST_REQUIRE(exchange(next).has_value());
    // All of the old one is gone, and the load is on the new one.
    BOOST_REQUIRE(now->channels == 0);
    BOOST_REQUIRE(next->channels == 2);
    now = std::move(next);
  }
  BOOST_REQUIRE(load.reaches(load.rounds + 2));
  load.stop = true;
  for (auto* each : {&one, &two}) {
    const auto ended = each->get();
    BOOST_TEST(ended.has_value(), (ended ? "" : ended.error().message));
  }
  BOOST_TEST(traffic.most() == 1);
  BOOST_TEST(now->channels == 0);
}

// Also those that come while an exchange is under way.
BOOST_AUTO_TEST_CASE(channels_come_and_go_while_the_stack_is_exchanged) {
  std::atomic<bool> stop{false};
  std::vector<std::future<Status>> users;
  for (unsigned i = 0; i < 2; ++i) {
    users.push_back(std::async(std::launch::async, [&, i]() -> Status {
      // At least once: on a busy machine the exchanges may be over first.
      do {
        Load once;
        once.stop = true;
        POLLUX_TRY(Users(reactors->at(i), *device, once, i * kMiB).get());
      } while (!stop);
      return {};
    }));
  }
  bool all = true;
  for (int i = 0; i < 100; ++i) all = exchange(stack()).has_value() && all;
  stop = true;
  BOOST_TEST(all);
  for (auto& user : users) {
    const auto ended = user.get();
    BOOST_TEST(ended.has_value(), (ended ? "" : ended.error().message));
  }
  BOOST_TEST(traffic.most() == 1);
}

BOOST_AUTO_TEST_CASE(a_channel_that_is_opened_during_an_exchange_is_part_of_it) {
  Reactor& away = reactors->at(1);
  auto early = call(away, test::open_on(away, *device));
  BOOST_REQUIRE(early.has_value());
  Result<std::unique_ptr<Channel>> late;
  const auto next = stack({.on_open = [&](Reactor& reactor) -> reactor::Task<void> {
    if (late.has_value() && *late == nullptr) late = co_await device->open_channel(reactor);
  }});
  BOOST_REQUIRE(exchange(next).has_value());
  BOOST_REQUIRE(late.has_value());
  BOOST_TEST(first->channels == 0);
  BOOST_TEST(next->channels == 2);
  for (auto* channel : {&early, &late}) BOOST_TEST(call(away, test::close_on(away, std::move(**channel))).has_value());
  BOOST_TEST(next->channels == 0);
}

// Neither the exchange nor the new stack's requests wait for it; the old stack's channel, or its error, is of no use.
BOOST_AUTO_TEST_CASE(a_channel_that_opens_for_longer_than_an_exchange_takes_is_one_of_the_new_stack) {
  Reactor& away = reactors->at(1);
  for (const bool opens : {true, false}) {
    const auto old = stack({.opens = opens});
    const auto held = std::make_shared<test::HeldOpening>(old);
    auto top = Switch::make(held, reactors->main());
    BOOST_REQUIRE(top.has_value());
    reactor::Call<std::unique_ptr<Channel>> opening(away, open_channel(*top, away));
    while (held->begun == 0) std::this_thread::yield();
    const auto next = stack();
    const auto exchanged = call(reactors->main(), (*top)->exchange(next, kPatienceUs));
    BOOST_TEST(exchanged.has_value(), (exchanged ? "" : exchanged.error().message));
    held->held = false;
    auto channel = opening.wait();
    BOOST_REQUIRE_MESSAGE(channel.has_value(), (channel ? "" : channel.error().message));
    BOOST_TEST(old->channels == 0);
    BOOST_TEST(next->channels == 1);
    BOOST_TEST(call(away, test::close_on(away, std::move(*channel))).has_value());
  }
}

BOOST_AUTO_TEST_CASE(a_stack_that_does_not_open_leaves_the_old_one_in_place) {
  Load load;
  Users one(reactors->at(0), *device, load, 0);
  Users two(reactors->at(1), *device, load, kMiB);
  BOOST_REQUIRE(load.reaches(2));
  for (int i = 0; i < 50; ++i) {
    BOOST_CHECK(refusal(stack({.opens = false})) == ErrorCode::kIoError);
    BOOST_TEST(first->channels == 2);
  }
  BOOST_REQUIRE(load.reaches(load.rounds + 2));
  load.stop = true;
  BOOST_TEST(one.get().has_value());
  BOOST_TEST(two.get().has_value());
}

BOOST_AUTO_TEST_CASE(requests_that_do_not_end_leave_the_old_stack_in_place) {
  Load load;
  Users one(reactors->at(1), *device, load, 0);
  BOOST_REQUIRE(load.reaches(1));
  first->answers = false;
  while (!first->keeps) std::this_thread::yield();
  auto next = stack();
  const auto exchanged = exchange(next, 20'000);
  first->answers = true;
  BOOST_REQUIRE(!exchanged.has_value());
  BOOST_CHECK(exchanged.error().code == ErrorCode::kBusy);
  BOOST_TEST(next->channels == 0);
  BOOST_REQUIRE(load.reaches(load.rounds + 2));
  BOOST_TEST(exchange(next).has_value());
  BOOST_REQUIRE(load.reaches(load.rounds + 2));
  load.stop = true;
  BOOST_TEST(one.get().has_value());
}

BOOST_AUTO_TEST_CASE(a_stack_that_is_not_what_the_users_were_told_of_is_refused) {
  BOOST_CHECK(refusal(stack({.size_bytes = kDeviceBytes - 4096})) == ErrorCode::kInvalid);
  BOOST_CHECK(refusal(stack({.block_bytes = 4096})) == ErrorCode::kInvalid);
  BOOST_CHECK(refusal(stack({.read_only = true})) == ErrorCode::kInvalid);
  BOOST_CHECK(refusal(stack({.unmaps = false})) == ErrorCode::kInvalid);
  BOOST_CHECK(refusal(stack({.extents = true})) == ErrorCode::kInvalid);
  BOOST_CHECK(refusal(stack({.frame_bytes = Switch::kRoomBytes + 8})) == ErrorCode::kUnsupported);
  BOOST_TEST(!Switch::make(stack({.frame_bytes = Switch::kRoomBytes + 8}), reactors->main()).has_value());
  BOOST_TEST(check_stack(*device).has_value());
}

BOOST_AUTO_TEST_CASE(a_larger_stack_tells_the_users_of_its_size) {
  std::atomic<std::uint64_t> told{0};
  const auto token = device->on_resize([&](std::uint64_t bytes) { told = bytes; });
  BOOST_REQUIRE(exchange(stack()).has_value());
  BOOST_TEST(told == 0U);
  BOOST_REQUIRE(exchange(stack({.size_bytes = 2 * kDeviceBytes})).has_value());
  BOOST_TEST(told == 2 * kDeviceBytes);
  BOOST_TEST(device->size_bytes() == 2 * kDeviceBytes);
  BOOST_CHECK(refusal(stack()) == ErrorCode::kInvalid);
}

BOOST_AUTO_TEST_CASE(what_was_stopped_from_writing_stays_so_on_the_next_stack) {
  device->stop_writing();
  BOOST_TEST(first->writing_stopped);
  const auto next = stack();
  BOOST_REQUIRE(exchange(next).has_value());
  BOOST_TEST(next->writing_stopped);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace pollux::bdev
