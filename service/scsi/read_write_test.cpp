#include <random>

#include "scsi/limits.h"
#include "scsi/scratch.h"
#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

constexpr std::uint8_t kReads[] = {0x08, 0x28, 0xa8, 0x88};
constexpr std::uint8_t kWrites[] = {0x0a, 0x2a, 0xaa, 0x8a};
constexpr std::uint32_t kBlock = 512;
constexpr std::uint64_t kBlocks = 4 * kMiB / kBlock;

}  // namespace

BOOST_AUTO_TEST_CASE(every_size_of_write_is_read_back_by_every_size_of_read) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    std::uint8_t seed = 1;
    for (std::uint8_t write : kWrites) {
      for (std::uint8_t read : kReads) {
        const Bytes data = pattern(3 * kBlock, seed++);
        check_good(bench.run({.cdb = range_cdb({write, 7, 3}), .data_out = data}, {0, seed % 2u}), data.size());
        const Answer answer = bench.run({.cdb = range_cdb({read, 7, 3}), .data_in_bytes = data.size()}, {1, 1});
        check_good(answer, data.size());
        BOOST_TEST(answer.data == data, boost::test_tools::per_element());
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(zero_blocks_move_nothing_but_the_six_byte_commands_mean_256) {
  Bench bench;
  for (std::uint8_t opcode : {0x28, 0xa8, 0x88, 0x2a, 0xaa, 0x8a}) {
    check_good(bench.run({.cdb = range_cdb({opcode, 5, 0})}), 0);
    check_good(bench.run({.cdb = range_cdb({opcode, kBlocks, 0})}), 0);
    check_sense(bench.run({.cdb = range_cdb({opcode, kBlocks + 1, 0})}), sense::kLbaOutOfRange);
  }
  BOOST_TEST(bench.bdev->seen().empty());
  const Bytes data = pattern(256 * kBlock, 9);
  check_good(bench.run({.cdb = range_cdb({0x0a, 0, 0}), .data_out = data}), data.size());
  BOOST_TEST(bench.bdev->peek(0, data.size()) == data, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_range_past_the_end_or_past_2_to_the_64_is_out_of_range) {
  Bench bench;
  for (std::uint8_t opcode : {0x28, 0xa8, 0x88}) {
    check_sense(bench.run({.cdb = range_cdb({opcode, kBlocks - 1, 2}), .data_in_bytes = 1024}), sense::kLbaOutOfRange);
    check_sense(bench.run({.cdb = range_cdb({opcode, kBlocks, 1}), .data_in_bytes = 512}), sense::kLbaOutOfRange);
    check_sense(bench.run({.cdb = range_cdb({opcode, 0xffffffff, 1}), .data_in_bytes = 512}), sense::kLbaOutOfRange);
  }
  for (std::uint64_t lba : {UINT64_MAX, UINT64_MAX - 1, UINT64_C(1) << 63, UINT64_C(1) << 55}) {
    check_sense(bench.run({.cdb = range_cdb({0x88, lba, 2}), .data_in_bytes = 1024}), sense::kLbaOutOfRange);
    check_sense(bench.run({.cdb = range_cdb({0x8a, lba, 2}), .data_out = Bytes(1024)}), sense::kLbaOutOfRange);
  }
  BOOST_TEST(bench.bdev->seen().empty());
}

BOOST_AUTO_TEST_CASE(a_transfer_longer_than_the_stated_limit_is_refused) {
  Bench bench({.bdev = {.size_bytes = 64 * kMiB}});
  const auto limit = static_cast<std::uint32_t>(kMaxTransferBytes / kBlock);
  check_invalid_cdb(bench.run({.cdb = range_cdb({0x88, 0, limit + 1}), .data_in_bytes = 512}), 10);
  check_invalid_cdb(bench.run({.cdb = range_cdb({0xa8, 0, limit + 1}), .data_in_bytes = 512}), 6);
  check_invalid_cdb(bench.run({.cdb = range_cdb({0x8a, 0, limit + 1}), .data_out = Bytes(512)}), 10);
}

BOOST_AUTO_TEST_CASE(a_larger_buffer_leaves_a_residual_and_a_smaller_one_is_an_overrun) {
  Bench bench;
  const Bytes data = pattern(2 * kBlock, 3);
  check_good(bench.run({.cdb = range_cdb({0x2a, 1, 1}), .data_out = data}), kBlock);
  BOOST_TEST(bench.bdev->peek(2 * kBlock, kBlock) == Bytes(kBlock), boost::test_tools::per_element());
  check_good(bench.run({.cdb = range_cdb({0x28, 1, 1}), .data_in_bytes = 10000}), kBlock);
  bench.bdev->forget_seen();
  for (std::size_t size : {0u, 1u, 511u, 1023u}) {
    const Answer read = bench.run({.cdb = range_cdb({0x28, 1, 2}), .data_in_bytes = size});
    BOOST_TEST((read.outcome == Outcome::kOverrun));
    check_invalid_cdb(read, 7);
    const Answer write = bench.run({.cdb = range_cdb({0x2a, 1, 2}), .data_out = Bytes(size)});
    BOOST_TEST((write.outcome == Outcome::kOverrun));
    check_invalid_cdb(write, 7);
  }
  BOOST_TEST(bench.bdev->seen().empty());
}

BOOST_AUTO_TEST_CASE(fua_reaches_the_device_and_a_read_with_it_flushes_first) {
  Bench bench;
  const Bytes data(kBlock);
  for (std::uint8_t opcode : {0x2a, 0xaa, 0x8a}) {
    check_good(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x08}), .data_out = data}), kBlock);
    check_good(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x12}), .data_out = data}), kBlock);
  }
  const auto seen = bench.bdev->seen();
  BOOST_REQUIRE_EQUAL(seen.size(), 6u);
  for (std::size_t i = 0; i < seen.size(); ++i) BOOST_TEST(seen[i].flags == (i % 2 == 0 ? bdev::IoRequest::kFua : 0));
  bench.bdev->forget_seen();
  check_good(bench.run({.cdb = range_cdb({0x28, 0, 1, 0x08}), .data_in_bytes = kBlock}), kBlock);
  BOOST_REQUIRE_EQUAL(bench.bdev->seen().size(), 2u);
  BOOST_TEST((bench.bdev->seen()[0].op == bdev::IoOp::kFlush));
  BOOST_TEST((bench.bdev->seen()[1].op == bdev::IoOp::kRead));
  // WRITE (6) has an address bit where the others have FUA.
  bench.bdev->forget_seen();
  check_sense(bench.run({.cdb = cdb6(0x0a, 0x08, 0, 0, 1), .data_out = data}), sense::kLbaOutOfRange);
}

