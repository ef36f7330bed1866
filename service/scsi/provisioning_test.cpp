#include "scsi/limits.h"
#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

struct Range {
  std::uint64_t lba;
  std::uint32_t blocks;
};
Bytes unmap_list(const std::vector<Range>& ranges) {
  Bytes list(8 + 16 * ranges.size());
  put_be16(list.data(), static_cast<std::uint16_t>(list.size() - 2));
  put_be16(list.data() + 2, static_cast<std::uint16_t>(list.size() - 8));
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    put_be64(list.data() + 8 + 16 * i, ranges[i].lba);
    put_be32(list.data() + 16 + 16 * i, ranges[i].blocks);
  }
  return list;
}
Request send_list(const Bytes& list) {
  return {.cdb = range_cdb({0x42, 0, static_cast<std::uint32_t>(list.size())}), .data_out = list};
}
Request unmap(const std::vector<Range>& ranges) {
  return send_list(unmap_list(ranges));
}

constexpr std::uint64_t kBlocks = 8192;

}  // namespace

BOOST_AUTO_TEST_CASE(unmapped_blocks_read_as_zeros_and_their_neighbours_do_not) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    bench.bdev->fill(0xaa);
    check_good(bench.run(unmap({{1, 2}, {10, 0}, {100, 50}, {kBlocks - 1, 1}}), {1, 1}), 8 + 4 * 16);
    for (const auto& seen : bench.bdev->seen()) {
      BOOST_TEST((seen.op == bdev::IoOp::kWriteZeroes));
      BOOST_TEST(seen.flags == bdev::IoRequest::kMayUnmap);
    }
    BOOST_TEST(bench.bdev->seen().size() == 3u);
    for (std::uint64_t block : {1u, 2u, 100u, 149u, 8191u})
      BOOST_TEST((bench.bdev->peek(block * 512, 512) == Bytes(512)));
    for (std::uint64_t block : {0u, 3u, 10u, 99u, 150u, 8190u}) {
      BOOST_TEST((bench.bdev->peek(block * 512, 512) == Bytes(512, 0xaa)));
    }
  }
}

BOOST_AUTO_TEST_CASE(unmap_checks_every_descriptor_before_it_touches_anything) {
  Bench bench;
  check_sense(bench.run(unmap({{0, 8}, {kBlocks, 1}})), sense::kLbaOutOfRange);
  check_sense(bench.run(unmap({{0, 8}, {UINT64_MAX, 2}})), sense::kLbaOutOfRange);
  check_good(bench.run(unmap({{kBlocks, 0}})), 24);
  std::vector<Range> many(kMaxUnmapDescriptors, Range{0, 0});
  check_good(bench.run(unmap(many)), 8 + 16 * kMaxUnmapDescriptors);
  many.push_back({0, 0});
  check_invalid_parameter(bench.run(unmap(many)), 2);
  Bench big({.bdev = {.size_bytes = 2 * kGiB, .block_bytes = 512}});
  check_invalid_parameter(big.run(unmap({{0, kMaxUnmapBlocks}, {0, 1}})), 8 + 16 + 8);
  BOOST_TEST(bench.bdev->seen().empty());
  BOOST_TEST(big.bdev->seen().empty());
}

BOOST_AUTO_TEST_CASE(unmap_does_not_believe_the_lengths_in_its_list) {
  Bench bench;
  check_good(bench.run({.cdb = range_cdb({0x42, 0, 0})}), 0);
  for (std::uint32_t length = 1; length < 8; ++length) {
    check_sense(bench.run({.cdb = range_cdb({0x42, 0, length}), .data_out = Bytes(length)}),
                sense::kParameterListLength);
  }
  Bytes list = unmap_list({{0, 1}});
  put_be16(list.data() + 2, 32);  // more descriptors than the list holds
  check_sense(bench.run(send_list(list)), sense::kParameterListLength);
  put_be16(list.data() + 2, 0xffff);
  check_sense(bench.run(send_list(list)), sense::kParameterListLength);
  list = unmap_list({{0, 1}});
  put_be16(list.data(), 8);  // UNMAP DATA LENGTH contradicts the descriptors' length
  check_invalid_parameter(bench.run(send_list(list)), 0);
  list = unmap_list({{0, 1}});
  const Answer overrun = bench.run({.cdb = range_cdb({0x42, 0, 24}), .data_out = Bytes(list.begin(), list.end() - 1)});
  BOOST_TEST((overrun.outcome == Outcome::kOverrun));
  check_invalid_cdb(overrun, 7);
  check_invalid_cdb(bench.run({.cdb = range_cdb({0x42, 0, 24, 0x01}), .data_out = list}), 1, 0);  // ANCHOR
  BOOST_TEST(bench.bdev->seen().empty());
  // An incomplete descriptor at the end is ignored.
  list = unmap_list({{0, 1}, {1, 1}});
  list.resize(list.size() - 1);
  put_be16(list.data(), static_cast<std::uint16_t>(list.size() - 2));
  put_be16(list.data() + 2, static_cast<std::uint16_t>(list.size() - 8));
  check_good(bench.run(send_list(list)), list.size());
  BOOST_TEST(bench.bdev->seen().size() == 1u);
}

