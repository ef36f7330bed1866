#include "scsi/inquiry.h"

#include <set>

#include "scsi/limits.h"
#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

Bytes inquiry_cdb(std::uint16_t allocation, int page = -1) {
  return {0x12,
          static_cast<std::uint8_t>(page >= 0),
          static_cast<std::uint8_t>(page >= 0 ? page : 0),
          static_cast<std::uint8_t>(allocation >> 8),
          static_cast<std::uint8_t>(allocation),
          0};
}

Bytes page(Bench& bench, int code) {
  const Answer answer = bench.run({.cdb = inquiry_cdb(0xffff, code), .data_in_bytes = 65535});
  BOOST_REQUIRE(answer.status == ScsiStatus::kGood);
  BOOST_TEST(answer.data[0] == 0);
  BOOST_TEST(answer.data[1] == code);
  // The page's own length agrees with what was sent.
  BOOST_TEST(get_be16(answer.data.data() + 2) + 4u == answer.data.size());
  return answer.data;
}

std::string text(const Bytes& bytes, std::size_t at, std::size_t length) {
  return {bytes.begin() + static_cast<std::ptrdiff_t>(at), bytes.begin() + static_cast<std::ptrdiff_t>(at + length)};
}

}  // namespace

BOOST_AUTO_TEST_CASE(standard_data_says_what_this_is) {
  Bench bench;
  const Answer answer = bench.run({.cdb = inquiry_cdb(255), .data_in_bytes = 255});
  check_good(answer, kStandardInquiryBytes);
  const Bytes& data = answer.data;
  BOOST_TEST(data[0] == 0x00);
  BOOST_TEST(data[2] == 0x05);
  BOOST_TEST((data[3] & 0x0f) == 2);
  BOOST_TEST(data[4] == data.size() - 5);
  BOOST_TEST((data[7] & 0x02) == 0x02);
  BOOST_TEST(text(data, 8, 8) == "POLLUX  ");
  BOOST_TEST(text(data, 16, 16) == "VOLUME          ");
  BOOST_TEST(text(data, 32, 4) == "1.0 ");
}

BOOST_AUTO_TEST_CASE(allocation_length_and_buffer_cut_what_is_sent) {
  Bench bench;
  const Bytes whole = bench.run({.cdb = inquiry_cdb(512), .data_in_bytes = 512}).data;
  for (std::uint16_t allocation : {0, 1, 5, 35, 36, 95, 96, 97, 255, 256, 65535}) {
    const Answer answer = bench.run({.cdb = inquiry_cdb(allocation), .data_in_bytes = 65535});
    check_good(answer, std::min<std::size_t>(allocation, kStandardInquiryBytes));
    BOOST_TEST(answer.data == Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(answer.transferred)));
  }
  check_good(bench.run({.cdb = inquiry_cdb(255), .data_in_bytes = 7}), 7);
  check_good(bench.run({.cdb = inquiry_cdb(255)}), 0);
}

BOOST_AUTO_TEST_CASE(a_page_code_without_evpd_and_an_unknown_page_are_invalid_fields) {
  Bench bench;
  check_invalid_cdb(bench.run({.cdb = {0x12, 0, 1, 0, 255, 0}, .data_in_bytes = 255}), 2);
  check_invalid_cdb(bench.run({.cdb = inquiry_cdb(255, 0x84), .data_in_bytes = 255}), 2);
  check_invalid_cdb(bench.run({.cdb = {0x12, 2, 0, 0, 255, 0}, .data_in_bytes = 255}), 1, 1);
}

BOOST_AUTO_TEST_CASE(every_listed_page_is_there_and_the_list_is_sorted) {
  Bench bench;
  const Bytes list = page(bench, 0x00);
  const Bytes codes(list.begin() + 4, list.end());
  BOOST_TEST(codes == Bytes({0x00, 0x80, 0x83, 0x86, 0x8f, 0xb0, 0xb1, 0xb2}), boost::test_tools::per_element());
  for (std::uint8_t code : codes) page(bench, code);
}