BOOST_AUTO_TEST_CASE(device_errors_become_the_sense_data_of_the_table) {
  Bench bench;
  constexpr SenseCode kAborted{SenseKey::kAbortedCommand, 0, 0};
  const struct {
    bdev::IoStatus status;
    SenseCode on_read;
    SenseCode on_write;
    SenseCode on_flush;
  } kTable[] = {
      {bdev::IoStatus::kIoError, sense::kUnrecoveredReadError, sense::kWriteError, sense::kInternalTargetFailure},
      {bdev::IoStatus::kMediumError, sense::kUnrecoveredReadError, sense::kUnrecoveredReadError,
       sense::kUnrecoveredReadError},
      {bdev::IoStatus::kNoSpace, sense::kSpaceAllocationFailed, sense::kSpaceAllocationFailed,
       sense::kSpaceAllocationFailed},
      {bdev::IoStatus::kInvalid, sense::kInternalTargetFailure, sense::kInternalTargetFailure,
       sense::kInternalTargetFailure},
      {bdev::IoStatus::kReadOnly, sense::kWriteProtected, sense::kWriteProtected, sense::kWriteProtected},
      {bdev::IoStatus::kAborted, kAborted, kAborted, kAborted},
  };
  for (const auto& row : kTable) {
    bench.bdev->fail_next(bdev::IoOp::kRead, row.status);
    check_sense(bench.run({.cdb = range_cdb({0x28, 0, 1}), .data_in_bytes = kBlock}), row.on_read);
    bench.bdev->fail_next(bdev::IoOp::kWrite, row.status);
    check_sense(bench.run({.cdb = range_cdb({0x2a, 0, 1}), .data_out = Bytes(kBlock)}), row.on_write);
    bench.bdev->fail_next(bdev::IoOp::kFlush, row.status);
    check_sense(bench.run({.cdb = range_cdb({0x35, 0, 0})}), row.on_flush);
  }
}