BOOST_AUTO_TEST_CASE(unmap_that_fails_half_way_reports_it) {
  Bench bench;
  bench.bdev->fail_next(bdev::IoOp::kWriteZeroes, bdev::IoStatus::kIoError);
  check_sense(bench.run(unmap({{0, 1}, {5, 1}})), sense::kWriteError);
}

BOOST_AUTO_TEST_CASE(without_unmap_there_is_no_such_command) {
  Bench bench({.bdev = {.supports_unmap = false}});
  check_sense(bench.run(unmap({{0, 1}})), sense::kInvalidOpcode);
  for (std::uint8_t opcode : {0x41, 0x93}) {
    check_invalid_cdb(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x08}), .data_out = Bytes(512)}), 1, 3);
    check_good(bench.run({.cdb = range_cdb({opcode, 0, 1}), .data_out = Bytes(512)}), 512);
  }
}

BOOST_AUTO_TEST_CASE(write_same_repeats_its_block) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    const Bytes block = pattern(512, 3);
    for (std::uint8_t opcode : {0x41, 0x93}) {
      for (std::uint32_t blocks : {1u, 2u, 127u, 128u, 129u, 1000u}) {
        bench.bdev->fill(0xaa);
        check_good(bench.run({.cdb = range_cdb({opcode, 7, blocks}), .data_out = block}, {0, 1}), 512);
        for (std::uint32_t i = 0; i < blocks; ++i) BOOST_REQUIRE((bench.bdev->peek((7 + i) * 512, 512) == block));
        BOOST_TEST((bench.bdev->peek(6 * 512, 512) == Bytes(512, 0xaa)));
        BOOST_TEST((bench.bdev->peek((7 + blocks) * 512, 512) == Bytes(512, 0xaa)));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(write_same_of_zeros_is_one_request_and_frees_only_with_unmap) {
  Bench bench;
  bench.bdev->fill(0xaa);
  check_good(bench.run({.cdb = range_cdb({0x41, 0, 100}), .data_out = Bytes(512)}), 512);
  check_good(bench.run({.cdb = range_cdb({0x41, 100, 100, 0x08}), .data_out = Bytes(512)}), 512);
  check_good(bench.run({.cdb = range_cdb({0x93, 200, 100, 0x01})}), 0);
  check_good(bench.run({.cdb = range_cdb({0x93, 300, 100, 0x09})}), 0);
  const auto seen = bench.bdev->seen();
  BOOST_REQUIRE_EQUAL(seen.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    BOOST_TEST((seen[i].op == bdev::IoOp::kWriteZeroes));
    BOOST_TEST(seen[i].flags == (i % 2 ? bdev::IoRequest::kMayUnmap : 0));
  }
  BOOST_TEST((bench.bdev->peek(0, 400 * 512) == Bytes(400 * 512)));
  // Data that is not zero is written even when unmapping is asked for.
  const Bytes block = pattern(512, 3);
  check_good(bench.run({.cdb = range_cdb({0x93, 0, 1, 0x08}), .data_out = block}), 512);
  BOOST_TEST((bench.bdev->peek(0, 512) == block));
}

BOOST_AUTO_TEST_CASE(write_same_of_no_blocks_or_of_too_many_is_refused) {
  Bench bench({.bdev = {.size_bytes = 64 * kMiB}});
  for (std::uint32_t blocks : {0u, static_cast<std::uint32_t>(kMaxWriteSameBlocks) + 1}) {
    check_invalid_cdb(bench.run({.cdb = range_cdb({0x93, 0, blocks}), .data_out = Bytes(512)}), 10);
    check_invalid_cdb(bench.run({.cdb = range_cdb({0x41, 0, blocks}), .data_out = Bytes(512)}), 7);
  }
  check_sense(bench.run({.cdb = range_cdb({0x93, UINT64_MAX, 0}), .data_out = Bytes(512)}), sense::kLbaOutOfRange);
  BOOST_TEST(bench.bdev->seen().empty());
  check_good(bench.run({.cdb = range_cdb({0x93, 0, kMaxWriteSameBlocks}), .data_out = Bytes(512)}), 512);
}

BOOST_AUTO_TEST_CASE(write_same_checks_its_fields) {
  Bench bench;
  for (std::uint8_t opcode : {0x41, 0x93}) {
    const int length_byte = opcode == 0x41 ? 7 : 10;
    check_sense(bench.run({.cdb = range_cdb({opcode, kBlocks, 1}), .data_out = Bytes(512)}), sense::kLbaOutOfRange);
    check_invalid_cdb(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x10}), .data_out = Bytes(512)}), 1, 4);
    check_invalid_cdb(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x18}), .data_out = Bytes(512)}), 1, 4);
    check_invalid_cdb(bench.run({.cdb = range_cdb({opcode, 0, 1, 0x20}), .data_out = Bytes(512)}), 1, 5);
    for (std::size_t size : {0u, 256u, 511u, 513u, 1024u}) {
      check_invalid_cdb(bench.run({.cdb = range_cdb({opcode, 0, 1}), .data_out = Bytes(size)}), length_byte);
    }
  }
  // WRITE SAME (10) has no NDOB.
  check_invalid_cdb(bench.run({.cdb = range_cdb({0x41, 0, 1, 0x01}), .data_out = Bytes(512)}), 1, 0);
  BOOST_TEST(bench.bdev->seen().empty());
}

