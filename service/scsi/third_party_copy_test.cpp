#include "scsi/copy_list.h"
#include "scsi/designators.h"
#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

struct Segment {
  std::uint64_t source;
  std::uint64_t destination;
  std::uint16_t blocks;
  std::uint16_t source_index = 0;
  std::uint16_t destination_index = 0;
};

Bytes target_descriptor(const Bench& bench, bool by_uuid = false) {
  Bytes target(32);
  target[0] = 0xe4;
  target[4] = 1;
  const auto naa = naa_designator(bench.uuid);
  const auto uuid = uuid_designator(bench.uuid);
  target[5] = by_uuid ? 0x0a : 0x03;
  target[7] = static_cast<std::uint8_t>(by_uuid ? uuid.size() : naa.size());
  if (by_uuid) {
    std::copy(uuid.begin(), uuid.end(), target.begin() + 8);
  } else {
    std::copy(naa.begin(), naa.end(), target.begin() + 8);
  }
  put_be16(target.data() + 30, 512);
  return target;
}

Bytes copy_list(const std::vector<Bytes>& targets, const std::vector<Segment>& segments, std::uint8_t list_id = 1,
                std::uint8_t usage = 0) {
  Bytes list(16);
  list[0] = list_id;
  list[1] = static_cast<std::uint8_t>(usage << 3);
  put_be16(list.data() + 2, static_cast<std::uint16_t>(32 * targets.size()));
  put_be32(list.data() + 8, static_cast<std::uint32_t>(28 * segments.size()));
  for (const Bytes& target : targets) list.insert(list.end(), target.begin(), target.end());
  for (const Segment& segment : segments) {
    Bytes bytes(28);
    bytes[0] = 0x02;
    bytes[3] = 24;
    put_be16(bytes.data() + 4, segment.source_index);
    put_be16(bytes.data() + 6, segment.destination_index);
    put_be16(bytes.data() + 10, segment.blocks);
    put_be64(bytes.data() + 12, segment.source);
    put_be64(bytes.data() + 20, segment.destination);
    list.insert(list.end(), bytes.begin(), bytes.end());
  }
  return list;
}

Request extended_copy(const Bytes& list) {
  Bytes cdb(16);
  cdb[0] = 0x83;
  put_be32(cdb.data() + 10, static_cast<std::uint32_t>(list.size()));
  return {.cdb = cdb, .data_out = list};
}
Request receive(std::uint8_t action, std::uint8_t list_id = 0) {
  Bytes cdb(16);
  cdb[0] = 0x84;
  cdb[1] = action;
  cdb[2] = list_id;
  cdb[13] = 255;
  return {.cdb = cdb, .data_in_bytes = 255};
}

}  // namespace

BOOST_AUTO_TEST_CASE(segments_are_copied_in_their_order) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    const Bytes data = pattern(300 * 512, 1);
    bench.bdev->poke(0, data);
    for (bool by_uuid : {false, true}) {
      const Bytes list = copy_list({target_descriptor(bench, by_uuid)},
                                   {{0, 1000, 300}, {1000, 3000, 300}, {5, 7000, 0}, {3299, 8191, 1}});
      check_good(bench.run(extended_copy(list), {1, 1}), list.size());
      BOOST_TEST((bench.bdev->peek(1000 * 512, data.size()) == data));
      BOOST_TEST((bench.bdev->peek(3000 * 512, data.size()) == data));
      BOOST_TEST((bench.bdev->peek(8191 * 512, 512) == Bytes(data.end() - 512, data.end())));
    }
  }
}

BOOST_AUTO_TEST_CASE(a_copy_onto_its_own_source_moves_it_like_memmove) {
  for (auto [source, destination] :
       {std::pair{100u, 150u}, std::pair{150u, 100u}, std::pair{100u, 100u}, std::pair{100u, 399u}}) {
    Bench bench;
    const Bytes data = pattern(300 * 512, 1);
    bench.bdev->poke(source * 512, data);
    const Bytes list = copy_list({target_descriptor(bench)}, {{source, destination, 300}});
    check_good(bench.run(extended_copy(list)), list.size());
    BOOST_TEST((bench.bdev->peek(destination * 512, data.size()) == data));
  }
}

