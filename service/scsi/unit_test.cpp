#include "bdev/deep_stack.h"
#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

BOOST_AUTO_TEST_CASE(unknown_opcodes_service_actions_and_short_cdbs_are_refused) {
  Bench bench;
  for (int opcode : {0x04, 0x07, 0x20, 0x5d, 0x7f, 0x8c, 0x9c, 0xa4, 0xc0, 0xff}) {
    Bytes cdb(16);
    cdb[0] = static_cast<std::uint8_t>(opcode);
    check_sense(bench.run({.cdb = cdb}), sense::kInvalidOpcode);
  }
  for (std::uint8_t action : {0x00, 0x11, 0x13, 0x1f}) {
    Bytes cdb(16);
    cdb[0] = 0x9e;
    cdb[1] = action;
    check_invalid_cdb(bench.run({.cdb = cdb}), 1, 4);
  }
  for (std::uint8_t length = 1; length < 10; ++length) {
    check_invalid_cdb(bench.run({.cdb = range_cdb({0x28, 0, 1}), .data_in_bytes = 512, .cdb_length = length}), length);
  }
  BOOST_TEST(bench.bdev->seen().empty());
}

BOOST_AUTO_TEST_CASE(unit_attentions_come_once_in_order_of_importance_and_spare_the_exempt) {
  Bench bench({.guests = {{.initiator = "a"}}});
  bench.guests[0].nexus->raise(UnitAttention::kReportedLunsChanged);
  bench.guests[0].nexus->raise(UnitAttention::kCapacityChanged);
  check_good(bench.run({.cdb = {0x12, 0, 0, 0, 36, 0}, .data_in_bytes = 36}), 36);
  check_good(bench.run({.cdb = {0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0}, .data_in_bytes = 16}), 16);
  check_sense(bench.run({.cdb = cdb6(0x00)}), {SenseKey::kUnitAttention, 0x29, 0x00});
  // Also before anything else that is wrong with a command.
  check_sense(bench.run({.cdb = {0xff, 0, 0, 0, 0, 0}}), {SenseKey::kUnitAttention, 0x2a, 0x09});
  check_sense(bench.run({.cdb = cdb6(0x00)}, {0, 1}), {SenseKey::kUnitAttention, 0x3f, 0x0e});
  check_good(bench.run({.cdb = cdb6(0x00)}), 0);
}

BOOST_AUTO_TEST_CASE(request_sense_takes_a_unit_attention_as_data) {
  Bench bench({.guests = {{.initiator = "a"}}});
  const Answer fixed = bench.run({.cdb = cdb6(0x03, 0, 0, 0, 252), .data_in_bytes = 252});
  check_good(fixed, 18);
  BOOST_TEST(fixed.data[0] == 0x70);
  BOOST_TEST(fixed.data[2] == 6);
  BOOST_TEST(fixed.data[12] == 0x29);
  const Answer none = bench.run({.cdb = cdb6(0x03, 1, 0, 0, 252), .data_in_bytes = 252});
  check_good(none, 8);
  BOOST_TEST(none.data[0] == 0x72);
  BOOST_TEST(none.data[1] == 0);
  for (std::uint8_t allocation : {0, 1, 17}) {
    check_good(bench.run({.cdb = cdb6(0x03, 0, 0, 0, allocation), .data_in_bytes = 252}), allocation);
  }
}

BOOST_AUTO_TEST_CASE(start_stop_unit_flushes_when_stopping_and_refuses_to_eject) {
  Bench bench;
  check_good(bench.run({.cdb = cdb6(0x1b, 0, 0, 0, 0x01)}), 0);
  check_good(bench.run({.cdb = cdb6(0x1b, 0, 0, 0, 0x04)}), 0);
  BOOST_TEST(bench.bdev->seen().empty());
  check_good(bench.run({.cdb = cdb6(0x1b, 1, 0, 0, 0x00)}), 0);
  BOOST_REQUIRE_EQUAL(bench.bdev->seen().size(), 1u);
  BOOST_TEST((bench.bdev->seen()[0].op == bdev::IoOp::kFlush));
  check_good(bench.run({.cdb = cdb6(0x00)}), 0);
  check_invalid_cdb(bench.run({.cdb = cdb6(0x1b, 0, 0, 0, 0x02)}), 4, 1);
  check_invalid_cdb(bench.run({.cdb = cdb6(0x1b, 0, 0, 0, 0x08)}), 4, 3);
}