BOOST_AUTO_TEST_CASE(synchronize_cache_flushes_and_checks_its_range) {
  Bench bench;
  for (std::uint8_t opcode : {0x35, 0x91}) {
    bench.bdev->forget_seen();
    for (std::uint8_t flags : {0x00, 0x02, 0x04, 0x06}) {
      check_good(bench.run({.cdb = range_cdb({opcode, 1, 2, flags})}), 0);
    }
    BOOST_REQUIRE_EQUAL(bench.bdev->seen().size(), 4u);
    for (const auto& seen : bench.bdev->seen()) BOOST_TEST((seen.op == bdev::IoOp::kFlush));
    check_sense(bench.run({.cdb = range_cdb({opcode, kBlocks, 1})}), sense::kLbaOutOfRange);
  }
}

BOOST_AUTO_TEST_CASE(pre_fetch_checks_its_range) {
  Bench bench;
  for (std::uint8_t opcode : {0x34, 0x90}) {
    check_good(bench.run({.cdb = range_cdb({opcode, 1, 2, 0x02})}), 0);
    check_sense(bench.run({.cdb = range_cdb({opcode, kBlocks - 1, 2})}), sense::kLbaOutOfRange);
  }
}

BOOST_AUTO_TEST_CASE(protection_and_reserved_bits_are_invalid_fields) {
  Bench bench;
  for (std::uint8_t opcode : {0x28, 0xa8, 0x88}) {
    for (int protect = 1; protect < 8; ++protect) {
      const int highest = protect >= 4 ? 7 : protect >= 2 ? 6 : 5;
      const auto flags = static_cast<std::uint8_t>(protect << 5);
      check_invalid_cdb(bench.run({.cdb = range_cdb({opcode, 0, 1, flags}), .data_in_bytes = kBlock}), 1, highest);
    }
  }
  // NACA in the CONTROL byte: NORMACA is zero in the INQUIRY data.
  Bytes cdb = range_cdb({0x28, 0, 1});
  cdb[9] = 0x04;
  check_invalid_cdb(bench.run({.cdb = cdb, .data_in_bytes = kBlock}), 9, 2);
}

BOOST_AUTO_TEST_CASE(read_only_guests_and_devices_are_write_protected) {
  Bench bench({.guests = {{.initiator = "reader", .read_only = true, .announce_power_on = false},
                          {.initiator = "writer", .announce_power_on = false}}});
  const struct {
    Bytes cdb;
    std::size_t data_out;
  } kModifying[] = {
      {range_cdb({0x0a, 0, 1}), 512},  {range_cdb({0x2a, 0, 1}), 512}, {range_cdb({0xaa, 0, 1}), 512},
      {range_cdb({0x8a, 0, 1}), 512},  {range_cdb({0x41, 0, 1}), 512}, {range_cdb({0x93, 0, 1}), 512},
      {range_cdb({0x41, 0, 1, 8}), 0}, {range_cdb({0x2e, 0, 1}), 512}, {range_cdb({0xae, 0, 1}), 512},
      {range_cdb({0x8e, 0, 1}), 512},  {range_cdb({0x8b, 0, 1}), 512}, {range_cdb({0x89, 0, 1}), 1024},
      {range_cdb({0x42, 0, 24}), 24},
  };
  for (const auto& command : kModifying) {
    check_sense(bench.run({.cdb = command.cdb, .data_out = Bytes(command.data_out)}), sense::kWriteProtected);
  }
  check_good(bench.run({.cdb = range_cdb({0x28, 0, 1}), .data_in_bytes = kBlock}), kBlock);
  check_good(bench.run({.cdb = range_cdb({0x2a, 0, 1}), .data_out = Bytes(kBlock)}, {1, 0}), kBlock);
  Bench device({.bdev = {.read_only = true}});
  check_sense(device.run({.cdb = range_cdb({0x2a, 0, 1}), .data_out = Bytes(kBlock)}), sense::kWriteProtected);
  BOOST_TEST(device.bdev->seen().empty());
}

