#include "control/volume_writers.h"

#include <boost/test/unit_test.hpp>

using namespace pollux;
using namespace pollux::control;

namespace {

struct Fixture {
  std::shared_ptr<VolumeWriters> writers = std::make_shared<VolumeWriters>();
  Uuid volume = Uuid::random();
};

bool busy(const Result<VolumeWriters::Claim>& claim) {
  return !claim && claim.error().code == ErrorCode::kBusy;
}

}  // namespace

BOOST_FIXTURE_TEST_CASE(a_data_socket_that_does_not_share_has_the_volume_for_itself, Fixture) {
  auto socket = writers->data_socket(volume, false);
  BOOST_REQUIRE(socket);
  BOOST_TEST(busy(writers->guest(volume)));
  BOOST_TEST(busy(writers->data_socket(volume, false)));
  BOOST_TEST(busy(writers->data_socket(volume, true)));
  BOOST_TEST(writers->guest(Uuid::random()).has_value());
  *socket = nullptr;
  BOOST_TEST(writers->guest(volume).has_value());
}

BOOST_FIXTURE_TEST_CASE(what_a_guest_writes_is_for_data_sockets_that_share_alone, Fixture) {
  auto guest = writers->guest(volume);
  BOOST_REQUIRE(guest);
  const auto second = writers->guest(volume);
  BOOST_TEST(second.has_value());
  BOOST_TEST(busy(writers->data_socket(volume, false)));
  const auto first_shared = writers->data_socket(volume, true);
  BOOST_TEST(first_shared.has_value());
  BOOST_TEST(writers->data_socket(volume, true).has_value());
  BOOST_TEST(writers->guest(volume).has_value());
  BOOST_TEST(busy(writers->data_socket(volume, false)));
}

BOOST_FIXTURE_TEST_CASE(a_guest_whose_disk_comes_back_is_not_refused, Fixture) {
  auto socket = writers->data_socket(volume, false);
  BOOST_REQUIRE(socket);
  auto guest = writers->returning_guest(volume);
  *socket = nullptr;
  BOOST_TEST(busy(writers->data_socket(volume, false)));
  guest = nullptr;
  BOOST_TEST(writers->data_socket(volume, false).has_value());
}
