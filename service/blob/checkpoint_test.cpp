// Checkpoints and the journal's ring on a simulated disk whose writes take time: the ring fills while pages are still
// on their way. A guest on another reactor than the pool's home makes its requests all the while; the seed says in which
// order the two have their turns. A call that finds both with nothing to do for long ends the test.

#include "blob/checkpoint.h"

#include <boost/test/unit_test.hpp>
#include <memory>
#include <optional>
#include <stdexcept>

#include "blob/checker.h"
#include "blob/guest_load.h"
#include "blob/parallel.h"
#include "blob/sim_bdev.h"
#include "blob/store.h"
#include "blob/volume.h"
#include "reactor/stepper.h"
#include "reactor/test_seed.h"

using namespace pollux;
using namespace pollux::blob;

namespace {

struct Fixture {
  const std::uint64_t seed = reactor::test_seed();
  reactor::Stepper reactors{2, seed};
  reactor::Reactor& home = reactors.main();
  std::shared_ptr<SimDisk> disk;
  std::unique_ptr<Store> store;
  std::optional<GuestLoad> guest;

  template <typename T>
  T must(reactor::Task<Result<T>> task) {
    auto result = reactors.call(home, std::move(task));
    if (!result) throw std::runtime_error(result.error().message);
    if constexpr (!std::is_void_v<T>) return std::move(*result);
  }

  // The journal takes no time; what else is written takes `page_us`.
  void open(std::uint64_t disk_bytes, std::uint64_t page_us) {
    disk = std::make_shared<SimDisk>(disk_bytes);
    FormatOptions options{.id = Uuid::random(), .name = "sim", .cluster_bytes = 64 * kKiB, .created_ms = 1};
    must(Store::format(make_sim_bdev(disk, 1), home, std::move(options)));
    const Superblock super = must(Store::probe(make_sim_bdev(disk, 1), home));
    disk->set_delay([super, page_us](const bdev::IoRequest& request) {
      const bool journal = request.offset_bytes >= super.journal_offset &&
                           request.offset_bytes < super.journal_offset + super.journal_bytes;
      return request.op == bdev::IoOp::kWrite && !journal ? page_us : 0;
    });
    store = must(Store::open(make_sim_bdev(disk, 1), home, {.loads_on = &reactors.at(1)}));
    guest.emplace(*store, create("guest's"), reactors.at(1), seed);
    must(guest->start());
  }
  Uuid create(const std::string& name) {
    CreateOptions options{.id = Uuid::random(), .name = name, .size_bytes = kMiB};
    const Uuid id = options.id;
    must(store->create(std::move(options)));
    return id;
  }
  // `at_once` in flight at a time; limit 0 of the volume ends with the number of the last.
  reactor::Task<Status> change(Uuid id, std::uint64_t first, std::size_t count, std::size_t at_once) {
    co_await home.enter();
    co_return co_await parallel(home, count, at_once, [&](std::size_t i) {
      Qos qos{};
      qos.limits[0] = first + i;
      return store->set_qos(id, qos);
    });
  }
  void stop_guest() {
    must(guest->stop());
    BOOST_TEST(guest->answered() > 0U);
    must(store->commit(Journal::Data::kFlush));
    const auto different = must(guest->difference(*disk));
    BOOST_TEST(!different.has_value(), different.value_or(""));
    guest.reset();
  }
  void close() {
    if (guest) stop_guest();
    must(store->close());
    store.reset();
  }
  // As the power would cut it now, after a start.
  std::uint64_t limit_after_power_cut(const Uuid& id, std::uint64_t seed) {
    auto after = std::make_shared<SimDisk>(disk->image_after_power_cut(seed));
    BOOST_TEST(must(check_pool(make_sim_bdev(after, seed), home, Repair::kNo)).clean());
    auto second = must(Store::open(make_sim_bdev(after, seed), home));
    const std::uint64_t limit = second->state().find(id)->qos.limits[0];
    must(second->close());
    return limit;
  }
  ~Fixture() {
    if (store) close();
  }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(checkpoint, Fixture)

BOOST_AUTO_TEST_CASE(a_ring_that_fills_during_a_checkpoint_gets_another) {
  // Long enough for the whole ring to fill while one page is written.
  open(64 * kMiB, 100'000);
  const Uuid id = create("one");
  std::uint64_t done = 0;
  for (std::uint64_t burst = 1; burst <= 1000; burst = burst * 10 + 1) {
    const auto beside_a_checkpoint = [&]() -> reactor::Task<Status> {
      co_await home.enter();
      reactor::Completion<Status> over;
      reactor::spawn(store->checkpoint(), [&over](Status status) { over.set(std::move(status)); });
      // A commit takes a page of the ring of 256, however many changes share it.
      for (int commits = 0; commits < 300; ++commits) {
        POLLUX_CO_TRY(co_await change(id, done + 1, burst, burst));
        done += burst;
      }
      co_return co_await over;
    };
    BOOST_TEST_CONTEXT("bursts of " << burst << ", after change " << done) { must(beside_a_checkpoint()); }
  }
  BOOST_TEST(store->super().checkpoint > 4U);
  BOOST_TEST(limit_after_power_cut(id, 7) == done);
}

BOOST_AUTO_TEST_CASE(more_changes_than_the_ring_holds_at_once_are_made_durable_by_checkpoints) {
  // A ring of 1 MiB, and 2 MiB of records in one moment.
  open(64 * kMiB, 1000);
  const Uuid id = create("one");
  const std::size_t count = 2 * kMiB / sizeof(SetQosRecord);
  must(change(id, 1, count, count));
  BOOST_TEST(limit_after_power_cut(id, 3) == count);
  must(change(id, count + 1, 10, 1));
  BOOST_TEST(limit_after_power_cut(id, 4) == count + 10);
}

BOOST_AUTO_TEST_CASE(a_ring_that_fills_while_the_pool_closes_does_not_keep_it_from_closing) {
  open(64 * kMiB, 1000);
  const Uuid id = create("one");
  const auto fill_and_close = [&]() -> reactor::Task<Status> {
    co_await home.enter();
    // Records whose commit nobody waits for.
    const std::size_t count = 2 * kMiB / sizeof(SetQosRecord);
    for (std::uint64_t i = 1; i <= count; ++i) {
      auto record = make_record<SetQosRecord>(RecordType::kSetQos, store->state().find(id)->number);
      record.qos.limits[0] = i;
      POLLUX_CO_TRY(store->state().apply(record.header));
      store->journal().append(record.header);
    }
    POLLUX_CO_TRY(co_await guest->stop());
    co_return co_await store->close();
  };
  must(fill_and_close());
  guest.reset();
  store.reset();
  BOOST_TEST(limit_after_power_cut(id, 5) == 2 * kMiB / sizeof(SetQosRecord));
}

BOOST_AUTO_TEST_SUITE_END()
