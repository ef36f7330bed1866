#include "blob/free_map.h"

#include <boost/test/unit_test.hpp>
#include <random>
#include <set>

using namespace pollux;
using namespace pollux::blob;

BOOST_AUTO_TEST_SUITE(free_map)

// Against a set, with sizes around the borders of words and of groups of words.
BOOST_AUTO_TEST_CASE(finds_the_next_word_with_a_free_cluster_and_goes_round) {
  std::mt19937 random(1);
  for (const std::uint32_t clusters : {1U, 63U, 64U, 65U, 4095U, 4096U, 4097U, 20'000U}) {
    FreeMap map(clusters);
    std::set<ClusterNo> expected;
    for (int step = 0; step < 2000; ++step) {
      const ClusterNo cluster = random() % clusters;
      if (expected.contains(cluster)) {
        expected.erase(cluster);
        map.remove(cluster);
      } else if (expected.size() < 5) {
        expected.insert(cluster);
        map.add(cluster);
      }
      BOOST_REQUIRE(map.count() == expected.size());
      BOOST_REQUIRE(map.has(cluster) == expected.contains(cluster));
      if (expected.empty()) continue;
      const std::size_t word = random() % map.words();
      auto next = expected.lower_bound(static_cast<ClusterNo>(word * 64));
      if (next == expected.end()) next = expected.begin();
      BOOST_REQUIRE(map.find(word) == *next);
    }
  }
}

BOOST_AUTO_TEST_CASE(grows_and_keeps_what_it_holds) {
  FreeMap map(10);
  map.add(9);
  map.grow(1'000'000);
  BOOST_TEST(map.count() == 1u);
  BOOST_TEST(map.has(9));
  BOOST_TEST(!map.has(999'999));
  map.add(999'999);
  BOOST_TEST(map.find(1) == 999'999u);
  map.remove(999'999);
  BOOST_TEST(map.find(1) == 9u);
}

BOOST_AUTO_TEST_SUITE_END()