BOOST_AUTO_TEST_CASE(removal_defects_and_logs) {
  Bench bench;
  check_good(bench.run({.cdb = cdb6(0x1e, 0, 0, 0, 0x01)}), 0);
  check_good(bench.run({.cdb = cdb6(0x1e)}), 0);
  check_invalid_cdb(bench.run({.cdb = cdb6(0x1e, 0, 0, 0, 0x02)}), 4, 1);
  const Answer ten = bench.run({.cdb = {0x37, 0, 0x1d, 0, 0, 0, 0, 0, 32, 0}, .data_in_bytes = 32});
  check_good(ten, 4);
  BOOST_TEST(ten.data == Bytes({0, 0x1d, 0, 0}));
  const Answer twelve = bench.run({.cdb = {0xb7, 0x18, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, .data_in_bytes = 32});
  check_good(twelve, 8);
  BOOST_TEST(twelve.data == Bytes({0, 0x18, 0, 0, 0, 0, 0, 0}));
  check_good(bench.run({.cdb = {0x4d, 0, 0x40, 0, 0, 0, 0, 0, 255, 0}, .data_in_bytes = 255}), 5);
  check_invalid_cdb(bench.run({.cdb = {0x4d, 0, 0x42, 0, 0, 0, 0, 0, 255, 0}, .data_in_bytes = 255}), 2, 5);
}

BOOST_AUTO_TEST_CASE(logical_units_refuse_what_they_cannot_be_made_of) {
  BOOST_TEST((LogicalUnit::make({}).error().code == ErrorCode::kInvalid));
  auto odd = std::make_shared<TestBdev>(TestBdev::Options{.block_bytes = 520});
  BOOST_TEST((LogicalUnit::make({.bdev = odd}).error().code == ErrorCode::kInvalid));
  const auto deep = bdev::test::make_too_deep(std::make_shared<TestBdev>(TestBdev::Options{}));
  BOOST_TEST((LogicalUnit::make({.bdev = deep}).error().code == ErrorCode::kUnsupported));
  Bench bench;
  for (const char* name : {"", "two words", "a,b", "\x01"}) {
    BOOST_TEST((bench.unit->join({.initiator = name}).error().code == ErrorCode::kInvalid));
  }
  BOOST_TEST((bench.unit->join({.initiator = std::string(161, 'x')}).error().code == ErrorCode::kInvalid));
  BOOST_TEST((bench.unit->join({.initiator = "guest-a"}).error().code == ErrorCode::kExists));
}

BOOST_AUTO_TEST_CASE(guests_that_share_a_volume_meet_in_one_logical_unit) {
  LogicalUnits units;
  auto bdev = std::make_shared<TestBdev>(TestBdev::Options{});
  auto other = std::make_shared<TestBdev>(TestBdev::Options{});
  const Uuid uuid = Uuid::random();
  auto first = units.get({.bdev = bdev, .uuid = uuid}).value();
  BOOST_TEST((units.get({.bdev = bdev, .uuid = uuid}).value() == first));
  BOOST_TEST((units.get({.bdev = other, .uuid = uuid}).error().code == ErrorCode::kExists));
  BOOST_TEST((units.get({.bdev = bdev, .uuid = Uuid::random()}).value() != first));
  first.reset();
  BOOST_TEST((units.get({.bdev = other, .uuid = uuid}).has_value()));
}