BOOST_AUTO_TEST_CASE(identification_carries_the_uuid_in_every_form) {
  Bench bench;
  BOOST_TEST(text(page(bench, 0x80), 4, 36) == "00112233-4455-6677-8899-aabbccddeeff");
  const Bytes data = page(bench, 0x83);
  std::set<int> types;
  for (std::size_t at = 4; at < data.size();) {
    BOOST_REQUIRE(at + 4 <= data.size());
    const std::size_t length = data[at + 3];
    BOOST_REQUIRE(at + 4 + length <= data.size());
    const int type = data[at + 1] & 0x0f;
    types.insert(type);
    if (type == 1) BOOST_TEST(text(data, at + 4, length) == "POLLUX  00112233-4455-6677-8899-aabbccddeeff");
    if (type == 3) BOOST_TEST((data[at + 4] >> 4) == 3);
    if (type == 0x0a)
      BOOST_TEST(std::equal(bench.uuid.bytes.begin(), bench.uuid.bytes.end(),
                            data.begin() + static_cast<std::ptrdiff_t>(at + 6)));
    at += 4 + length;
  }
  BOOST_TEST((types == std::set<int>{1, 3, 4, 10}));
}

BOOST_AUTO_TEST_CASE(a_guest_that_wants_the_names_of_qemus_disks_gets_those_alone) {
  Bench bench({.guests = {{.initiator = "guest-a", .announce_power_on = false, .names = Names::kQemu},
                          {.initiator = "guest-b", .announce_power_on = false}}});
  const auto standard = [&](std::size_t guest) {
    return bench.run({.cdb = inquiry_cdb(255), .data_in_bytes = 255}, {guest, 0}).data;
  };
  BOOST_TEST(text(standard(0), 8, 24) == "QEMU    QEMU HARDDISK   ");
  // To another guest of the same volume it is what it was.
  BOOST_TEST(text(standard(1), 8, 24) == "POLLUX  VOLUME          ");
  BOOST_TEST(text(page(bench, 0x80), 4, 36) == "00112233-4455-6677-8899-aabbccddeeff");
  const Bytes data = page(bench, 0x83);
  std::set<int> types;
  for (std::size_t at = 4; at < data.size(); at += 4 + data[at + 3]) {
    const int type = data[at + 1] & 0x0f;
    types.insert(type);
    if (type != 0) continue;
    BOOST_TEST((data[at] & 0x0f) == 2);
    BOOST_TEST(text(data, at + 4, data[at + 3]) == "00112233-4455-6677-8899-aabbccddeeff");
  }
  BOOST_TEST((types == std::set<int>{0, 4, 10}));
}

BOOST_AUTO_TEST_CASE(block_limits_are_the_limits_that_are_enforced) {
  Bench bench({.bdev = {.optimal_io_bytes = 4096}});
  const Bytes data = page(bench, 0xb0);
  BOOST_REQUIRE_EQUAL(data.size(), 64u);
  BOOST_TEST(data[4] == 0x01);
  BOOST_TEST(data[5] == 128);
  BOOST_TEST(get_be16(data.data() + 6) == 8);
  BOOST_TEST(get_be32(data.data() + 8) == kMaxTransferBytes / 512);
  BOOST_TEST(get_be32(data.data() + 20) == kMaxUnmapBlocks);
  BOOST_TEST(get_be32(data.data() + 24) == kMaxUnmapDescriptors);
  BOOST_TEST(get_be32(data.data() + 28) == 8u);
  BOOST_TEST(get_be32(data.data() + 32) == 0x80000000u);
  BOOST_TEST(get_be64(data.data() + 36) == kMaxWriteSameBlocks);
  const Bytes provisioning = page(bench, 0xb2);
  BOOST_TEST(provisioning[5] == 0xe4);
  BOOST_TEST(provisioning[6] == 0x02);
  BOOST_TEST(get_be16(page(bench, 0xb1).data() + 4) == 1);
}

