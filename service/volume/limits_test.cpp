// The layer of limits by itself, over a device in memory; and a volume whose stack is exchanged. What the limits are is
// in qos_test.cpp.

#include "volume/limits.h"

#include <boost/test/unit_test.hpp>

#include <atomic>
#include <future>
#include <memory>
#include <vector>

#include "bdev/ram.h"
#include "bdev/switch.h"
#include "bdev/verified_load.h"
#include "volume/test_support.h"
#include "volume/volume_service.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;
using reactor::call;

namespace {

// What a layer below sees of the requests, and whether it was told to hurry.
class Witness : public bdev::Layer {
 public:
  explicit Witness(std::shared_ptr<bdev::Bdev> below) : Layer(std::move(below), 0) {}
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    auto channel = co_await below().open_channel(reactor);
    if (!channel) co_return fail(std::move(channel.error()));
    co_return std::make_unique<WitnessChannel>(*this, std::move(*channel));
  }
  std::atomic<std::uint64_t> longest_held_ns{0};
  std::atomic<unsigned> requests{0};
  std::atomic<unsigned> expedited{0};

 private:
  class WitnessChannel : public bdev::Channel {
   public:
    WitnessChannel(Witness& layer, std::unique_ptr<bdev::Channel> below) : layer_(layer), below_(std::move(below)) {}
    void submit(bdev::IoRequest& request) override {
      ++layer_.requests;
      layer_.longest_held_ns = std::max(layer_.longest_held_ns.load(), request.held_ns);
      below_->submit(request);
    }
    void expedite() override {
      ++layer_.expedited;
      below_->expedite();
    }

   private:
    Witness& layer_;
    std::unique_ptr<bdev::Channel> below_;
  };
};

struct Fixture {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(1);
  reactor::Reactor& reactor = reactors->main();
  std::shared_ptr<Witness> witness = std::make_shared<Witness>(must(bdev::make_ram_bdev("ram", kMiB)));
  std::shared_ptr<Limits> limits = std::make_shared<Limits>(witness);
  std::unique_ptr<bdev::Channel> channel = must(call(reactor, bdev::test::open_on(reactor, *limits)));

  ~Fixture() { must(call(reactor, bdev::test::close_on(reactor, std::move(channel)))); }
};

struct Request : bdev::IoRequest {
  iovec piece{};
  std::vector<std::byte> data = std::vector<std::byte>(4096);
  reactor::Completion<bool> over;

  static void done(bdev::IoRequest& request) { static_cast<Request&>(request).over.set(true); }
  Request() {
    piece = {data.data(), data.size()};
    op = bdev::IoOp::kWrite;
    length_bytes = data.size();
    iov = &piece;
    iov_count = 1;
    complete = &done;
  }
  bool as_it_was() const { return complete == &done && framed_bytes == 0 && held_ns == 0; }
};

// Two at a time, of which the second waits.
reactor::Task<Result<bool>> two(bdev::Channel& channel) {
  Request first;
  Request second;
  channel.submit(first);
  channel.submit(second);
  co_await first.over;
  co_await second.over;
  co_return first.as_it_was() && second.as_it_was() && first.status == bdev::IoStatus::kOk &&
      second.status == bdev::IoStatus::kOk;
}

reactor::Task<Result<bool>> fails(bdev::Channel& channel) {
  Request beyond;
  beyond.offset_bytes = kMiB;
  channel.submit(beyond);
  co_await beyond.over;
  co_return beyond.as_it_was() && beyond.status == bdev::IoStatus::kInvalid;
}

// A write is held for an hour, and a flush is not.
reactor::Task<Result<bool>> hurried(bdev::Channel& channel, Witness& witness) {
  Request paid;
  Request held;
  channel.submit(paid);
  co_await paid.over;
  channel.submit(held);
  const unsigned before = witness.requests;
  const bool flushed = co_await bdev::flush(channel) == bdev::IoStatus::kOk;
  const bool kept = witness.requests == before + 1 && held.framed_bytes != 0;
  channel.expedite();
  co_await held.over;
  co_return flushed && kept && held.as_it_was() && witness.expedited == 1;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(limits)

BOOST_FIXTURE_TEST_CASE(a_request_passes_untouched_without_limits_and_says_how_long_it_was_held_with_them, Fixture) {
  BOOST_TEST(must(call(reactor, two(*channel))));
  BOOST_TEST(witness->longest_held_ns == 0U);
  limits->limiter().set({.write_iops = 50});
  BOOST_TEST(must(call(reactor, two(*channel))));
  BOOST_TEST(witness->longest_held_ns >= 5'000'000U);
  BOOST_TEST(must(call(reactor, fails(*channel))));
  BOOST_TEST(witness->requests == 5U);
}

BOOST_FIXTURE_TEST_CASE(a_flush_is_never_held_and_those_who_wait_are_sent_on_through_all_layers, Fixture) {
  limits->limiter().set({.write_bytes_per_s = 1});
  BOOST_TEST(must(call(reactor, hurried(*channel, *witness))));
}

BOOST_AUTO_TEST_CASE(a_volume_keeps_its_data_while_limits_come_and_go_in_its_stack_a_thousand_times) {
  const auto reactors = start_reactors(2);
  const auto run = [&](auto task) { return must(call(reactors->main(), std::move(task))); };
  VolumeService service(*reactors);
  const Uuid id = Uuid::random();
  run(service.create_pool({.id = Uuid::random(),
                           .name = "pool",
                           .bdev = {.kind = bdev::Spec::Kind::kRam, .path = {}, .size_bytes = 64 * kMiB}}));
  run(service.create_volume("pool", {.id = id, .name = "one", .size_bytes = 16 * kMiB}));
  {
    const auto volume = run(service.open(id));
    const auto device = must(bdev::Switch::make(volume, reactors->main()));
    bdev::test::Load load;
    // The pool is at home on the first.
    bdev::test::Users at_home(reactors->at(0), *device, load, 0);
    bdev::test::Users away(reactors->at(1), *device, load, 8 * kMiB);
    BOOST_REQUIRE(load.reaches(2));
    for (int i = 0; i < 1000; ++i) {
      std::shared_ptr<bdev::Bdev> next = volume;
      if (i % 2 == 0) {
        auto limited = std::make_shared<Limits>(volume);
        limited->limiter().set({.total_iops = 1'000'000});
        next = std::move(limited);
      }
      constexpr std::uint64_t kPatienceUs = 60'000'000;
      must(call(reactors->main(), device->exchange(std::move(next), kPatienceUs)));
    }
    BOOST_TEST(load.reaches(load.rounds + 2));
    load.stop = true;
    must(at_home.get());
    must(away.get());
  }
  run(service.close());
}

BOOST_AUTO_TEST_SUITE_END()
