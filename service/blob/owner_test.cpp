// Two services that see one disk: whose the pool on it is.

#include "blob/owner.h"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "blob/sim_bdev.h"
#include "blob/store.h"

using namespace pollux;
using namespace pollux::blob;
using reactor::call;
using reactor::Task;

namespace {

constexpr std::uint32_t kBeatMs = 100;
constexpr std::uint32_t kSilentBeats = 6;

template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

// A service's view of the disk.
struct View {
  View(std::shared_ptr<SimDisk> disk, reactor::Reactor& on, std::string host, std::uint64_t seed)
      : home(on), device(make_sim_bdev(std::move(disk), seed)) {
    identity = {.host = std::move(host),
                .service = Uuid::random(),
                .beat_ms = kBeatMs,
                .silent_beats = kSilentBeats};
    const auto open = [](View& self) -> Task<Status> {
      co_await self.home.enter();
      auto channel = co_await self.device->open_channel(self.home);
      if (!channel) co_return fail(channel.error());
      self.channel = std::move(*channel);
      co_return Status{};
    };
    must(call(home, open(*this)));
  }
  ~View() {
    die();
    const auto close = [](View& self) -> Task<Status> {
      co_await self.home.yield();
      self.channel.reset();
      co_return Status{};
    };
    must(call(home, close(*this)));
  }

  Status claim(Owner::Force force = Owner::Force::kNo, Owner::Purpose purpose = Owner::Purpose::kUse) {
    return call(home, claim_task(force, purpose));
  }
  Task<Status> claim_task(Owner::Force force, Owner::Purpose purpose) {
    co_await home.enter();
    const auto super = co_await Store::probe(device, home);
    if (!super) co_return fail(super.error());
    auto claimed = co_await Owner::claim(*device, *channel, home, *super, identity, force, purpose);
    if (!claimed) co_return fail(claimed.error());
    owner = std::move(*claimed);
    owner->start(*channel, [this](const std::string& who) { lost_to = who; });
    co_return Status{};
  }
  Uuid last_user() {
    const auto task = [](View& self) -> Task<Result<Uuid>> {
      co_await self.home.enter();
      const auto super = co_await Store::probe(self.device, self.home);
      if (!super) co_return fail(super.error());
      co_return co_await Owner::last_user(*self.channel, self.home, *super);
    };
    return must(call(home, task(*this)));
  }
  Status look() {
    const auto task = [](View& self) -> Task<Status> {
      co_await self.home.enter();
      const auto super = co_await Store::probe(self.device, self.home);
      if (!super) co_return fail(super.error());
      co_return co_await Owner::look(*self.device, *self.channel, self.home, *super, self.identity);
    };
    return call(home, task(*this));
  }
  // As a process that is killed: the record stays.
  void die() {
    const auto task = [](View& self) -> Task<Status> {
      co_await self.home.enter();
      if (self.owner) co_await self.owner->stop();
      self.owner.reset();
      co_return Status{};
    };
    must(call(home, task(*this)));
  }
  Status release() {
    const auto task = [](View& self) -> Task<Status> {
      co_await self.home.enter();
      co_await self.owner->stop();
      Status released = co_await self.owner->release(*self.channel);
      self.owner.reset();
      co_return released;
    };
    return call(home, task(*this));
  }
  std::string loser() {
    const auto task = [](View& self) -> Task<Result<std::string>> {
      co_await self.home.enter();
      co_return self.lost_to;
    };
    return must(call(home, task(*this)));
  }
  std::string wait_for_loss() {
    constexpr std::uint64_t kPatienceNs = 30'000'000'000;
    const std::uint64_t begin_ns = monotonic_ns();
    while (loser().empty() && monotonic_ns() - begin_ns < kPatienceNs) std::this_thread::yield();
    return loser();
  }

  reactor::Reactor& home;
  std::shared_ptr<bdev::Bdev> device;
  std::unique_ptr<bdev::Channel> channel;
  Owner::Identity identity;
  std::unique_ptr<Owner> owner;
  std::string lost_to;
};

struct Fixture {
  Fixture() {
    FormatOptions options{.id = Uuid::random(), .name = "shared", .cluster_bytes = 64 * kKiB, .created_ms = 1};
    must(call(reactors->main(), Store::format(make_sim_bdev(disk, 1), reactors->main(), std::move(options))));
    one = std::make_unique<View>(disk, reactors->at(0), "host-a", 2);
    two = std::make_unique<View>(disk, reactors->at(1), "host-b", 3);
  }
  std::unique_ptr<reactor::ReactorGroup> reactors = must(reactor::ReactorGroup::start({{.id = 0}, {.id = 1}}));
  std::shared_ptr<SimDisk> disk = std::make_shared<SimDisk>(24 * kMiB);
  std::unique_ptr<View> one, two;
};

std::uint64_t ms_since(std::uint64_t begin_ns) {
  return (monotonic_ns() - begin_ns) / 1'000'000;
}

}  // namespace

