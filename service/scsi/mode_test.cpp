#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

Bytes sense6(std::uint8_t page, std::uint8_t allocation = 255, std::uint8_t dbd = 0x08) {
  return cdb6(0x1a, dbd, page, 0, allocation);
}
Bytes sense10(std::uint8_t page, std::uint16_t allocation, std::uint8_t flags = 0x08) {
  return {
      0x5a, flags, page, 0, 0, 0, 0, static_cast<std::uint8_t>(allocation >> 8), static_cast<std::uint8_t>(allocation),
      0};
}
Bytes control_page(bool d_sense, bool swp) {
  return {0x0a,
          10,
          static_cast<std::uint8_t>(d_sense ? 4 : 0),
          0x10,
          static_cast<std::uint8_t>(swp ? 8 : 0),
          0,
          0,
          0,
          0xff,
          0xff,
          0,
          0};
}
Bytes caching_page(bool wce) {
  Bytes page(20);
  page[0] = 0x08;
  page[1] = 18;
  page[2] = wce ? 4 : 0;
  return page;
}
Request select6(const Bytes& pages, std::uint8_t flags = 0x10) {
  Bytes list(4);
  list.insert(list.end(), pages.begin(), pages.end());
  return {.cdb = cdb6(0x15, flags, 0, 0, static_cast<std::uint8_t>(list.size())), .data_out = list};
}

}  // namespace

BOOST_AUTO_TEST_CASE(mode_sense_reports_all_pages_in_both_sizes) {
  Bench bench;
  const Answer six = bench.run({.cdb = sense6(0x3f), .data_in_bytes = 255});
  check_good(six, 4 + 12 + 20 + 12 + 12);
  BOOST_TEST(six.data[0] == six.data.size() - 1);
  BOOST_TEST(six.data[2] == 0x10);  // DPOFUA
  BOOST_TEST(six.data[3] == 0);
  BOOST_TEST(six.data[4] == 0x01);
  BOOST_TEST(six.data[16] == 0x08);
  BOOST_TEST(six.data[18] == 0x04);  // WCE
  BOOST_TEST(six.data[36] == 0x0a);
  BOOST_TEST(six.data[48] == 0x1c);
  const Answer ten = bench.run({.cdb = sense10(0x3f, 500), .data_in_bytes = 500});
  check_good(ten, six.data.size() + 4);
  BOOST_TEST(get_be16(ten.data.data()) == ten.data.size() - 2);
  BOOST_TEST(Bytes(ten.data.begin() + 8, ten.data.end()) == Bytes(six.data.begin() + 4, six.data.end()));
}

BOOST_AUTO_TEST_CASE(block_descriptors_come_unless_disabled) {
  Bench bench;
  const Answer six = bench.run({.cdb = sense6(0x08, 255, 0), .data_in_bytes = 255});
  check_good(six, 4 + 8 + 20);
  BOOST_TEST(six.data[3] == 8);
  BOOST_TEST(get_be32(six.data.data() + 4) == 8192u);
  BOOST_TEST(get_be32(six.data.data() + 8) == 512u);
  const Answer ten = bench.run({.cdb = sense10(0x08, 255, 0x10), .data_in_bytes = 255});
  check_good(ten, 8 + 16 + 20);
  BOOST_TEST(ten.data[4] == 1);
  BOOST_TEST(get_be16(ten.data.data() + 6) == 16);
  BOOST_TEST(get_be64(ten.data.data() + 8) == 8192u);
  BOOST_TEST(get_be32(ten.data.data() + 20) == 512u);
}

BOOST_AUTO_TEST_CASE(mode_sense_cuts_to_the_allocation_length_and_refuses_what_is_not_there) {
  Bench bench;
  for (std::uint8_t allocation : {0, 1, 4, 255}) {
    check_good(bench.run({.cdb = sense6(0x08, allocation), .data_in_bytes = 255}),
               std::min<std::size_t>(allocation, 24));
  }
  check_invalid_cdb(bench.run({.cdb = sense6(0x02), .data_in_bytes = 255}), 2, 5);
  check_invalid_cdb(bench.run({.cdb = cdb6(0x1a, 8, 0x3f, 0x01, 255), .data_in_bytes = 255}), 3);
  check_good(bench.run({.cdb = cdb6(0x1a, 8, 0x3f, 0xff, 255), .data_in_bytes = 255}), 60);
  check_sense(bench.run({.cdb = sense6(0xff), .data_in_bytes = 255}), sense::kSavingNotSupported);
}

BOOST_AUTO_TEST_CASE(changeable_values_are_the_ones_that_select_takes) {
  Bench bench;
  const Answer answer = bench.run({.cdb = sense6(0x7f), .data_in_bytes = 255});
  BOOST_TEST(answer.data[18] == 0x04);
  BOOST_TEST(answer.data[38] == 0x04);
  BOOST_TEST(answer.data[40] == 0x08);
  int set = 0;
  for (std::size_t page : {4u, 16u, 36u, 48u}) {
    for (std::size_t i = page + 2; i < page + 2 + answer.data[page + 1]; ++i) set += __builtin_popcount(answer.data[i]);
  }
  BOOST_TEST(set == 3);
}