BOOST_AUTO_TEST_CASE(lists_that_are_wrong_change_nothing) {
  Bench bench;
  const Bytes target = target_descriptor(bench);
  const Segment good{0, 100, 10};
  check_good(bench.run(extended_copy({})), 0);
  for (std::size_t length = 1; length < 16; ++length) {
    check_sense(bench.run(extended_copy(Bytes(length))), sense::kParameterListLength);
  }
  Bytes list = copy_list({target}, {good});
  for (std::size_t length = 16; length < list.size(); ++length) {
    check_sense(bench.run(extended_copy(Bytes(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(length)))),
                sense::kParameterListLength);
  }
  Request overrun = extended_copy(list);
  overrun.data_out.pop_back();
  BOOST_TEST((bench.run(overrun).outcome == Outcome::kOverrun));
  check_sense(bench.run(extended_copy(Bytes(kMaxCopyListBytes + 1))), sense::kParameterListLength);
  check_sense(bench.run(extended_copy(copy_list(std::vector<Bytes>(kMaxCopyTargets + 1, target), {good}))),
              sense::kTooManyTargetDescriptors);
  check_sense(bench.run(extended_copy(copy_list({target}, std::vector<Segment>(kMaxCopySegments + 1, good)))),
              sense::kTooManySegmentDescriptors);
  check_sense(bench.run(extended_copy(copy_list(std::vector<Bytes>(3, target), std::vector<Segment>(34, good)))),
              sense::kParameterListLength);

  auto with = [&](std::size_t byte, std::uint8_t value) {
    Bytes changed = copy_list({target}, {good});
    changed[byte] = value;
    return bench.run(extended_copy(changed));
  };
  check_sense(with(16, 0xe0), sense::kUnsupportedTargetDescriptor);
  check_sense(with(48, 0x03), sense::kUnsupportedSegmentDescriptor);
  check_invalid_parameter(with(17, 0xc0), 17);                  // LU ID TYPE
  check_sense(with(17, 0x20), sense::kCopyTargetNotReachable);  // NUL
  check_invalid_parameter(with(17, 0x05), 17);                  // not a disk
  check_invalid_parameter(with(23, 21), 23);                    // designator longer than its field
  check_sense(with(30, 0x77), sense::kCopyTargetNotReachable);  // somebody else's name
  check_sense(with(21, 0x13), sense::kCopyTargetNotReachable);  // a target port's name
  check_invalid_parameter(with(46, 0x10), 45);                  // another block length
  check_invalid_parameter(with(51, 23), 50);                    // segment descriptor length
  check_invalid_parameter(with(15, 1), 12);                     // inline data
  check_invalid_parameter(with(3, 31), 2);                      // half a target descriptor
  for (const Segment& segment : {Segment{0, 100, 10, 1, 0}, Segment{0, 100, 10, 0, 1}, Segment{0, 0, 1, 0xffff, 0}}) {
    check_sense(bench.run(extended_copy(copy_list({target}, {segment}))), sense::kCopyTargetNotReachable);
  }
  for (const Segment& segment :
       {Segment{0, 8191, 2}, Segment{8191, 0, 2}, Segment{UINT64_MAX, 0, 2}, Segment{0, 8193, 0}}) {
    check_sense(bench.run(extended_copy(copy_list({target}, {good, segment}))), sense::kCopyAborted);
  }
  BOOST_TEST(bench.bdev->seen().empty());
}

BOOST_AUTO_TEST_CASE(the_status_of_a_copy_is_kept_for_its_guest_and_told_once) {
  Bench bench;
  check_invalid_cdb(bench.run(receive(0x00, 7)), 2);
  const Bytes target = target_descriptor(bench);
  check_good(bench.run(extended_copy(copy_list({target}, {{0, 100, 10}, {0, 200, 5}}, 7))), 16 + 32 + 56);
  check_invalid_cdb(bench.run(receive(0x00, 7), {1, 0}), 2);
  const Answer status = bench.run(receive(0x00, 7), {0, 1});
  check_good(status, 12);
  BOOST_TEST(status.data == Bytes({0, 0, 0, 8, 1, 0, 2, 0, 0, 0, 0x1e, 0}), boost::test_tools::per_element());
  check_invalid_cdb(bench.run(receive(0x00, 7)), 2);
  for (std::uint8_t usage : {2, 3}) {
    check_good(bench.run(extended_copy(copy_list({target}, {{0, 100, 10}}, 8, usage))), 76);
    check_invalid_cdb(bench.run(receive(0x00, 8)), 2);
  }
  bench.bdev->fail_next(bdev::IoOp::kWrite, bdev::IoStatus::kNoSpace);
  check_sense(bench.run(extended_copy(copy_list({target}, {{0, 100, 10}}, 9))), sense::kSpaceAllocationFailed);
  BOOST_TEST(bench.run(receive(0x00, 9)).data[4] == 2);
}

BOOST_AUTO_TEST_CASE(the_limits_of_copies_are_told) {
  Bench bench;
  const Answer answer = bench.run(receive(0x03));
  check_good(answer, 46);
  BOOST_TEST(get_be32(answer.data.data()) == 42u);
  BOOST_TEST(get_be16(answer.data.data() + 8) == kMaxCopyTargets);
  BOOST_TEST(get_be16(answer.data.data() + 10) == kMaxCopySegments);
  BOOST_TEST(get_be32(answer.data.data() + 12) == kMaxCopyDescriptorBytes);
  BOOST_TEST(get_be32(answer.data.data() + 16) == 65535u * 512);
  BOOST_TEST(answer.data[37] == 9);
  check_invalid_cdb(bench.run(receive(0x01)), 1, 4);
}
