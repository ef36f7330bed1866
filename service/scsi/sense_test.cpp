#include "scsi/sense.h"

#include <boost/test/unit_test.hpp>

#include "scsi/bytes.h"

using namespace pollux::scsi;

namespace {

std::vector<std::uint8_t> encode(const SenseData& data, bool descriptor_format) {
  std::array<std::uint8_t, kMaxSenseBytes> bytes;
  bytes.fill(0xee);
  const std::size_t length = encode_sense(data, descriptor_format, bytes);
  return {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length)};
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_lost_path_is_to_be_tried_again_but_by_no_flush) {
  using pollux::bdev::IoOp;
  using pollux::bdev::IoStatus;
  for (const IoOp op : {IoOp::kRead, IoOp::kWrite}) {
    BOOST_CHECK((to_sense(IoStatus::kPathLost, op) == SenseCode{SenseKey::kNotReady, 0x04, 0x01}));
  }
  BOOST_CHECK((to_sense(IoStatus::kPathLost, IoOp::kFlush) == sense::kInternalTargetFailure));
}

BOOST_AUTO_TEST_CASE(fixed_format_has_its_fields_where_spc_has_them) {
  const auto bytes = encode({.code = {SenseKey::kIllegalRequest, 0x24, 0x01},
                             .information = 0x01020304,
                             .field = FieldPointer{true, 0x1234, 5}},
                            false);
  const std::vector<std::uint8_t> expected{0xf0, 0, 5, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x24, 0x01, 0, 0xcd, 0x12, 0x34};
  BOOST_TEST(bytes == expected, boost::test_tools::per_element());
  // Information of more than 32 bits is left out, not cut.
  const auto wide = encode({.code = {}, .information = 1ULL << 32}, false);
  BOOST_TEST(wide[0] == 0x70);
  BOOST_TEST(get_be32(wide.data() + 3) == 0u);
  const auto parameter = encode({.code = {}, .field = FieldPointer{false, 7, {}}}, false);
  BOOST_TEST(parameter[15] == 0x80);
}

BOOST_AUTO_TEST_CASE(descriptor_format_has_its_fields_where_spc_has_them) {
  const auto bytes = encode({.code = {SenseKey::kMiscompare, 0x1d, 0x00},
                             .information = 0x0102030405060708,
                             .field = FieldPointer{true, 0x1234, 5}},
                            true);
  const std::vector<std::uint8_t> expected{0x72, 0x0e, 0x1d, 0x00, 0, 0, 0,    20,   0x00, 0x0a, 0x80, 0,    1,    2,
                                           3,    4,    5,    6,    7, 8, 0x02, 0x06, 0,    0,    0xcd, 0x12, 0x34, 0};
  BOOST_TEST(bytes == expected, boost::test_tools::per_element());
  BOOST_TEST(encode({}, true) == std::vector<std::uint8_t>({0x72, 0, 0, 0, 0, 0, 0, 0}),
             boost::test_tools::per_element());
}