BOOST_AUTO_TEST_CASE(a_device_that_cannot_unmap_promises_nothing) {
  Bench bench({.bdev = {.supports_unmap = false}});
  const Bytes limits = page(bench, 0xb0);
  BOOST_TEST(get_be32(limits.data() + 20) == 0u);
  BOOST_TEST(get_be32(limits.data() + 24) == 0u);
  BOOST_TEST(get_be32(limits.data() + 32) == 0u);
  const Bytes provisioning = page(bench, 0xb2);
  BOOST_TEST(provisioning[5] == 0);
  BOOST_TEST(provisioning[6] == 0);
  const Answer capacity =
      bench.run({.cdb = {0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, .data_in_bytes = 32});
  BOOST_TEST(capacity.data[14] == 0);
}

BOOST_AUTO_TEST_CASE(capacity_is_told_in_both_forms) {
  Bench bench({.bdev = {.optimal_io_bytes = 4096}});
  const Answer ten = bench.run({.cdb = {0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, .data_in_bytes = 8});
  check_good(ten, 8);
  BOOST_TEST(get_be32(ten.data.data()) == 8191u);
  BOOST_TEST(get_be32(ten.data.data() + 4) == 512u);
  Bytes cdb{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0};
  const Answer sixteen = bench.run({.cdb = cdb, .data_in_bytes = 32});
  check_good(sixteen, 32);
  BOOST_TEST(get_be64(sixteen.data.data()) == 8191u);
  BOOST_TEST(get_be32(sixteen.data.data() + 8) == 512u);
  BOOST_TEST(sixteen.data[13] == 3);  // 4096 bytes are a physical block
  BOOST_TEST(sixteen.data[14] == 0xc0);
  for (std::uint8_t allocation : {0, 1, 8, 31, 33, 255}) {
    cdb[13] = allocation;
    check_good(bench.run({.cdb = cdb, .data_in_bytes = 255}), std::min<std::size_t>(allocation, 32));
  }
  // The LBA of READ CAPACITY (10) is obsolete with PMI.
  check_invalid_cdb(bench.run({.cdb = {0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0}, .data_in_bytes = 8}), 5, 0);
}

BOOST_AUTO_TEST_CASE(a_physical_block_is_what_is_written_without_a_read_and_a_page_at_most) {
  const struct {
    std::uint32_t block_bytes, optimal_io_bytes;
    std::uint8_t exponent;
  } table[] = {{512, 512, 0}, {512, 4096, 3}, {512, 65536, 3}, {4096, 4096, 0}, {4096, 65536, 0}};
  for (const auto& row : table) {
    Bench bench({.bdev = {.block_bytes = row.block_bytes, .optimal_io_bytes = row.optimal_io_bytes}});
    const Answer capacity =
        bench.run({.cdb = {0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, .data_in_bytes = 32});
    BOOST_TEST(capacity.data[13] == row.exponent);
  }
}

BOOST_AUTO_TEST_CASE(a_device_that_grows_raises_a_unit_attention_for_every_guest) {
  Bench bench;
  bench.bdev->grow(8 * kMiB);
  const SenseCode changed{SenseKey::kUnitAttention, 0x2a, 0x09};
  check_sense(bench.run({.cdb = cdb6(0x00)}, {0, 1}), changed);
  check_good(bench.run({.cdb = cdb6(0x00)}, {0, 0}), 0);
  check_sense(bench.run({.cdb = range_cdb({0x28, 0, 1}), .data_in_bytes = 512}, {1, 0}), changed);
  const Answer answer = bench.run({.cdb = {0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, .data_in_bytes = 8});
  BOOST_TEST(get_be32(answer.data.data()) == 16383u);
}
