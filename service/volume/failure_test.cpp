// Devices that fail and work again: what was answered stays, reads go on, and changes go on without a restart.
//
//   POLLUX_TEST_SEED      replays a run
//   POLLUX_TEST_STRIDE    at every how many operations the scenario is failed (default 5)

#include <algorithm>
#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <thread>

#include "volume/crash_harness.h"

using namespace pollux;
using namespace pollux::volume::test;
using bdev::IoOp;
using bdev::IoRequest;
using bdev::IoStatus;

namespace {

constexpr std::uint64_t kDiskBytes = 24 * kMiB;
constexpr std::uint32_t kClusterBytes = 64 * kKiB;
constexpr auto kDeadline = std::chrono::seconds(60);

Uuid id_of(std::uint8_t number) {
  Uuid id;
  id.bytes[0] = 0x42;
  id.bytes[15] = number;
  return id;
}

struct Fixture {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(2);
  reactor::Reactor& home = reactors->main();
  CrashHarness pool{*reactors};

  void open_new(std::uint64_t seed = 1) {
    pool.open(CrashHarness::formatted(*reactors, kDiskBytes, kClusterBytes), seed);
  }
  void open_again() {
    pool.drop();
    pool.open(pool.disk().image(), 1);
  }

  std::string failure() {
    const auto look = [this]() -> reactor::Task<Result<std::string>> {
      co_await home.enter();
      co_return pool.store().failure() ? pool.store().failure()->reason : std::string();
    };
    return must(reactor::call(home, look()));
  }
  void wait_until(bool failed) {
    const auto end = std::chrono::steady_clock::now() + kDeadline;
    while (failure().empty() == failed) {
      BOOST_REQUIRE_MESSAGE(std::chrono::steady_clock::now() < end,
                            (failed ? "the pool has not failed" : "the pool is still failed: " + failure()));
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  // The 4 KiB there were answered with an error, or lost by a flush: they could be read until the pool came back, and
  // may be gone now.
  void forget_failed_write(const Uuid& id, std::uint64_t offset) {
    for (std::uint64_t block = offset / 512; block < (offset + 4096) / 512; ++block) {
      pool.model().at(id).since[static_cast<std::uint32_t>(block)].insert(0);
    }
  }
  // What the disk would hold if the power went now is what the model says.
  void cut_power_and_verify(std::uint64_t seed) {
    const auto image = pool.disk().image_after_power_cut(seed);
    CrashHarness::check(*reactors, image, "power cut");
    pool.open(image, seed);
    pool.verify();
  }
};

// The first request that fits fails, and no other.
std::function<IoStatus(const IoRequest&)> once(IoOp op, std::uint64_t length_bytes) {
  auto done = std::make_shared<std::atomic<bool>>(false);
  return [=](const IoRequest& request) {
    if (request.op != op || request.length_bytes != length_bytes || done->exchange(true)) return IoStatus::kOk;
    return IoStatus::kIoError;
  };
}

bool scenario(CrashHarness& pool) {
  const Uuid one = id_of(1), two = id_of(2), snap = id_of(3), clone = id_of(4);
  return pool.create(one, 2 * kMiB) && pool.write(one, {{0, 4096}, {8192, 4096}, {512 * 300, 512 * 7}}) &&
         pool.flush(one) && pool.create(two, kMiB) && pool.write(two, {{0, 256 * kKiB}, {300 * kKiB, 8192}}) &&
         pool.write(one, {{64 * kKiB, 192 * kKiB}, {4096, 4096}}, /*fua=*/true) && pool.fork(one, snap, true) &&
         pool.write(one, {{0, 4096}, {512 * 3, 512}, {80 * kKiB, 64 * kKiB}}) && pool.checkpoint() &&
         pool.fork(snap, clone, false) && pool.write(clone, {{8192 + 512, 512}, {64 * kKiB, 64 * kKiB}}) &&
         pool.flush(clone) && pool.unmap(one, {64 * kKiB, 128 * kKiB}) && pool.flush(one) &&
         pool.resize(two, 3 * kMiB) && pool.write(two, {{2 * kMiB, 4096}}) && pool.remove(snap) &&
         pool.write(one, {{0, 8192}}) && pool.wait_until_idle() && pool.flatten(clone) && pool.remove(two) &&
         pool.checkpoint() && pool.write(one, {{512, 512}, {1024 * 1024, 4096}}) && pool.flush(one) &&
         pool.wait_until_idle();
}

}  // namespace

BOOST_FIXTURE_TEST_SUITE(failure, Fixture)

BOOST_AUTO_TEST_CASE(after_errors_at_any_operation_the_pool_goes_on_when_the_device_works_again) {
  const std::uint64_t seed = test_seed();
  const char* given = std::getenv("POLLUX_TEST_STRIDE");
  const std::uint64_t stride = given ? std::strtoull(given, nullptr, 10) : 5;
  std::uint64_t failures = 0;
  for (std::uint64_t at = seed % stride;; at += stride) {
    BOOST_TEST_CONTEXT("POLLUX_TEST_SEED=" << seed << ", errors from operation " << at << " on") {
      pool.drop();
      pool.model().clear();
      open_new(seed + at);
      pool.disk().fail_operations(at, 1 + (seed + at) % 9);
      const bool finished = scenario(pool);
      if (!pool.disk().has_failed()) {
        BOOST_REQUIRE(finished);
        break;
      }
      // What the scenario left of the errors.
      const auto end = std::chrono::steady_clock::now() + kDeadline;
      while (pool.disk().is_failing()) {
        BOOST_REQUIRE_MESSAGE(std::chrono::steady_clock::now() < end, "the pool leaves its device alone: " + failure());
        static_cast<void>(reactor::call(home, pool.store().checkpoint()));
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      wait_until(/*failed=*/false);
      ++failures;
      // What is there now, the device's losses taken off, is what later flushes promise.
      pool.verify();
      std::vector<Uuid> volumes;
      for (const auto& [id, volume] : pool.model()) {
        if (!volume.snapshot) volumes.push_back(id);
      }
      for (const Uuid& id : volumes) {
        // The first may tell of a loss.
        pool.flush(id);
        BOOST_REQUIRE(pool.flush(id));
      }
      pool.verify();
      const Uuid more = id_of(9);
      BOOST_REQUIRE(pool.create(more, kMiB) && pool.write(more, {{0, 64 * kKiB}, {100 * kKiB, 512}}) &&
                    pool.flush(more));
      cut_power_and_verify(seed + at);
    }
  }
  BOOST_TEST_MESSAGE(failures << " failures");
  BOOST_TEST(failures * stride > 50U);
}

BOOST_AUTO_TEST_CASE(each_volume_is_told_once_of_a_flush_that_may_have_lost_its_writes) {
  const Uuid one = id_of(1), two = id_of(2);
  open_new();
  for (const Uuid& id : {one, two}) {
    BOOST_REQUIRE(pool.create(id, kMiB) && pool.write(id, {{0, 64 * kKiB}}) && pool.flush(id));
  }
  BOOST_REQUIRE(pool.write(one, {{0, 4096}}));
  pool.disk().set_fault(once(IoOp::kFlush, 0));
  BOOST_CHECK_THROW(pool.flush(two), std::runtime_error);
  wait_until(/*failed=*/false);
  // Its write is gone, and the device would say that all is well.
  BOOST_CHECK_THROW(pool.flush(one), std::runtime_error);
  pool.verify();
  BOOST_TEST(pool.flush(one));
  BOOST_TEST(pool.flush(two));
  pool.verify();
  cut_power_and_verify(3);
}

BOOST_AUTO_TEST_CASE(a_flush_that_is_not_the_guests_leaves_it_to_the_guests_to_tell_of_a_loss) {
  const Uuid one = id_of(1), two = id_of(2);
  open_new();
  for (const Uuid& id : {one, two}) {
    BOOST_REQUIRE(pool.create(id, kMiB) && pool.write(id, {{0, 64 * kKiB}}) && pool.flush(id));
  }
  BOOST_REQUIRE(pool.write(one, {{0, 4096}}));
  pool.disk().set_fault(once(IoOp::kFlush, 0));
  // Also when it is the one that failed.
  BOOST_CHECK_THROW(pool.flush(two, IoRequest::kAside), std::runtime_error);
  wait_until(/*failed=*/false);
  for (const Uuid& id : {one, two}) {
    for (int i = 0; i < 2; ++i) BOOST_CHECK_THROW(pool.flush(id, IoRequest::kAside), std::runtime_error);
    BOOST_CHECK_THROW(pool.flush(id), std::runtime_error);
    BOOST_TEST(pool.flush(id, IoRequest::kAside));
    BOOST_TEST(pool.flush(id));
  }
}

BOOST_AUTO_TEST_CASE(what_is_still_to_be_told_of_a_loss_is_told_by_the_next_service) {
  const Uuid one = id_of(1), two = id_of(2);
  const KeptLosses& losses = pool.keep_losses();
  open_new();
  for (const Uuid& id : {one, two}) {
    BOOST_REQUIRE(pool.create(id, kMiB) && pool.write(id, {{0, 64 * kKiB}}) && pool.flush(id));
  }
  BOOST_REQUIRE(pool.write(one, {{0, 4096}}));
  pool.disk().set_fault(once(IoOp::kFlush, 0));
  BOOST_CHECK_THROW(pool.flush(two), std::runtime_error);
  // Known before the first of them was answered.
  BOOST_TEST(losses.owed(one));
  wait_until(/*failed=*/false);
  BOOST_REQUIRE(pool.wait_until_idle());
  BOOST_TEST(!losses.owed(two));
  for (int restart = 0; restart < 2; ++restart) {
    open_again();
    pool.verify();
    BOOST_TEST(losses.owed(one));
  }
  BOOST_CHECK_THROW(pool.flush(one), std::runtime_error);
  BOOST_TEST(pool.flush(one));
  BOOST_TEST(pool.flush(two));
  BOOST_REQUIRE(pool.wait_until_idle());
  BOOST_TEST(!losses.owed(one));
  open_again();
  BOOST_TEST(pool.flush(one));
  pool.verify();
}

BOOST_AUTO_TEST_CASE(a_volume_that_was_told_is_told_of_the_next_loss_as_well) {
  const Uuid one = id_of(1), two = id_of(2);
  const KeptLosses& losses = pool.keep_losses();
  open_new();
  for (const Uuid& id : {one, two}) {
    BOOST_REQUIRE(pool.create(id, kMiB) && pool.write(id, {{0, 64 * kKiB}}) && pool.flush(id));
  }
  for (int loss = 0; loss < 10; ++loss) {
    pool.disk().set_fault(once(IoOp::kFlush, 0));
    BOOST_CHECK_THROW(pool.flush(two), std::runtime_error);
    wait_until(/*failed=*/false);
    pool.disk().set_fault(once(IoOp::kFlush, 0));
    BOOST_CHECK_THROW(pool.flush(one), std::runtime_error);
    BOOST_TEST(losses.owed(two));
    wait_until(/*failed=*/false);
    BOOST_REQUIRE(pool.wait_until_idle());
    BOOST_TEST(losses.owed(two));
    BOOST_CHECK_THROW(pool.flush(two), std::runtime_error);
    BOOST_REQUIRE(pool.wait_until_idle());
    BOOST_TEST(!losses.owed(one));
    BOOST_TEST(!losses.owed(two));
  }
}

BOOST_AUTO_TEST_CASE(a_loss_while_the_pool_closes_is_told_by_the_next_service) {
  const Uuid one = id_of(1);
  const KeptLosses& losses = pool.keep_losses();
  open_new();
  BOOST_REQUIRE(pool.create(one, kMiB) && pool.write(one, {{0, 64 * kKiB}}) && pool.flush(one));
  unsigned told = 0;
  // Some of what closing does are flushes.
  for (std::uint64_t at = 0;; ++at) {
    BOOST_REQUIRE(pool.write(one, {{0, 4096}}));
    BOOST_REQUIRE(pool.wait_until_idle());
    BOOST_TEST(!losses.owed(one));
    pool.disk().fail_operation(at);
    pool.drop();
    const bool failed = pool.disk().has_failed();
    pool.open(pool.disk().image(), 1);
    if (losses.owed(one)) {
      ++told;
      BOOST_CHECK_THROW(pool.flush(one), std::runtime_error);
    }
    BOOST_TEST(pool.flush(one));
    BOOST_REQUIRE(pool.wait_until_idle());
    if (!failed) break;
  }
  BOOST_TEST(told > 0U);
}

BOOST_AUTO_TEST_CASE(without_space_below_the_pool_changes_fail_and_go_on_when_there_is_some) {
  const Uuid one = id_of(1);
  open_new();
  BOOST_REQUIRE(pool.create(one, kMiB) && pool.write(one, {{0, 64 * kKiB}}) && pool.flush(one));
  // The journal's ring and the superblock; data finds room.
  const auto full = std::make_shared<std::atomic<bool>>(true);
  pool.disk().set_fault([full](const IoRequest& request) {
    const bool fua = request.op == IoOp::kWrite && (request.flags & IoRequest::kFua) != 0;
    return *full && fua ? IoStatus::kNoSpace : IoStatus::kOk;
  });
  BOOST_REQUIRE(pool.write(one, {{512 * kKiB, 4096}}));
  BOOST_CHECK_THROW(pool.flush(one), std::runtime_error);
  wait_until(/*failed=*/true);
  BOOST_TEST(failure().find("out of space") != std::string::npos);
  BOOST_CHECK_THROW(pool.write(one, {{256 * kKiB, 4096}}), std::runtime_error);
  forget_failed_write(one, 256 * kKiB);
  // Several attempts to come back fail; what is there is read all the while.
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    pool.verify();
    BOOST_REQUIRE(!failure().empty());
  }
  *full = false;
  wait_until(/*failed=*/false);
  // What was answered is there, though the journal had no room for it.
  pool.verify();
  BOOST_REQUIRE(pool.write(one, {{128 * kKiB, 64 * kKiB}, {0, 4096}}));
  // Nothing was flushed in vain, so nobody is told of a loss.
  BOOST_TEST(pool.flush(one));
  cut_power_and_verify(5);
}

BOOST_AUTO_TEST_CASE(a_fenced_pool_is_neither_written_nor_loaded_again) {
  const Uuid one = id_of(1);
  for (const bool device_failed_before : {false, true}) {
    pool.model().clear();
    open_new();
    BOOST_REQUIRE(pool.create(one, kMiB) && pool.write(one, {{0, 64 * kKiB}}) && pool.flush(one));
    const auto failing = std::make_shared<std::atomic<bool>>(device_failed_before);
    pool.disk().set_fault([failing](const IoRequest& request) {
      return *failing && request.op == IoOp::kFlush ? IoStatus::kIoError : IoStatus::kOk;
    });
    if (device_failed_before) {
      BOOST_CHECK_THROW(pool.flush(one), std::runtime_error);
      wait_until(/*failed=*/true);
    }
    const auto fence = [this]() -> reactor::Task<Status> {
      co_await home.enter();
      pool.store().fence("somebody else");
      co_return Status{};
    };
    must(reactor::call(home, fence()));
    BOOST_TEST(failure().find("somebody else") != std::string::npos);
    // Its device works: any attempt to load the pool would succeed.
    *failing = false;
    BOOST_CHECK_THROW(pool.flush(one), std::runtime_error);
    BOOST_CHECK_THROW(pool.create(id_of(2), kMiB), std::runtime_error);
    pool.model().erase(id_of(2));
    pool.verify();
    const std::uint64_t operations = pool.disk().operations();
    // Longer than the first six pauses between attempts together.
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
    BOOST_TEST(pool.disk().operations() == operations);
    BOOST_TEST(!failure().empty());
    const std::uint64_t writes = pool.disk().writes();
    pool.drop();
    BOOST_TEST(pool.disk().writes() == writes);
  }
}

BOOST_AUTO_TEST_CASE(while_the_journal_alone_cannot_be_written_the_pool_says_so) {
  const Uuid one = id_of(1);
  open_new();
  BOOST_REQUIRE(pool.create(one, kMiB) && pool.write(one, {{0, 64 * kKiB}}) && pool.flush(one));
  const auto broken = std::make_shared<std::atomic<bool>>(true);
  const std::uint64_t ring = kClusterBytes, ring_end = ring + kMiB;
  pool.disk().set_fault([=](const IoRequest& request) {
    const bool in_ring = request.offset_bytes < ring_end && request.offset_bytes + request.length_bytes > ring;
    return *broken && request.op == IoOp::kWrite && in_ring ? IoStatus::kIoError : IoStatus::kOk;
  });
  BOOST_REQUIRE(pool.write(one, {{512 * kKiB, 4096}}));
  BOOST_CHECK_THROW(pool.flush(one, IoRequest::kAside), std::runtime_error);
  wait_until(/*failed=*/true);
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    BOOST_REQUIRE(failure().find("journal") != std::string::npos);
  }
  *broken = false;
  wait_until(/*failed=*/false);
  forget_failed_write(one, 512 * kKiB);
  pool.verify();
  // A write of the journal brings a flush, which may be what failed: the volume's first flush tells of a loss.
  BOOST_CHECK_THROW(pool.flush(one), std::runtime_error);
  BOOST_TEST(pool.write(one, {{128 * kKiB, 64 * kKiB}, {0, 4096}}));
  BOOST_TEST(pool.flush(one));
  cut_power_and_verify(7);
}

BOOST_AUTO_TEST_CASE(a_leaf_that_could_not_be_read_is_read_again_at_the_next_use) {
  const Uuid one = id_of(1);
  open_new();
  BOOST_REQUIRE(pool.create(one, kMiB) && pool.write(one, {{0, 64 * kKiB}}) && pool.flush(one));
  open_again();
  pool.disk().set_fault(once(IoOp::kRead, blob::kPageBytes));
  BOOST_CHECK_THROW(pool.verify(), std::runtime_error);
  pool.verify();
  BOOST_TEST(pool.write(one, {{0, 4096}, {128 * kKiB, 64 * kKiB}}));
  pool.verify();
}

BOOST_AUTO_TEST_CASE(a_delete_reads_again_what_it_could_not_read_and_leaks_nothing) {
  const Uuid one = id_of(1);
  open_new();
  BOOST_REQUIRE(pool.create(one, kMiB) && pool.write(one, {{0, 512 * kKiB}}) && pool.flush(one));
  open_again();
  pool.disk().set_fault(once(IoOp::kRead, blob::kPageBytes));
  BOOST_REQUIRE(pool.remove(one));
  BOOST_REQUIRE(pool.wait_until_idle());
  BOOST_TEST(pool.store().usage().allocated_bytes == 0U);
  pool.drop();
  CrashHarness::check(*reactors, pool.disk().image(), "deleted");
}

BOOST_AUTO_TEST_SUITE_END()
