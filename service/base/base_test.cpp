#include <boost/test/unit_test.hpp>

#include "base/crc32c.h"
#include "base/units.h"
#include "base/uuid.h"

namespace pollux {

BOOST_AUTO_TEST_CASE(crc32c_matches_the_published_vectors) {
  // RFC 3720 B.4 and the CRC catalogue's check value.
  BOOST_TEST(crc32c("123456789", 9) == 0xe3069283u);
  const unsigned char zeros[32] = {};
  BOOST_TEST(crc32c(zeros, sizeof(zeros)) == 0x8a9136aau);
}

BOOST_AUTO_TEST_CASE(crc32c_continues_over_a_split) {
  BOOST_TEST(crc32c("6789", 4, crc32c("12345", 5)) == crc32c("123456789", 9));
}

BOOST_AUTO_TEST_CASE(uuid_text_round_trips_and_is_lower_case) {
  auto id = Uuid::parse("0F8FAD5B-D9CB-469F-A165-70867728950E");
  BOOST_REQUIRE(id.has_value());
  BOOST_TEST(id->to_string() == "0f8fad5b-d9cb-469f-a165-70867728950e");
  BOOST_TEST(!Uuid::random().is_nil());
}

BOOST_AUTO_TEST_CASE(uuid_refuses_what_is_not_canonical) {
  for (const char* text : {"", "0f8fad5b", "0f8fad5bd9cb469fa16570867728950e", "zf8fad5b-d9cb-469f-a165-70867728950e",
                           "0f8fad5b-d9cb-469f-a165-70867728950e0"}) {
    BOOST_TEST(!Uuid::parse(text).has_value(), text);
  }
}

BOOST_AUTO_TEST_CASE(range_fits_does_not_overflow) {
  BOOST_TEST(range_fits(0, 10, 10));
  BOOST_TEST(range_fits(10, 0, 10));
  BOOST_TEST(!range_fits(1, 10, 10));
  BOOST_TEST(!range_fits(UINT64_MAX, 2, 10));
  BOOST_TEST(!range_fits(5, UINT64_MAX, 10));
}

}  // namespace pollux