BOOST_AUTO_TEST_CASE(blocks_of_4096_bytes_work_the_same) {
  Bench bench({.bdev = {.block_bytes = 4096, .optimal_io_bytes = 4096}});
  const Bytes data = pattern(2 * 4096, 5);
  check_good(bench.run({.cdb = range_cdb({0x8a, 3, 2}), .data_out = data}), data.size());
  BOOST_TEST(bench.bdev->peek(3 * 4096, data.size()) == data, boost::test_tools::per_element());
  check_sense(bench.run({.cdb = range_cdb({0x28, 1024, 1}), .data_in_bytes = 4096}), sense::kLbaOutOfRange);
}

BOOST_AUTO_TEST_CASE(a_command_in_several_steps_is_one_operation_to_limits) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    const Bytes data = pattern(kBlocks * kBlock, 3);
    const auto check_operations = [&](bdev::IoOp op, std::size_t steps) {
      std::size_t found = 0;
      std::size_t operations = 0;
      for (const auto& seen : bench.bdev->seen()) {
        if (seen.op != op) continue;
        ++found;
        if ((seen.flags & bdev::IoRequest::kContinues) == 0) ++operations;
      }
      BOOST_TEST(found == steps);
      BOOST_TEST(operations == 1u);
      bench.bdev->forget_seen();
    };
    // WRITE, READ, VERIFY, WRITE SAME, WRITE AND VERIFY.
    for (unsigned round = 0; round < 2; ++round) {
      check_good(bench.run({.cdb = range_cdb({0x8a, 0, kBlocks}), .data_out = data}), data.size());
      check_operations(bdev::IoOp::kWrite, data.size() / kStepBytes);
      check_good(bench.run({.cdb = range_cdb({0x88, 0, kBlocks}), .data_in_bytes = data.size()}), data.size());
      check_operations(bdev::IoOp::kRead, data.size() / kStepBytes);
      check_good(bench.run({.cdb = range_cdb({0x8f, 0, kBlocks})}), 0);
      check_operations(bdev::IoOp::kRead, data.size() / kScratchBytes);
      check_good(bench.run({.cdb = range_cdb({0x93, 0, kBlocks}), .data_out = pattern(kBlock, 1)}), kBlock);
      check_operations(bdev::IoOp::kWrite, data.size() / kScratchBytes);
      check_good(bench.run({.cdb = range_cdb({0x8e, 0, kBlocks, 0x02}), .data_out = data}), data.size());
      check_operations(bdev::IoOp::kWrite, data.size() / kStepBytes);
    }
  }
}

BOOST_AUTO_TEST_CASE(two_reactors_and_two_guests_writing_at_random_leave_what_was_written_last) {
  Bench bench({.bdev = {.defer = true}});
  const auto seed = std::random_device{}();
  BOOST_TEST_MESSAGE("seed " << seed);
  std::mt19937 random(seed);
  // Each (guest, reactor) has a quarter of the blocks to itself, so that the last write is known.
  Bytes expected(4 * kMiB);
  std::vector<std::unique_ptr<Pending>> pending;
  for (int round = 0; round < 500; ++round) {
    const std::size_t quarter = random() % 4;
    const std::uint64_t blocks = 1 + random() % 16;
    const std::uint64_t lba = quarter * (kBlocks / 4) + random() % (kBlocks / 4 - blocks);
    const Bytes data = pattern(blocks * kBlock, static_cast<std::uint8_t>(random()));
    std::copy(data.begin(), data.end(), expected.begin() + static_cast<std::ptrdiff_t>(lba * kBlock));
    pending.push_back(bench.start({.cdb = range_cdb({0x8a, lba, static_cast<std::uint32_t>(blocks)}), .data_out = data},
                                  {quarter / 2, quarter % 2}));
  }
  for (auto& each : pending) BOOST_REQUIRE(each->answer().status == ScsiStatus::kGood);
  BOOST_TEST((bench.bdev->peek(0, expected.size()) == expected));
}
