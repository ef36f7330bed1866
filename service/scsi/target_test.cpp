#include "scsi/target.h"

#include "scsi/inquiry.h"
#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

Request report_luns(std::uint8_t select, std::uint32_t allocation = 4096) {
  Bytes cdb(12);
  cdb[0] = 0xa0;
  cdb[2] = select;
  put_be32(cdb.data() + 6, allocation);
  return {.cdb = cdb, .data_in_bytes = 4096};
}

// The bench's guest a, with logical units at these LUNs of one target.
struct TargetBench : Bench {
  explicit TargetBench(const std::vector<std::uint16_t>& luns) {
    for (std::uint16_t lun : luns) {
      auto unit_nexus = unit->join({.initiator = "lun-" + std::to_string(lun), .announce_power_on = false}).value();
      auto channel = make_channel(*unit_nexus, 0);
      on_reactor(0, [&] { target.add(lun, std::move(channel)); });
    }
  }
  ~TargetBench() {
    on_reactor(0, [&] {
      for (std::uint16_t lun = 0; lun <= kMaxLun; ++lun) target.remove(lun);
    });
  }
  Answer ask(std::uint16_t lun, Request request) {
    Pending pending(std::move(request));
    on_reactor(0, [&] { target.submit(lun, pending.task()); });
    return pending.answer();
  }
  Answer ask_well_known(Request request) {
    Pending pending(std::move(request));
    on_reactor(0, [&] { target.submit_to_well_known(pending.task()); });
    return pending.answer();
  }
  TargetChannel target;
};

std::vector<std::uint64_t> luns_of(const Answer& answer) {
  std::vector<std::uint64_t> luns;
  for (std::size_t at = 8; at + 8 <= answer.data.size(); at += 8) luns.push_back(get_be64(answer.data.data() + at));
  return luns;
}

}  // namespace

BOOST_AUTO_TEST_CASE(luns_are_listed_in_order_from_any_lun) {
  TargetBench bench({300, 1, 0});
  const std::vector<std::uint64_t> ordinary{0, 1ULL << 48, 0x412cULL << 48};
  const std::vector<std::uint64_t> well_known{0xc101ULL << 48};
  std::vector<std::uint64_t> both = ordinary;
  both.push_back(well_known[0]);
  auto check = [&](auto send) {
    const Answer answer = send(report_luns(0));
    check_good(answer, 8 + 24);
    BOOST_TEST(get_be32(answer.data.data()) == 24u);
    BOOST_TEST(luns_of(answer) == ordinary);
    BOOST_TEST(luns_of(send(report_luns(1))) == well_known);
    BOOST_TEST(luns_of(send(report_luns(2))) == both);
    for (std::uint8_t select : {3, 0x10, 0x12, 0xff}) check_invalid_cdb(send(report_luns(select)), 2);
    for (std::uint32_t allocation : {0u, 1u, 7u, 8u, 15u, 16u}) {
      const Answer cut = send(report_luns(0, allocation));
      check_good(cut, allocation);
      if (allocation >= 4) BOOST_TEST(get_be32(cut.data.data()) == 24u);
    }
    Request huge = report_luns(0, 0xffffffff);
    huge.data_in_bytes = 10;
    check_good(send(huge), 10);
  };
  check([&](Request request) { return bench.ask(1, std::move(request)); });
  check([&](Request request) { return bench.ask(77, std::move(request)); });
  check([&](Request request) { return bench.ask_well_known(std::move(request)); });
}

BOOST_AUTO_TEST_CASE(a_lun_that_is_not_there_says_so) {
  TargetBench bench({1});
  auto check = [&](auto send) {
    const Answer inquiry = send(Request{.cdb = cdb6(0x12, 0, 0, 0, 255), .data_in_bytes = 255});
    check_good(inquiry, kStandardInquiryBytes);
    BOOST_TEST(inquiry.data[0] == 0x7f);
    check_good(send(Request{.cdb = cdb6(0x12, 0, 0, 0, 5), .data_in_bytes = 255}), 5);
    check_invalid_cdb(send(Request{.cdb = cdb6(0x12, 1, 0x83, 0, 255), .data_in_bytes = 255}), 1);
    check_sense(send(Request{.cdb = cdb6(0x00)}), sense::kLunNotSupported);
    check_sense(send(Request{.cdb = range_cdb({0x2a, 0, 1}), .data_out = Bytes(512)}), sense::kLunNotSupported);
    const Answer sense = send(Request{.cdb = cdb6(0x03, 0, 0, 0, 18), .data_in_bytes = 18});
    check_good(sense, 18);
    BOOST_TEST(sense.data[12] == 0x25);
  };
  check([&](Request request) { return bench.ask(0, std::move(request)); });
  check([&](Request request) { return bench.ask(kMaxLun, std::move(request)); });
  check([&](Request request) {
    Pending pending(std::move(request));
    bench.on_reactor(1, [&] { answer_absent_lun(pending.task()); });
    return pending.answer();
  });
  BOOST_TEST(bench.bdev->seen().empty());
}

BOOST_AUTO_TEST_CASE(the_well_known_logical_unit_does_its_four_commands) {
  TargetBench bench({0});
  const Answer inquiry = bench.ask_well_known({.cdb = cdb6(0x12, 0, 0, 0, 255), .data_in_bytes = 255});
  check_good(inquiry, kStandardInquiryBytes);
  BOOST_TEST(inquiry.data[0] == 0x1e);
  check_good(bench.ask_well_known({.cdb = cdb6(0x00)}), 0);
  check_good(bench.ask_well_known({.cdb = cdb6(0x03, 0, 0, 0, 252), .data_in_bytes = 252}), 18);
  check_sense(bench.ask_well_known({.cdb = range_cdb({0x28, 0, 1}), .data_in_bytes = 512}), sense::kInvalidOpcode);
}

BOOST_AUTO_TEST_CASE(logical_units_come_and_go) {
  TargetBench bench({0, 5});
  check_good(bench.ask(5, {.cdb = range_cdb({0x2a, 0, 1}), .data_out = Bytes(512, 1)}), 512);
  BOOST_TEST(!bench.target.empty());
  BOOST_TEST(bench.target.idle());
  std::unique_ptr<LunChannel> removed;
  bench.on_reactor(0, [&] { removed = bench.target.remove(5); });
  BOOST_REQUIRE(removed != nullptr);
  check_sense(bench.ask(5, {.cdb = cdb6(0x00)}), sense::kLunNotSupported);
  BOOST_TEST(luns_of(bench.ask(0, report_luns(0))).size() == 1u);
  bench.on_reactor(0, [&] {
    BOOST_TEST((bench.target.remove(5) == nullptr));
    removed.reset();
  });
}
