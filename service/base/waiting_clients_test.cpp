#include "base/waiting_clients.h"

#include <boost/test/unit_test.hpp>
#include <vector>

using namespace pollux;

namespace {

constexpr WaitingLimits kLimits{.clients = 6, .clients_per_address = 3};

std::optional<std::size_t> leaving(const std::vector<WaitingClient>& waiting, std::string_view newcomer) {
  return who_leaves(waiting, newcomer, kLimits);
}

}  // namespace

BOOST_AUTO_TEST_CASE(nobody_leaves_while_there_is_room) {
  BOOST_TEST(!leaving({}, "a"));
  BOOST_TEST(!leaving({{"a"}, {"a"}, {"b"}, {"b"}, {"b"}}, "a"));
}

BOOST_AUTO_TEST_CASE(an_address_with_all_its_places_loses_its_own_oldest_that_is_silent) {
  BOOST_TEST(leaving({{"b"}, {"a", false}, {"a"}, {"a"}}, "a").value() == 2U);
  BOOST_TEST(leaving({{"b"}, {"a", false}, {"a", false}, {"a", false}}, "a").value() == 1U);
}

BOOST_AUTO_TEST_CASE(when_all_is_full_the_address_that_has_most_loses_one) {
  // The one client of "c" is in earnest, and so may a silent one of "d" be that has just come.
  BOOST_TEST(leaving({{"c", false}, {"a"}, {"a"}, {"a"}, {"b"}, {"d"}}, "e").value() == 1U);
  BOOST_TEST(leaving({{"c"}, {"a", false}, {"a", false}, {"a", false}, {"b"}, {"d"}}, "e").value() == 1U);
}

BOOST_AUTO_TEST_CASE(among_addresses_that_have_as_many_the_oldest_that_is_silent_leaves) {
  BOOST_TEST(leaving({{"a", false}, {"b"}, {"c"}, {"d", false}, {"e"}, {"f"}}, "g").value() == 1U);
  BOOST_TEST(
      leaving({{"a", false}, {"b", false}, {"c", false}, {"d", false}, {"e", false}, {"f", false}}, "g").value() == 0U);
}
