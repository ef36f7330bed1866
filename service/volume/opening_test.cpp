// Volumes whose pool's device takes long to open on a reactor.

#include <boost/test/unit_test.hpp>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bdev/held_opening.h"
#include "bdev/ram.h"
#include "bdev/verified_load.h"
#include "blob/store.h"
#include "blob/volume.h"
#include "volume/test_support.h"
#include "volume/volume_bdev.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;
using reactor::call;

namespace {

using OpeningCall = reactor::Call<std::unique_ptr<bdev::Channel>>;

struct Fixture {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(2);
  reactor::Reactor& home = reactors->at(0);
  reactor::Reactor& away = reactors->at(1);
  std::shared_ptr<bdev::test::HeldOpening> held =
      std::make_shared<bdev::test::HeldOpening>(must(bdev::make_ram_bdev("ram", 64 * kMiB)), false);
  std::unique_ptr<blob::Store> store = format_and_open();
  const Uuid id = Uuid::random();

  Fixture() {
    blob::CreateOptions options{.id = id, .name = "volume", .size_bytes = 8 * kMiB};
    must(call(home, store->create(std::move(options))));
  }
  ~Fixture() { must(call(home, store->close())); }

  std::unique_ptr<blob::Store> format_and_open() {
    blob::FormatOptions options{.id = Uuid::random(), .name = "pool", .cluster_bytes = 0, .created_ms = 1};
    must(call(home, blob::Store::format(held, home, std::move(options))));
    return must(call(home, blob::Store::open(held, home, {})));
  }
  std::shared_ptr<VolumeBdev> view() {
    return std::make_shared<VolumeBdev>(*store, *must(call(home, store->view(id))));
  }
  reactor::Task<Result<std::uint32_t>> opens_task() {
    co_await home.enter();
    co_return store->state().find(id)->opens;
  }
  // How often the volume is in use, which is what keeps its pool from closing.
  std::uint32_t opens() { return must(call(home, opens_task())); }
  static reactor::Task<Status> turn(reactor::Reactor& reactor) {
    co_await reactor.enter();
    co_await reactor.yield();
    co_return Status{};
  }
};

}  // namespace

BOOST_FIXTURE_TEST_CASE(all_that_want_a_pools_channel_on_a_reactor_at_one_time_get_the_same, Fixture) {
  auto device = view();
  const unsigned before = held->begun;
  held->held = true;
  std::vector<std::unique_ptr<OpeningCall>> openings;
  for (int i = 0; i < 3; ++i) {
    openings.push_back(std::make_unique<OpeningCall>(away, bdev::open_channel(device, away)));
  }
  must(call(away, turn(away)));
  held->held = false;
  for (auto& opening : openings) must(call(away, bdev::test::close_on(away, must(opening->wait()))));
  BOOST_TEST(held->begun - before == 1U);
}

BOOST_FIXTURE_TEST_CASE(a_volume_is_in_use_until_an_opening_that_nobody_waits_for_has_ended, Fixture) {
  held->held = true;
  {
    auto device = view();
    OpeningCall opening(away, bdev::open_channel(device, away));
    must(call(away, turn(away)));
    BOOST_TEST(!opening.give_up().has_value());
  }
  must(call(home, turn(home)));
  BOOST_TEST(opens() == 1U);
  held->held = false;
  while (opens() != 0) std::this_thread::yield();
}
