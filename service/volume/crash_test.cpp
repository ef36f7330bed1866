// Power cuts: at every write of a scenario that has every metadata operation, and at random in random workloads; and
// the process killed there, which costs the disk nothing, so that all that was answered must be there. After each the
// pool is loaded, compared with the model, and checked.
//
//   POLLUX_TEST_SEED      replays a run
//   POLLUX_TEST_ROUNDS    how many power cuts and kills the random workload has (default few)
//   POLLUX_TEST_STRIDE    every how many writes the scenario is cut (default 1: all of them)

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>

#include "volume/crash_harness.h"

using namespace pollux;
using namespace pollux::volume::test;

namespace {

constexpr std::uint64_t kDiskBytes = 24 * kMiB;
constexpr std::uint64_t kGrowthBytes = 8 * kMiB;
constexpr std::uint32_t kClusterBytes = 64 * kKiB;

// An empty pool on a device that has grown since.
std::vector<std::byte> blank_pool(const Reactors& reactors) {
  auto image = CrashHarness::formatted(reactors, kDiskBytes, kClusterBytes);
  // What was there before is nobody's metadata.
  image.resize(kDiskBytes + kGrowthBytes, std::byte{0xa5});
  return image;
}

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* given = std::getenv(variable);
  return given ? std::strtoull(given, nullptr, 10) : otherwise;
}

Uuid id_of(std::uint8_t number) {
  Uuid id;
  id.bytes[0] = 0x42;
  id.bytes[15] = number;
  return id;
}