BOOST_AUTO_TEST_CASE(lba_status_is_mapped_to_the_end) {
  Bench bench;
  Bytes cdb{0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 24, 0, 0};
  const Answer answer = bench.run({.cdb = cdb, .data_in_bytes = 24});
  check_good(answer, 24);
  BOOST_TEST(get_be32(answer.data.data()) == 20u);
  BOOST_TEST(get_be64(answer.data.data() + 8) == 5u);
  BOOST_TEST(get_be32(answer.data.data() + 16) == kBlocks - 5);
  BOOST_TEST(answer.data[20] == 0);
  for (std::uint8_t allocation : {0, 1, 23}) {
    cdb[13] = allocation;
    check_good(bench.run({.cdb = cdb, .data_in_bytes = 24}), allocation);
  }
  put_be64(cdb.data() + 2, kBlocks);
  check_sense(bench.run({.cdb = cdb, .data_in_bytes = 24}), sense::kLbaOutOfRange);
  put_be64(cdb.data() + 2, UINT64_MAX);
  check_sense(bench.run({.cdb = cdb, .data_in_bytes = 24}), sense::kLbaOutOfRange);
}

BOOST_AUTO_TEST_CASE(lba_status_tells_mapped_from_deallocated) {
  BenchOptions options;
  options.bdev.reports_extents = true;
  Bench bench(options);
  bench.bdev->poke(7 * 512, Bytes(3 * 512, 0x5a));
  const auto status = [&](std::uint64_t lba) {
    Bytes cdb{0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0};
    put_be64(cdb.data() + 2, lba);
    const Answer answer = bench.run({.cdb = cdb, .data_in_bytes = 24});
    check_good(answer, 24);
    BOOST_TEST(get_be64(answer.data.data() + 8) == lba);
    return std::make_pair(get_be32(answer.data.data() + 16), answer.data[20] & 0xf);
  };
  BOOST_TEST((status(0) == std::make_pair(std::uint32_t{7}, 1)));
  BOOST_TEST((status(8) == std::make_pair(std::uint32_t{2}, 0)));
  BOOST_TEST((status(10) == std::make_pair(static_cast<std::uint32_t>(kBlocks - 10), 1)));
  bench.bdev->fail_next(bdev::IoOp::kExtent, bdev::IoStatus::kMediumError);
  Bytes cdb{0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0};
  BOOST_TEST((bench.run({.cdb = cdb, .data_in_bytes = 24}).status == ScsiStatus::kCheckCondition));
}