BOOST_FIXTURE_TEST_SUITE(owner, Fixture)

BOOST_AUTO_TEST_CASE(a_pool_that_a_living_service_has_is_refused_with_its_host) {
  must(one->claim());
  const Status refused = two->claim();
  BOOST_REQUIRE(!refused.has_value());
  BOOST_TEST((refused.error().code == ErrorCode::kBusy));
  BOOST_TEST(refused.error().message.find("host-a") != std::string::npos, refused.error().message);
  BOOST_TEST(refused.error().message.find(one->identity.service.to_string()) != std::string::npos);
  const Status looked = two->look();
  BOOST_REQUIRE(!looked.has_value());
  BOOST_TEST((looked.error().code == ErrorCode::kBusy));
  BOOST_TEST(one->loser() == "");
}

BOOST_AUTO_TEST_CASE(a_service_that_is_silent_for_so_many_beats_is_dead) {
  must(one->claim());
  one->die();
  const std::uint64_t begin_ns = monotonic_ns();
  must(two->claim());
  BOOST_TEST(ms_since(begin_ns) >= kBeatMs * kSilentBeats);
}

BOOST_AUTO_TEST_CASE(the_same_installation_and_a_pool_that_was_closed_cost_no_wait) {
  // So long that a wait would not end within the test.
  one->identity.beat_ms = 50'000;
  must(one->claim());
  one->die();
  must(one->claim());
  must(one->release());
  must(two->claim());
}

BOOST_AUTO_TEST_CASE(one_that_was_taken_by_force_notices_and_leaves_the_others_record_alone) {
  must(one->claim());
  must(two->claim(Owner::Force::kYes));
  const std::string who = one->wait_for_loss();
  BOOST_TEST(who.find("host-b") != std::string::npos, who);
  must(one->release());
  // The other still beats: nobody else gets it.
  const Status refused = one->claim();
  BOOST_REQUIRE(!refused.has_value());
  BOOST_TEST((refused.error().code == ErrorCode::kBusy));
  BOOST_TEST(two->loser() == "");
}

BOOST_AUTO_TEST_CASE(the_record_says_who_used_the_pool_last_however_that_ended) {
  BOOST_TEST(one->last_user().is_nil());
  must(one->claim());
  BOOST_TEST((two->last_user() == one->identity.service));
  must(one->release());
  BOOST_TEST((two->last_user() == one->identity.service));
  // A repair, whole and cut short.
  must(two->claim(Owner::Force::kNo, Owner::Purpose::kRepair));
  BOOST_TEST((one->last_user() == one->identity.service));
  must(two->release());
  BOOST_TEST((one->last_user() == one->identity.service));
  must(two->claim(Owner::Force::kNo, Owner::Purpose::kRepair));
  two->die();
  BOOST_TEST((one->last_user() == one->identity.service));
  must(two->claim());
  BOOST_TEST((one->last_user() == two->identity.service));
  two->die();
  BOOST_TEST((one->last_user() == two->identity.service));
}

BOOST_AUTO_TEST_CASE(of_two_that_take_over_from_a_dead_one_at_a_time_only_one_gets_it) {
  for (unsigned round = 0; round < 3; ++round) {
    View dead(disk, reactors->at(0), "host-c", 4 + round);
    must(dead.claim());
    dead.die();
    std::optional<Status> first;
    std::thread other([&] { first = one->claim(); });
    const Status second = two->claim();
    other.join();
    BOOST_TEST((first->has_value() && second.has_value()) == false);
    BOOST_TEST((first->has_value() || second.has_value()));
    must(first->has_value() ? one->release() : two->release());
  }
}

BOOST_AUTO_TEST_CASE(what_is_no_record_of_this_pool_keeps_nobody_out) {
  one->identity.beat_ms = 50'000;
  must(one->claim());
  one->die();
  for (const std::size_t damaged : {std::size_t{0}, offsetof(OwnerRecord, pool_id), offsetof(OwnerRecord, beat)}) {
    auto image = disk->image();
    image[kOwnerOffset + damaged] ^= std::byte{1};
    View other(std::make_shared<SimDisk>(std::move(image)), reactors->at(1), "host-b", 5);
    must(other.claim());
  }
}

BOOST_AUTO_TEST_SUITE_END()
