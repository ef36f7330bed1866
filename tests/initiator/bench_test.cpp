// The load generator asks for what a guest asks for, and counts what it asked.

#include "initiator/bench.h"

#include <boost/test/unit_test.hpp>
#include <memory>

#include "initiator/recording_disk.h"
#include "initiator/service_fixture.h"

namespace pollux::initiator {
namespace {

using bdev::IoOp;

struct Fixture : ServiceFixture {
  // One queue, on a new disk of its own.
  std::unique_ptr<BenchGuest> guest(bool scsi) {
    disk = std::make_shared<RecordingDisk>(ram());
    BenchGuestOptions options{.scsi = scsi};
    if (scsi) {
      options.socket_path = this->scsi("s", 1);
      add("s", 0, disk);
    } else {
      options.socket_path = blk("b", disk, 1);
    }
    auto made = std::make_unique<BenchGuest>(options);
    disk->take_seen();
    return made;
  }

  std::shared_ptr<RecordingDisk> disk;
};

BOOST_FIXTURE_TEST_SUITE(bench, Fixture)

BOOST_AUTO_TEST_CASE(writes_go_to_the_disks_cache) {
  for (const bool scsi : {true, false}) {
    BOOST_TEST_CONTEXT((scsi ? "scsi" : "blk")) {
      auto loaded = guest(scsi);
      const BenchResult result = run_bench({loaded.get()}, {.read_percent = 0, .requests = 64});
      BOOST_TEST(result.errors == 0u);
      BOOST_TEST(result.requests == 64u);
      BOOST_TEST(result.flushes == 0u);
      const auto seen = disk->take_seen();
      BOOST_REQUIRE(seen.size() == 64u);
      for (const auto& each : seen) {
        BOOST_TEST((each.op == IoOp::kWrite));
        BOOST_TEST((each.flags & bdev::IoRequest::kFua) == 0);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(a_flush_follows_so_many_writes) {
  for (const bool scsi : {true, false}) {
    BOOST_TEST_CONTEXT((scsi ? "scsi" : "blk")) {
      auto loaded = guest(scsi);
      const BenchResult result =
          run_bench({loaded.get()}, {.depth = 1, .read_percent = 0, .flush_every = 4, .requests = 12});
      BOOST_TEST(result.errors == 0u);
      BOOST_TEST(result.requests == 12u);
      BOOST_TEST(result.flushes == 2u);
      BOOST_TEST(result.latency.total() == 12u);
      BOOST_TEST(result.flush_latency.total() == 2u);
      const auto seen = disk->take_seen();
      BOOST_REQUIRE(seen.size() == 14u);
      for (std::size_t i = 0; i < seen.size(); ++i) {
        BOOST_TEST((seen[i].op == (i % 5 == 4 ? IoOp::kFlush : IoOp::kWrite)), "request " << i);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(places_that_earlier_runs_did_are_skipped) {
  auto loaded = guest(/*scsi=*/false);
  const std::uint64_t places = loaded->size_bytes() / 4096;
  const BenchResult some = run_bench({loaded.get()}, {.read_percent = 0, .once = true, .requests = 100});
  BOOST_TEST(some.requests == 100u);
  const BenchResult rest = run_bench({loaded.get()}, {.read_percent = 0, .once = true, .skip = 100});
  BOOST_TEST(rest.requests == places - 100);
}

BOOST_AUTO_TEST_CASE(the_share_of_the_worst_guest_is_told) {
  auto first = std::make_unique<BenchGuest>(BenchGuestOptions{.socket_path = blk("one", ram(), 1), .scsi = false});
  auto second =
      std::make_unique<BenchGuest>(BenchGuestOptions{.socket_path = blk("two", ram(4 << 20), 1), .scsi = false});
  // Every place once: the larger disk has four times as many.
  const BenchResult result = run_bench({first.get(), second.get()}, {.seconds = 60, .once = true});
  BOOST_TEST(result.requests == (16U << 20) / 4096 + (4U << 20) / 4096);
  BOOST_TEST(result.worst_share == 0.4, boost::test_tools::tolerance(0.001));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
