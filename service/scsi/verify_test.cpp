#include "scsi/scratch.h"
#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

constexpr std::uint8_t kVerifies[] = {0x2f, 0xaf, 0x8f};
constexpr std::uint8_t kWriteAndVerifies[] = {0x2e, 0xae, 0x8e};
constexpr std::uint64_t kBlocks = 8192;

}  // namespace

BOOST_AUTO_TEST_CASE(verify_compares_with_the_data_and_says_where_it_differs) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    // More than one scratch buffer's worth.
    const Bytes data = pattern(300 * 512, 1);
    bench.bdev->poke(5 * 512, data);
    for (std::uint8_t opcode : kVerifies) {
      check_good(bench.run({.cdb = range_cdb({opcode, 5, 300, 0x02}), .data_out = data}, {0, 1}), data.size());
      for (std::size_t wrong : {0u, 511u, 65535u, 65536u, 300u * 512 - 1}) {
        Bytes other = data;
        other[wrong] ^= 1;
        const Answer answer = bench.run({.cdb = range_cdb({opcode, 5, 300, 0x02}), .data_out = other});
        check_sense(answer, sense::kMiscompareDuringVerify);
        BOOST_TEST(answer.information().value() == wrong);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(verify_against_one_block_compares_it_with_each) {
  Bench bench;
  const Bytes block = pattern(512, 4);
  for (std::size_t i = 0; i < 200; ++i) bench.bdev->poke(i * 512, block);
  for (std::uint8_t opcode : kVerifies) {
    check_good(bench.run({.cdb = range_cdb({opcode, 0, 200, 0x06}), .data_out = block}), 512);
    const Answer answer = bench.run({.cdb = range_cdb({opcode, 0, 201, 0x06}), .data_out = block});
    check_sense(answer, sense::kMiscompareDuringVerify);
  }
}

BOOST_AUTO_TEST_CASE(verify_of_the_medium_reads_all_of_it_and_takes_no_data) {
  Bench bench;
  for (std::uint8_t opcode : kVerifies) {
    bench.bdev->forget_seen();
    check_good(bench.run({.cdb = range_cdb({opcode, 1, 8191})}), 0);
    std::uint64_t read = 0;
    for (const auto& seen : bench.bdev->seen()) read += seen.length_bytes;
    BOOST_TEST(read == 8191u * 512);
    bench.bdev->fail_next(bdev::IoOp::kRead, bdev::IoStatus::kMediumError);
    check_sense(bench.run({.cdb = range_cdb({opcode, 0, 200})}), sense::kUnrecoveredReadError);
  }
}

BOOST_AUTO_TEST_CASE(verify_checks_its_fields_before_it_reads) {
  Bench bench;
  for (std::uint8_t opcode : kVerifies) {
    const int length_byte = opcode == 0x2f ? 7 : opcode == 0xaf ? 6 : 10;
    check_invalid_cdb(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x04}), .data_out = Bytes(512)}), 1, 2);
    check_invalid_cdb(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x22}), .data_out = Bytes(512)}), 1, 5);
    check_sense(bench.run({.cdb = range_cdb({opcode, kBlocks, 1, 0x02}), .data_out = Bytes(512)}),
                sense::kLbaOutOfRange);
    check_sense(bench.run({.cdb = range_cdb({opcode, kBlocks + 1, 0, 0x02})}), sense::kLbaOutOfRange);
    check_good(bench.run({.cdb = range_cdb({opcode, 0, 0, 0x02})}), 0);
    const Answer overrun = bench.run({.cdb = range_cdb({opcode, 0, 2, 0x02}), .data_out = Bytes(1023)});
    BOOST_TEST((overrun.outcome == Outcome::kOverrun));
    check_invalid_cdb(overrun, length_byte);
    check_good(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x10})}), 0);  // DPO
  }
  BOOST_TEST(bench.bdev->seen().size() == 3u);
}

BOOST_AUTO_TEST_CASE(write_and_verify_writes_durably_and_reads_back) {
  Bench bench;
  std::uint8_t seed = 1;
  for (std::uint8_t opcode : kWriteAndVerifies) {
    for (std::uint8_t check : {0x00, 0x02, 0x12}) {
      bench.bdev->forget_seen();
      const Bytes data = pattern(200 * 512, seed++);
      check_good(bench.run({.cdb = range_cdb({opcode, 9, 200, check}), .data_out = data}), data.size());
      BOOST_TEST((bench.bdev->peek(9 * 512, data.size()) == data));
      const auto seen = bench.bdev->seen();
      BOOST_REQUIRE_EQUAL(seen.size(), 3u);
      BOOST_TEST((seen[0].op == bdev::IoOp::kWrite));
      BOOST_TEST(seen[0].flags == bdev::IoRequest::kFua);
      BOOST_TEST((seen[2].op == bdev::IoOp::kRead));
    }
    check_invalid_cdb(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x06}), .data_out = Bytes(512)}), 1, 2);
    bench.bdev->fail_next(bdev::IoOp::kRead, bdev::IoStatus::kMediumError);
    check_sense(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x02}), .data_out = Bytes(512)}),
                sense::kUnrecoveredReadError);
  }
}

BOOST_AUTO_TEST_CASE(more_verifies_than_scratch_buffers_all_get_their_turn) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    bench.bdev->pause();
    std::vector<std::unique_ptr<Pending>> pending;
    for (std::size_t i = 0; i < 5 * kScratchBuffers; ++i) {
      pending.push_back(bench.start({.cdb = range_cdb({0x8f, 0, 400})}, {i % 2, 0}));
    }
    // Two initiators that want all: each has one of its own, and so many of the others that some are left.
    bench.bdev->await_paused(kScratchBuffers - 1);
    bench.bdev->resume();
    for (auto& each : pending) check_good(each->answer(), 0);
  }
}
