#include <set>

#include "scsi/command.h"
#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

struct Ask {
  std::uint8_t options = 0;
  std::uint8_t opcode = 0;
  std::uint16_t action = 0;
  std::uint32_t allocation = 65535;
};
Request ask(const Ask& what) {
  Bytes cdb(12);
  cdb[0] = 0xa3;
  cdb[1] = 0x0c;
  cdb[2] = what.options;
  cdb[3] = what.opcode;
  put_be16(cdb.data() + 4, what.action);
  put_be32(cdb.data() + 6, what.allocation);
  return {.cdb = cdb, .data_in_bytes = 65535};
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_table_is_sorted_and_its_usage_data_fits_its_lengths) {
  int previous = -1;
  for (const Command& command : commands()) {
    const int key = command.opcode << 16 | (command.service_action == kNoServiceAction ? 0 : command.service_action);
    BOOST_TEST(key > previous);
    previous = key;
    BOOST_TEST(command.usage[0] == command.opcode);
    BOOST_TEST((command.execute != nullptr));
    const int group = command.opcode >> 5;
    BOOST_TEST(command.length == (group == 0 ? 6 : group == 4 ? 16 : group == 5 ? 12 : 10));
    for (std::size_t i = command.length; i < command.usage.size(); ++i) BOOST_TEST(command.usage[i] == 0);
    if (command.service_action != kNoServiceAction) BOOST_TEST((command.usage[1] & 0x1f) == command.service_action);
    // Whatever changes the medium says where before it begins.
    if (command.is(Command::kModifiesMedium)) BOOST_TEST((command.prepare != nullptr));
  }
}

BOOST_AUTO_TEST_CASE(all_commands_are_listed_with_and_without_timeouts) {
  Bench bench;
  const Answer plain = bench.run(ask({}));
  check_good(plain, 4 + 8 * commands().size());
  BOOST_TEST(get_be32(plain.data.data()) == plain.data.size() - 4);
  std::size_t at = 4;
  for (const Command& command : commands()) {
    BOOST_TEST(plain.data[at] == command.opcode);
    const bool has_action = command.service_action != kNoServiceAction;
    BOOST_TEST((plain.data[at + 5] & 1) == has_action);
    BOOST_TEST(get_be16(plain.data.data() + at + 2) == (has_action ? command.service_action : 0));
    BOOST_TEST(get_be16(plain.data.data() + at + 6) == command.length);
    at += 8;
  }
  const Answer timed = bench.run(ask({.options = 0x80}));
  check_good(timed, 4 + 20 * commands().size());
  for (at = 4; at < timed.data.size(); at += 20) {
    BOOST_TEST((timed.data[at + 5] & 2) == 2);
    BOOST_TEST(get_be16(timed.data.data() + at + 8) == 10);
  }
  for (std::uint32_t allocation : {0u, 1u, 4u, 100u})
    check_good(bench.run(ask({.allocation = allocation})), allocation);
}

BOOST_AUTO_TEST_CASE(one_command_is_described_by_its_usage_bits) {
  Bench bench;
  for (const Command& command : commands()) {
    const bool has_action = command.service_action != kNoServiceAction;
    const std::uint16_t action = has_action ? command.service_action : 0;
    const Answer right = bench.run(ask({static_cast<std::uint8_t>(has_action ? 2 : 1), command.opcode, action}));
    check_good(right, 4u + command.length);
    BOOST_TEST(right.data[1] == 3);
    BOOST_TEST(get_be16(right.data.data() + 2) == command.length);
    BOOST_TEST(std::equal(right.data.begin() + 4, right.data.end(), command.usage.begin()));
    check_invalid_cdb(bench.run(ask({static_cast<std::uint8_t>(has_action ? 1 : 2), command.opcode, action})), 2, 2);
    check_good(bench.run(ask({3, command.opcode, action})), 4u + command.length);
    check_good(bench.run(ask({0x83, command.opcode, action})), 4u + command.length + 12);
  }
  const Answer unknown = bench.run(ask({1, 0xff}));
  check_good(unknown, 4);
  BOOST_TEST(unknown.data[1] == 1);
  const Answer unknown_action = bench.run(ask({2, 0x9e, 0x77}));
  BOOST_TEST(unknown_action.data[1] == 1);
  BOOST_TEST(bench.run(ask({3, 0x28, 1})).data[1] == 1);
  check_invalid_cdb(bench.run(ask({4})), 2, 2);
}

BOOST_AUTO_TEST_CASE(a_bit_that_is_not_in_the_usage_data_is_refused_where_it_is) {
  Bench bench;
  for (const Command& command : commands()) {
    for (int byte = 1; byte < command.length; ++byte) {
      for (int bit = 0; bit < 8; ++bit) {
        std::uint8_t allowed = command.usage[static_cast<std::size_t>(byte)];
        if (byte == 1) allowed |= command.obsolete;
        if (byte == 1 && command.service_action != kNoServiceAction) allowed |= 0x1f;
        if (allowed >> bit & 1) continue;
        Bytes cdb(16);
        cdb[0] = command.opcode;
        if (command.service_action != kNoServiceAction) cdb[1] = static_cast<std::uint8_t>(command.service_action);
        cdb[static_cast<std::size_t>(byte)] |= static_cast<std::uint8_t>(1 << bit);
        check_invalid_cdb(bench.run({.cdb = cdb}), byte, bit);
      }
    }
  }
  BOOST_TEST(bench.bdev->seen().empty());
}

BOOST_AUTO_TEST_CASE(commands_that_need_unmap_vanish_without_it) {
  Bench bench({.bdev = {.supports_unmap = false}});
  const Answer all = bench.run(ask({}));
  for (std::size_t at = 4; at < all.data.size(); at += 8) BOOST_TEST(all.data[at] != 0x42);
  BOOST_TEST(bench.run(ask({1, 0x42})).data[1] == 1);
}

BOOST_AUTO_TEST_CASE(task_management_functions_are_reported) {
  Bench bench;
  Bytes cdb{0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0};
  const Answer basic = bench.run({.cdb = cdb, .data_in_bytes = 255});
  check_good(basic, 4);
  BOOST_TEST(basic.data == Bytes({0xdc, 0x03, 0, 0}));
  cdb[2] = 0x80;
  const Answer extended = bench.run({.cdb = cdb, .data_in_bytes = 255});
  check_good(extended, 16);
  BOOST_TEST(extended.data[3] == 12);
}