// Every kind of change, with data under it. False when the power went off on the way.
bool scenario(CrashHarness& pool) {
  const Uuid one = id_of(1), two = id_of(2), snap = id_of(3), clone = id_of(4), later = id_of(5);
  return pool.create(one, 2 * kMiB) && pool.write(one, {{0, 4096}, {8192, 4096}, {512 * 300, 512 * 7}}) &&
         pool.flush(one) && pool.create(two, kMiB) && pool.write(two, {{0, 256 * kKiB}, {300 * kKiB, 8192}}) &&
         pool.write(one, {{64 * kKiB, 192 * kKiB}, {4096, 4096}}, /*fua=*/true) && pool.fork(one, snap, true) &&
         pool.write(one, {{0, 4096}, {512 * 3, 512}, {80 * kKiB, 64 * kKiB}}) && pool.checkpoint() && pool.grow() &&
         pool.fork(snap, clone, false) && pool.write(clone, {{8192 + 512, 512}, {64 * kKiB, 64 * kKiB}}) &&
         pool.flush(clone) && pool.unmap(one, {64 * kKiB, 128 * kKiB}) && pool.unmap(clone, {4096, 4096}) &&
         pool.flush(one) && pool.fork(clone, later, true) && pool.write(clone, {{8192, 4096}, {12288, 1024}}) &&
         pool.resize(two, 30 * kMiB) && pool.write(two, {{29 * kMiB, 4096}}) && pool.remove(snap) &&
         pool.write(one, {{0, 8192}}) && pool.revert(clone, later) && pool.wait_until_idle() &&
         pool.write(clone, {{4096, 4096}}) && pool.flatten(clone) && pool.remove(two) && pool.checkpoint() &&
         pool.remove(later) && pool.flush(one) && pool.wait_until_idle();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(crash)

BOOST_AUTO_TEST_CASE(a_power_cut_at_any_write_of_any_operation_leaves_what_was_promised) {
  const std::uint64_t seed = test_seed();
  reactor::Stepper reactors(2, seed);
  const std::uint64_t stride = number_from("POLLUX_TEST_STRIDE", 1);
  const auto blank = blank_pool(reactors);
  std::uint64_t cuts = 0;
  for (std::uint64_t at = seed % stride;; at += stride) {
    CrashHarness pool(reactors);
    pool.open(blank, seed + at);
    pool.disk().cut_power_at_write(at);
    const bool finished = scenario(pool);
    BOOST_REQUIRE(finished != pool.disk().power_is_off());
    if (finished) BOOST_TEST(pool.disk().discards() > 0U);
    const auto image = pool.disk().image_after_power_cut(seed * 31 + at);
    const std::string when = "power cut at write " + std::to_string(at);
    BOOST_TEST_CONTEXT(when) {
      CrashHarness::check(reactors, image, when);
      pool.open(image, seed + at);
      pool.verify();
      // It goes on as if nothing had been.
      const Uuid more = id_of(9);
      BOOST_REQUIRE(pool.create(more, kMiB) && pool.write(more, {{0, 64 * kKiB}, {100 * kKiB, 512}}) &&
                    pool.flush(more));
      std::vector<Uuid> all;
      for (const auto& [id, volume] : pool.model()) all.push_back(id);
      pool.verify();
      for (const Uuid& id : all) BOOST_REQUIRE(pool.remove(id));
      BOOST_REQUIRE(pool.wait_until_idle());
      BOOST_TEST(pool.store().usage().allocated_bytes == 0U);
      pool.drop();
      CrashHarness::check(reactors, pool.disk().image(), when + ", then emptied and closed");
    }
    if (finished) break;
    ++cuts;
  }
  BOOST_TEST_MESSAGE(cuts << " power cuts");
  BOOST_TEST(cuts > 50U);
}

BOOST_AUTO_TEST_CASE(a_power_cut_while_a_pool_is_made_leaves_none_or_an_empty_one) {
  const std::uint64_t seed = test_seed();
  reactor::Stepper reactors(2, seed);
  reactor::Reactor& home = reactors.main();
  // On what somebody else left behind.
  const std::vector<std::byte> used(kDiskBytes, std::byte{0xa5});
  const auto options = [] {
    return blob::FormatOptions{.id = id_of(1), .name = "sim", .cluster_bytes = kClusterBytes, .created_ms = 1};
  };
  const auto format = [&](const std::shared_ptr<blob::SimDisk>& disk, std::uint64_t order) {
    auto wanted = options();
    return reactors.call(home, blob::Store::format(make_sim_bdev(disk, order), home, std::move(wanted)));
  };
  std::uint64_t none = 0, whole = 0;
  // Several draws for each write: which sectors of the last one are torn is up to them.
  for (std::uint64_t at = 0;; ++at) {
    bool finished = false;
    for (std::uint64_t draw = 0; draw < 32; ++draw) {
      const std::uint64_t order = seed + 100 * at + draw;
      auto disk = std::make_shared<blob::SimDisk>(used);
      disk->cut_power_at_write(at);
      finished = format(disk, order).has_value();
      BOOST_REQUIRE(finished != disk->power_is_off());
      auto after = std::make_shared<blob::SimDisk>(disk->image_after_power_cut(order));
      BOOST_TEST_CONTEXT("power cut at write " << at << ", draw " << draw) {
        const auto found = reactors.call(home, blob::Store::probe(make_sim_bdev(after, order), home));
        if (!found) {
          // Nobody is in the way of making it again.
          BOOST_REQUIRE_MESSAGE(found.error().code == ErrorCode::kNotFound, found.error().message);
          BOOST_REQUIRE(!finished);
          ++none;
          must(format(after, order));
        } else {
          ++whole;
        }
        CrashHarness::check(reactors, after->image(), "made");
        CrashHarness pool(reactors);
        pool.open(after->image(), order);
        BOOST_REQUIRE(pool.store().usage().allocated_bytes == 0U);
        BOOST_REQUIRE(pool.create(id_of(2), kMiB) && pool.write(id_of(2), {{0, 4096}}) && pool.flush(id_of(2)));
        pool.verify();
      }
    }
    if (finished) break;
  }
  BOOST_TEST_MESSAGE(none << " times no pool, " << whole << " times a whole one");
  BOOST_TEST(none > 50U);
  BOOST_TEST(whole >= 32U);
}

BOOST_DATA_TEST_CASE(what_was_answered_outlives_the_process_without_a_flush,
                     boost::unit_test::data::make({true, false}), memory_outlives_process) {
  const std::uint64_t seed = test_seed();
  reactor::Stepper reactors(2, seed);
  CrashHarness pool(reactors);
  if (!memory_outlives_process) pool.without_queue();
  pool.open(CrashHarness::formatted(reactors, kDiskBytes, kClusterBytes), seed);
  const Uuid one = id_of(1), snap = id_of(2);
  pool.process_dies();
  const auto killed = [&] {
    const auto image = pool.image_after_kill(1);
    pool.open(image, 1);
    pool.process_dies();
    pool.verify();
  };
  BOOST_REQUIRE(pool.create(one, kMiB) && pool.write(one, {{0, 4096}, {70 * kKiB, 512}, {128 * kKiB, 64 * kKiB}}));
  killed();
  BOOST_REQUIRE(pool.write(one, {{512, 1024}, {4096, 8192}}) && pool.unmap(one, {128 * kKiB, 64 * kKiB}));
  killed();
  BOOST_REQUIRE(pool.fork(one, snap, true) && pool.write(one, {{0, 512}, {8192, 4096}}) &&
                pool.unmap(one, {4096, 4096}));
  killed();
  BOOST_TEST(pool.model().size() == 2U);
}

// The map in memory is ahead of the journal: what the data path reads there is not durable yet.
BOOST_AUTO_TEST_CASE(a_write_that_was_answered_outlives_the_process_where_another_has_just_changed_the_map) {
  const std::uint64_t seed = test_seed();
  reactor::Stepper reactors(2, seed);
  const Uuid one = id_of(1), snap = id_of(2);
  const auto blank = CrashHarness::formatted(reactors, kDiskBytes, kClusterBytes);
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return static_cast<unsigned>(random() % n); };
  const std::uint64_t orders = std::min<std::uint64_t>(5 * number_from("POLLUX_TEST_ROUNDS", 100), 20'000);
  for (std::uint64_t order = 0; order < orders; ++order) {
    CrashHarness pool(reactors);
    pool.open(blank, seed + order);
    BOOST_REQUIRE(pool.create(one, kMiB) && pool.write(one, {{0, 64 * kKiB}}) && pool.fork(one, snap, true));
    pool.process_dies();
    pool.disk().cut_power_at_write(below(4));
    // A write that changes the map, and one behind it: where a sub-block is shared, or nothing was before.
    const std::uint64_t at = below(2) * 64 * kKiB;
    pool.write({{one, {at, 512}}, {one, {at + 512, 512}, below(6)}});
    const auto image = pool.image_after_kill(seed + order);
    BOOST_TEST_CONTEXT("order " << order) {
      CrashHarness::check(reactors, image, "killed");
      pool.open(image, 1);
      pool.verify();
    }
  }
}

BOOST_AUTO_TEST_CASE(what_another_volume_holds_until_the_journal_says_otherwise_is_not_written_over) {
  const std::uint64_t seed = test_seed();
  reactor::Stepper reactors(2, seed);
  const Uuid one = id_of(1), snap = id_of(2), clone = id_of(3);
  const auto blank = CrashHarness::formatted(reactors, kDiskBytes, kClusterBytes);
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return static_cast<unsigned>(random() % n); };
  const std::uint64_t orders = std::min<std::uint64_t>(5 * number_from("POLLUX_TEST_ROUNDS", 100), 20'000);
  for (std::uint64_t order = 0; order < orders; ++order) {
    CrashHarness pool(reactors);
    pool.open(blank, seed + order);
    BOOST_REQUIRE(pool.create(one, kMiB) && pool.write(one, {{0, 128 * kKiB}}) && pool.fork(one, snap, true));
    if (order % 2 == 0) {
      // The clone releases the first cluster, and its other is a copy: the volume is left alone with them.
      BOOST_REQUIRE(pool.fork(snap, clone, false) && pool.remove(snap) && pool.wait_until_idle() &&
                    pool.write(clone, {{64 * kKiB, 512}}) && pool.flush(clone));
    }
    const bool killed = below(2) != 0;
    if (killed) pool.process_dies();
    pool.disk().cut_power_at_write(below(6));
    if (order % 2 == 0) {
      pool.write({{clone, {0, 64 * kKiB}}, {one, {1024, 512}, below(6)}});
    } else {
      pool.remove_beside(snap, {one, {1024, 512}, below(2), below(12)});
    }
    const auto image =
        killed ? pool.image_after_kill(seed + order) : pool.disk().image_after_power_cut(seed + order);
    BOOST_TEST_CONTEXT("order " << order) {
      CrashHarness::check(reactors, image, "killed");
      pool.open(image, 1);
      pool.verify();
    }
  }
}

BOOST_AUTO_TEST_CASE(more_small_first_writes_than_are_worked_on_at_a_time_are_all_answered) {
  const std::uint64_t seed = test_seed();
  const Uuid one = id_of(1);
  for (std::uint64_t order = 0; order < 20; ++order) {
    reactor::Stepper reactors(2, seed + order);
    CrashHarness pool(reactors);
    pool.open(CrashHarness::formatted(reactors, kDiskBytes, kClusterBytes), seed + order);
    BOOST_REQUIRE(pool.create(one, 8 * kMiB));
    // Pairs within a sub-block of a cluster each: when the second of a pair has its turn, the first has mapped it.
    std::vector<CrashHarness::Extent> extents;
    for (std::uint64_t cluster = 0; cluster < 8 * kMiB / kClusterBytes; ++cluster) {
      extents.push_back({cluster * kClusterBytes, 512});
      extents.push_back({cluster * kClusterBytes + 512, 512});
    }
    BOOST_REQUIRE(pool.write(one, extents));
    pool.verify();
  }
}

BOOST_AUTO_TEST_CASE(a_write_beside_one_that_replaces_what_is_shared_does_not_hide_it) {
  const std::uint64_t seed = test_seed();
  reactor::Stepper reactors(2, seed);
  const Uuid one = id_of(1), snap = id_of(2);
  const auto blank = CrashHarness::formatted(reactors, kDiskBytes, kClusterBytes);
  const std::uint64_t orders = std::min<std::uint64_t>(10 * number_from("POLLUX_TEST_ROUNDS", 30), 20'000);
  for (std::uint64_t order = 0; order < orders; ++order) {
    CrashHarness pool(reactors);
    pool.open(blank, seed + order);
    BOOST_REQUIRE(pool.create(one, kMiB) && pool.write(one, {{0, 16 * kKiB}}) && pool.fork(one, snap, true));
    // One write replaces all that was written of the cluster, others go beside it; the first that is answered is the
    // last thing that happens, in an order that the seed draws.
    pool.disk().cut_power_at_write(order % 5);
    pool.write(one, {{0, 16 * kKiB}, {20 * kKiB, 4096}, {32 * kKiB, 8192}});
    const auto image = pool.disk().image_after_power_cut(seed + order);
    BOOST_TEST_CONTEXT("order " << order) {
      pool.open(image, 1);
      pool.verify();
    }
  }
}

BOOST_AUTO_TEST_CASE(an_error_at_any_operation_of_the_device_loses_nothing_that_was_promised) {
  const std::uint64_t seed = test_seed();
  reactor::Stepper reactors(2, seed);
  const auto blank = blank_pool(reactors);
  std::uint64_t errors = 0;
  for (std::uint64_t at = 0;; ++at) {
    CrashHarness pool(reactors);
    pool.open(blank, seed + at);
    pool.disk().fail_operation(at);
    // An operation that fails ends the scenario here; one that the store rode out does not.
    const bool finished = scenario(pool);
    if (!pool.disk().has_failed()) {
      BOOST_REQUIRE(finished);
      break;
    }
    ++errors;
    const std::string when = "error at operation " + std::to_string(at);
    BOOST_TEST_CONTEXT(when) {
      pool.drop();
      const auto image = pool.disk().image();
      CrashHarness::check(reactors, image, when);
      pool.open(image, seed);
      pool.verify();
      const Uuid more = id_of(9);
      BOOST_REQUIRE(pool.create(more, kMiB) && pool.write(more, {{0, 64 * kKiB}}) && pool.flush(more));
      pool.verify();
    }
  }
  BOOST_TEST_MESSAGE(errors << " errors");
  BOOST_TEST(errors > 50U);
}

BOOST_DATA_TEST_CASE(random_workloads_with_power_cuts_and_kills_keep_their_promises,
                     boost::unit_test::data::make({512U, 4096U}) * boost::unit_test::data::make({true, false}),
                     device_block_bytes, memory_outlives_process) {
  const std::uint64_t seed = test_seed();
  reactor::Stepper reactors(2, seed);
  const std::uint64_t rounds = number_from("POLLUX_TEST_ROUNDS", 30);
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  std::vector<std::byte> image = CrashHarness::formatted(reactors, kDiskBytes, kClusterBytes);
  CrashHarness pool(reactors, device_block_bytes);
  if (!memory_outlives_process) pool.without_queue();
  const auto fresh_id = [&] {
    Uuid id;
    for (auto& byte : id.bytes) byte = static_cast<std::uint8_t>(random());
    return id;
  };
  constexpr std::uint64_t kBytes = kMiB;
  std::uint64_t operations = 0;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    BOOST_TEST_CONTEXT("round " << round) {
      pool.open(image, random());
      pool.verify();
      const bool killed = below(2) != 0;
      if (killed) pool.process_dies();
      pool.disk().cut_power_at_write(below(400));
      bool on = true;
      while (on) {
        ++operations;
        std::vector<Uuid> volumes, snapshots;
        for (const auto& [id, volume] : pool.model()) (volume.snapshot ? snapshots : volumes).push_back(id);
        if (volumes.empty()) {
          on = pool.create(fresh_id(), kBytes);
          continue;
        }
        const Uuid volume = volumes[below(volumes.size())];
        const std::uint64_t what = below(100);
        if (what < 50) {
          // Writes side by side, none over another.
          std::vector<CrashHarness::Extent> extents;
          const std::uint64_t unit = below(2) ? 512 : 4096;
          std::uint64_t at = below(kBytes / 2 / unit) * unit;
          for (std::uint64_t i = 0; i <= below(12) && at < kBytes - 64 * kKiB; ++i) {
            const std::uint64_t length = (1 + below(below(4) == 0 ? 32 : 4)) * unit;
            extents.push_back({at, std::min(length, kBytes - at)});
            at += extents.back().length + below(6) * unit;
          }
          on = pool.write(volume, extents, below(10) == 0);
        } else if (what < 62) {
          const std::uint64_t offset = below(kBytes / 512) * 512;
          const std::uint64_t length = std::min((1 + below(400)) * 512, kBytes - offset);
          on = pool.unmap(volume, {offset, length});
        } else if (what < 75) {
          on = pool.flush(volume);
        } else if (what < 80) {
          on = pool.checkpoint();
        } else if (what < 86 && snapshots.size() < 4) {
          on = pool.fork(volume, fresh_id(), true);
        } else if (what < 90 && !snapshots.empty() && volumes.size() < 4) {
          on = pool.fork(snapshots[below(snapshots.size())], fresh_id(), false);
        } else if (what < 94 && !snapshots.empty()) {
          on = pool.remove(snapshots[below(snapshots.size())]);
        } else if (what < 96 && volumes.size() > 2) {
          on = pool.remove(volume);
        } else if (what < 97 && volumes.size() > 1) {
          on = pool.flatten(volume);
        } else if (what < 98 && pool.model().at(volume).size_bytes < 2 * kBytes) {
          on = pool.resize(volume, pool.model().at(volume).size_bytes + (1 + below(32)) * 4096);
        } else if (what < 99) {
          for (const Uuid& snapshot : snapshots) {
            if (pool.model().at(snapshot).parent == volume) {
              on = pool.revert(volume, snapshot);
              break;
            }
          }
        }
      }
      image = killed ? pool.image_after_kill(random()) : pool.disk().image_after_power_cut(random());
      pool.drop();
      CrashHarness::check(reactors, image, "round " + std::to_string(round));
    }
  }
  pool.open(image, 1);
  pool.verify();
  BOOST_TEST(operations > rounds);
  BOOST_TEST_MESSAGE(operations << " operations, " << rounds << " power cuts and kills");
}

BOOST_AUTO_TEST_SUITE_END()
