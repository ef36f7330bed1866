#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

Request compare_and_write(std::uint64_t lba, const Bytes& expected, const Bytes& wanted, std::uint8_t flags = 0) {
  Bytes cdb(16);
  cdb[0] = 0x89;
  cdb[1] = flags;
  put_be64(cdb.data() + 2, lba);
  cdb[13] = static_cast<std::uint8_t>(expected.size() / 512);
  Bytes data = expected;
  data.insert(data.end(), wanted.begin(), wanted.end());
  return {.cdb = cdb, .data_out = data};
}

}  // namespace

BOOST_AUTO_TEST_CASE(compare_and_write_writes_only_what_compares) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    for (std::size_t blocks : {1u, 2u, 127u, 128u}) {
      const Bytes old = pattern(blocks * 512, 1);
      const Bytes fresh = pattern(blocks * 512, 2);
      bench.bdev->poke(3 * 512, old);
      Bytes wrong = old;
      wrong[blocks * 512 - 7] ^= 1;
      const Answer refused = bench.run(compare_and_write(3, wrong, fresh), {1, 1});
      check_sense(refused, sense::kMiscompareDuringVerify);
      BOOST_TEST(refused.information().value() == blocks * 512 - 7);
      BOOST_TEST((bench.bdev->peek(3 * 512, old.size()) == old));
      check_good(bench.run(compare_and_write(3, old, fresh), {0, 1}), 2 * old.size());
      BOOST_TEST((bench.bdev->peek(3 * 512, old.size()) == fresh));
    }
  }
}

// docs/scsi-conformance.md: what a guest may be told whose command was done by a process that died before it could say
// so.
BOOST_AUTO_TEST_CASE(compare_and_write_that_is_handed_in_again_claims_nothing_that_it_did_not_find) {
  Bench bench;
  const Bytes open(512, 0);
  const Bytes taken(512, 1);
  Request request = compare_and_write(3, open, taken);
  request.arrival = {.number = 7, .again = true};
  check_good(bench.run(request), 1024);
  // Whether it was this guest or another one that wrote the same cannot be told.
  check_sense(bench.run(request), sense::kMiscompareDuringVerify);
  BOOST_TEST((bench.bdev->peek(3 * 512, 512) == taken));
}

BOOST_AUTO_TEST_CASE(compare_and_write_checks_its_fields) {
  Bench bench;
  check_good(bench.run(compare_and_write(0, {}, {})), 0);
  check_sense(bench.run(compare_and_write(8192, Bytes(512), Bytes(512))), sense::kLbaOutOfRange);
  check_invalid_cdb(bench.run(compare_and_write(0, Bytes(129 * 512), Bytes(129 * 512))), 13);
  const Answer overrun = bench.run(compare_and_write(0, Bytes(512), Bytes(511)));
  BOOST_TEST((overrun.outcome == Outcome::kOverrun));
  check_invalid_cdb(overrun, 13);
  BOOST_TEST(bench.bdev->seen().empty());
  check_good(bench.run(compare_and_write(0, Bytes(512), Bytes(512), 0x18)), 1024);
  BOOST_TEST(bench.bdev->seen().back().flags == bdev::IoRequest::kFua);
  bench.bdev->fail_next(bdev::IoOp::kWrite, bdev::IoStatus::kNoSpace);
  check_sense(bench.run(compare_and_write(0, Bytes(512), Bytes(512))), sense::kSpaceAllocationFailed);
  // The range is free again after a failure.
  check_good(bench.run(compare_and_write(0, Bytes(512), Bytes(512)), {1, 1}), 1024);
}

BOOST_AUTO_TEST_CASE(or_write_sets_bits_and_clears_none) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    const Bytes old = pattern(300 * 512, 1);
    const Bytes bits = pattern(300 * 512, 77);
    bench.bdev->poke(0, old);
    check_good(bench.run({.cdb = range_cdb({0x8b, 0, 300}), .data_out = bits}, {0, 1}), bits.size());
    const Bytes now = bench.bdev->peek(0, bits.size());
    for (std::size_t i = 0; i < now.size(); ++i) BOOST_REQUIRE_EQUAL(now[i], old[i] | bits[i]);
    check_good(bench.run({.cdb = range_cdb({0x8b, 0, 0})}), 0);
    check_sense(bench.run({.cdb = range_cdb({0x8b, 8192, 1}), .data_out = Bytes(512)}), sense::kLbaOutOfRange);
  }
}

