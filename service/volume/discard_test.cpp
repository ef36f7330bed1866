// Freed space goes back to the device. What the simulated disk returns for it afterwards is random, so that a discard
// that reaches anything in use shows; crash_test.cpp cuts the power and kills the process around it.

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <thread>

#include "volume/crash_harness.h"

using namespace pollux;
using namespace pollux::volume::test;

namespace {

constexpr std::uint64_t kDiskBytes = 24 * kMiB;
constexpr std::uint32_t kClusterBytes = 64 * kKiB;

Uuid id_of(std::uint8_t number) {
  Uuid id;
  id.bytes[0] = 0x44;
  id.bytes[15] = number;
  return id;
}

struct Fixture {
  Fixture() { pool.open(CrashHarness::formatted(*reactors, kDiskBytes, kClusterBytes), test_seed()); }
  void make(const Uuid& id, std::uint64_t bytes) {
    BOOST_REQUIRE(pool.create(id, bytes));
    BOOST_REQUIRE(pool.write(id, {{0, bytes}}));
  }
  blob::Usage usage() {
    const auto task = [](blob::Store& store) -> reactor::Task<Result<blob::Usage>> {
      co_await store.home().enter();
      co_return store.usage();
    };
    return must(reactor::call(pool.home(), task(pool.store())));
  }
  void set_discard(bool enabled) { must(reactor::call(pool.home(), pool.store().set_discard(enabled))); }
  blob::Job trim() {
    const auto task = [](blob::Store& store) -> reactor::Task<Result<blob::Job>> {
      co_await store.home().enter();
      const Uuid id = Uuid::random();
      POLLUX_CO_TRY(co_await store.trim(id));
      while (true) {
        for (const blob::Job& job : store.jobs()) {
          if (job.id == id && job.state != blob::JobState::kRunning) co_return job;
        }
        co_await store.home().yield();
      }
    };
    return must(reactor::call(pool.home(), task(pool.store())));
  }

  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(2);
  CrashHarness pool{*reactors};
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(discard, Fixture)

BOOST_AUTO_TEST_CASE(what_a_deleted_volume_had_is_discarded_once_and_nothing_else) {
  make(id_of(1), 4 * kMiB);
  make(id_of(2), 4 * kMiB);
  BOOST_REQUIRE(pool.wait_until_idle());
  BOOST_TEST(usage().discarded_bytes == 0U);
  BOOST_REQUIRE(pool.remove(id_of(1)));
  BOOST_REQUIRE(pool.wait_until_idle());
  BOOST_TEST(usage().discarded_bytes == 4 * kMiB);
  BOOST_TEST(usage().discard_pending_bytes == 0U);
  // In runs: each takes many clusters.
  BOOST_TEST(pool.disk().discards() < 4 * kMiB / kClusterBytes);
  pool.verify();
}

BOOST_AUTO_TEST_CASE(space_that_is_used_again_while_it_is_discarded_holds_what_was_written) {
  for (int round = 0; round < 6; ++round) {
    make(id_of(1), 9 * kMiB);
    BOOST_REQUIRE(pool.remove(id_of(1)));
    // Into space that is being freed and discarded meanwhile, and waits for it.
    make(id_of(2), 9 * kMiB);
    pool.verify();
    BOOST_REQUIRE(pool.remove(id_of(2)));
  }
  BOOST_TEST(pool.disk().discards() > 0U);
}

// A discard may be lost to a power cut, and so may the record that frees: the cut comes at the moment of the first discard
// of what a guest has just unmapped, while other commits keep the journal busy, so that records wait for their turn.
BOOST_AUTO_TEST_CASE(nothing_is_discarded_before_the_record_that_frees_it_is_durable) {
  const Uuid one = id_of(1), other = id_of(2);
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    pool.model().clear();
    pool.open(CrashHarness::formatted(*reactors, kDiskBytes, kClusterBytes), seed);
    make(one, kMiB);
    BOOST_REQUIRE(pool.create(other, kMiB) && pool.flush(one) && pool.wait_until_idle());
    const auto cut = std::make_shared<std::atomic<bool>>(false);
    const auto prepare = [this, cut]() -> reactor::Task<Status> {
      co_await pool.home().enter();
      pool.disk().set_delay([](const bdev::IoRequest& request) {
        return (request.flags & bdev::IoRequest::kFua) != 0 ? std::uint64_t{1000} : std::uint64_t{0};
      });
      pool.disk().set_fault([cut](const bdev::IoRequest& request) {
        if (*cut) return bdev::IoStatus::kIoError;
        *cut = request.op == bdev::IoOp::kUnmap;
        return bdev::IoStatus::kOk;
      });
      co_return Status{};
    };
    must(reactor::call(pool.home(), prepare()));
    std::atomic<bool> stop{false};
    std::thread commits([&] {
      for (std::uint64_t limit = 1; !stop; ++limit) {
        // Fails once the power is off.
        static_cast<void>(reactor::call(pool.home(), pool.store().set_qos(other, {.limits = {limit}})));
      }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    try {
      pool.unmap(one, {128 * kKiB, 512 * kKiB});
    } catch (const std::runtime_error&) {
      // The power went first.
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!*cut && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    stop = true;
    commits.join();
    BOOST_REQUIRE(*cut);
    auto image = pool.disk().image_after_power_cut(seed);
    // So that the store closes without an error.
    pool.disk().set_fault(nullptr);
    while (!reactor::call(pool.home(), pool.store().set_qos(other, {})) && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    pool.open(std::move(image), seed);
    pool.verify();
  }
}

BOOST_AUTO_TEST_CASE(a_pool_with_discard_off_keeps_what_is_freed_until_it_is_trimmed) {
  set_discard(false);
  make(id_of(1), 4 * kMiB);
  make(id_of(2), 4 * kMiB);
  BOOST_REQUIRE(pool.remove(id_of(1)));
  BOOST_REQUIRE(pool.wait_until_idle());
  BOOST_TEST(pool.disk().discards() == 0U);
  pool.drop();
  pool.open(pool.disk().image(), 7);
  BOOST_TEST(!pool.store().discards());
  const std::uint64_t free_bytes = usage().free_bytes;
  const blob::Job job = trim();
  BOOST_TEST((job.state == blob::JobState::kDone));
  BOOST_TEST(job.done == job.total);
  // All that is free, and what is kept for metadata but for what stands ready for it.
  BOOST_TEST(usage().discarded_bytes >= free_bytes);
  BOOST_TEST(usage().free_bytes == free_bytes);
  pool.verify();
  set_discard(true);
  const std::uint64_t before = pool.disk().discards();
  BOOST_REQUIRE(pool.remove(id_of(2)));
  BOOST_REQUIRE(pool.wait_until_idle());
  BOOST_TEST(pool.disk().discards() > before);
}

BOOST_AUTO_TEST_SUITE_END()