BOOST_AUTO_TEST_CASE(software_write_protect_stops_every_guest_and_tells_the_others) {
  Bench bench;
  check_good(bench.run(select6(control_page(false, true))), 16);
  check_sense(bench.run({.cdb = cdb6(0x00)}, {1, 0}), {SenseKey::kUnitAttention, 0x2a, 0x01});
  for (std::size_t guest : {0u, 1u}) {
    check_sense(bench.run({.cdb = range_cdb({0x2a, 0, 1}), .data_out = Bytes(512)}, {guest, 1}),
                sense::kWriteProtected);
    BOOST_TEST(bench.run({.cdb = sense6(0x0a), .data_in_bytes = 255}, {guest, 0}).data[2] == 0x90);
  }
  // Defaults do not change with it.
  BOOST_TEST(bench.run({.cdb = sense6(0x8a), .data_in_bytes = 255}).data[8] == 0);
  check_good(bench.run(select6(control_page(false, false))), 16);
  check_good(bench.run({.cdb = range_cdb({0x2a, 0, 1}), .data_out = Bytes(512)}), 512);
}

BOOST_AUTO_TEST_CASE(descriptor_sense_data_is_given_when_asked_for) {
  Bench bench;
  check_good(bench.run(select6(control_page(true, false))), 16);
  const Answer answer = bench.run({.cdb = range_cdb({0x28, 0, 1, 0x80}), .data_in_bytes = 512});
  BOOST_REQUIRE_EQUAL(answer.sense.size(), 16u);
  BOOST_TEST(answer.sense[0] == 0x72);
  BOOST_TEST(answer.sense[1] == 5);
  BOOST_TEST(answer.sense[2] == 0x24);
  BOOST_TEST(answer.sense[7] == 8);
  BOOST_TEST(answer.sense[8] == 2);
  BOOST_TEST(answer.sense[12] == 0xcf);
  BOOST_TEST(get_be16(answer.sense.data() + 13) == 1);
}

BOOST_AUTO_TEST_CASE(mode_select_names_the_field_that_is_wrong_and_changes_nothing) {
  Bench bench;
  Bytes page = control_page(true, true);
  page[3] = 0x11;
  check_invalid_parameter(bench.run(select6(page)), 4 + 3, 0);
  page = control_page(true, true);
  page[1] = 9;
  check_invalid_parameter(bench.run(select6(page)), 4 + 1);
  page = control_page(true, true);
  page[0] = 0x02;
  check_invalid_parameter(bench.run(select6(page)), 4, 5);
  page = control_page(true, true);
  page.resize(11);
  check_sense(bench.run(select6(page)), sense::kParameterListLength);
  // A good page before a bad one is not taken over.
  page = control_page(true, true);
  Bytes bad = caching_page(true);
  bad[5] = 1;
  page.insert(page.end(), bad.begin(), bad.end());
  check_invalid_parameter(bench.run(select6(page)), 4 + 12 + 5, 0);
  check_invalid_cdb(bench.run(select6(control_page(true, true), 0x11)), 1, 0);
  check_invalid_cdb(bench.run(select6(control_page(true, true), 0x00)), 1, 4);
  check_sense(bench.run({.cdb = cdb6(0x15, 0x10, 0, 0, 3), .data_out = Bytes(3)}), sense::kParameterListLength);
  const Answer overrun = bench.run({.cdb = cdb6(0x15, 0x10, 0, 0, 16), .data_out = Bytes(15)});
  BOOST_TEST((overrun.outcome == Outcome::kOverrun));
  Bytes ten{0x55, 0x10, 0, 0, 0, 0, 0, 0xff, 0xff, 0};
  check_sense(bench.run({.cdb = ten, .data_out = Bytes(65535)}), sense::kParameterListLength);
  BOOST_TEST(bench.run({.cdb = sense6(0x0a), .data_in_bytes = 255}).data[6] == 0);
  check_good(bench.run({.cdb = cdb6(0x15, 0x10, 0, 0, 0)}), 0);
}

BOOST_AUTO_TEST_CASE(mode_select_ten_takes_block_descriptors_that_change_nothing) {
  Bench bench;
  auto select10 = [&](std::uint32_t blocks, std::uint32_t block_bytes, std::uint8_t descriptor_length = 8) {
    Bytes list(16);
    list[7] = descriptor_length;
    put_be32(list.data() + 8, blocks);
    put_be32(list.data() + 12, block_bytes);
    const Bytes page = control_page(false, false);
    list.insert(list.end(), page.begin(), page.end());
    return bench.run(
        {.cdb = {0x55, 0x10, 0, 0, 0, 0, 0, 0, static_cast<std::uint8_t>(list.size()), 0}, .data_out = list});
  };
  check_good(select10(8192, 512), 28);
  check_good(select10(0, 512), 28);
  check_good(select10(0xffffffff, 512), 28);
  check_invalid_parameter(select10(8191, 512), 8);
  check_invalid_parameter(select10(8192, 520), 12);
  check_invalid_parameter(select10(8192, 512, 7), 6);
}