BOOST_AUTO_TEST_CASE(a_write_from_another_reactor_waits_for_the_compare_and_write_on_its_range) {
  Bench bench;
  bench.bdev->pause();
  auto exclusive = bench.start(compare_and_write(10, Bytes(1024), Bytes(1024, 1)), {0, 0});
  bench.bdev->await_paused(1);  // it reads
  auto over = bench.start({.cdb = range_cdb({0x2a, 11, 1}), .data_out = Bytes(512, 2)}, {1, 1});
  auto zeroes = bench.start({.cdb = range_cdb({0x41, 0, 11}), .data_out = Bytes(512)}, {0, 1});
  auto beside = bench.start({.cdb = range_cdb({0x2a, 12, 1}), .data_out = Bytes(512, 3)}, {1, 1});
  auto read = bench.start({.cdb = range_cdb({0x28, 10, 2}), .data_in_bytes = 1024}, {1, 0});
  bench.bdev->await_paused(3);  // its read, the write beside, the read: not the write over it
  bench.bdev->resume();
  check_good(exclusive->answer(), 2048);
  check_good(over->answer(), 512);
  check_good(beside->answer(), 512);
  check_good(zeroes->answer(), 512);
  check_good(read->answer(), 1024);
  const Bytes now = bench.bdev->peek(10 * 512, 1536);
  BOOST_TEST(now[512] == 2);
  BOOST_TEST(now[1024] == 3);
}

BOOST_AUTO_TEST_CASE(a_compare_and_write_waits_for_writes_that_are_with_the_device) {
  Bench bench;
  bench.bdev->pause();
  auto first = bench.start({.cdb = range_cdb({0x2a, 10, 1}), .data_out = Bytes(512, 5)}, {1, 1});
  bench.bdev->await_paused(1);
  auto exclusive = bench.start(compare_and_write(10, Bytes(512), Bytes(512, 1)), {0, 0});
  // It has not begun to read: only the write is there, also after both reactors have turned.
  bench.settle();
  BOOST_TEST(bench.bdev->paused() == 1u);
  bench.bdev->resume();
  check_good(first->answer(), 512);
  // It compared with what the write left.
  check_sense(exclusive->answer(), sense::kMiscompareDuringVerify);
}

BOOST_AUTO_TEST_CASE(of_compare_and_writes_that_expect_the_same_exactly_one_wins) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    for (std::uint64_t round = 0; round < 100; ++round) {
      const Bytes old = bench.bdev->peek(4 * 512, 512);
      std::vector<std::unique_ptr<Pending>> rivals;
      for (std::size_t i = 0; i < 4; ++i) {
        Bytes next(512, static_cast<std::uint8_t>(i));
        put_be64(next.data(), round + 1);
        rivals.push_back(bench.start(compare_and_write(4, old, next), {i / 2, i % 2}));
      }
      std::size_t won = 0;
      std::size_t winner = 0;
      for (std::size_t i = 0; i < 4; ++i) {
        const Answer answer = rivals[i]->answer();
        if (answer.status == ScsiStatus::kGood) {
          ++won;
          winner = i;
        } else {
          check_sense(answer, sense::kMiscompareDuringVerify);
        }
      }
      BOOST_REQUIRE_EQUAL(won, 1u);
      BOOST_REQUIRE_EQUAL(bench.bdev->peek(4 * 512, 512)[511], winner);
    }
  }
}

BOOST_AUTO_TEST_CASE(many_compare_and_writes_at_once_each_see_the_one_before) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    std::vector<std::unique_ptr<Pending>> pending;
    for (std::size_t i = 0; i < 200; ++i) {
      pending.push_back(bench.start(compare_and_write(0, Bytes(512, static_cast<std::uint8_t>(i % 2)),
                                                      Bytes(512, static_cast<std::uint8_t>((i + 1) % 2))),
                                    {0, 0}));
    }
    for (auto& each : pending) check_good(each->answer(), 1024);
  }
}
