#include "base/budget.h"

#include <boost/test/unit_test.hpp>
#include <memory>
#include <random>
#include <vector>

namespace pollux {
namespace {

std::int64_t take_all(Budget& budget) {
  while (budget.open()) budget.take(1);
  return budget.held();
}

BOOST_AUTO_TEST_CASE(one_tenant_alone_gets_its_own_and_most_of_the_rest) {
  Commons commons(256);
  Budget tenant(commons, 2);
  const std::int64_t held = take_all(tenant);
  BOOST_TEST(held >= 2 + 256 * 2 / 3);
  BOOST_TEST(commons.left() > 0);
  tenant.give(held);
  BOOST_TEST(commons.left() == 256);
}

BOOST_AUTO_TEST_CASE(any_number_of_greedy_tenants_leaves_something_for_the_next) {
  for (const std::size_t count : {1U, 2U, 10U, 100U}) {
    Commons commons(256);
    std::vector<std::unique_ptr<Budget>> greedy;
    for (std::size_t i = 0; i < count; ++i) greedy.push_back(std::make_unique<Budget>(commons, 2));
    bool took = true;
    while (took) {
      took = false;
      for (auto& tenant : greedy) {
        if (!tenant->open()) continue;
        tenant->take(1);
        took = true;
      }
    }
    Budget late(commons, 2);
    BOOST_TEST(take_all(late) > 2);
    BOOST_TEST(commons.left() >= 0);
    late.give(late.held());
    for (auto& tenant : greedy) tenant->give(tenant->held());
    BOOST_TEST(commons.left() == 256);
  }
}

BOOST_AUTO_TEST_CASE(its_own_is_there_when_the_rest_is_gone) {
  Commons commons(0);
  Budget tenant(commons, 2);
  BOOST_TEST(take_all(tenant) == 2);
  tenant.give(2);
}

BOOST_AUTO_TEST_CASE(one_request_that_is_too_large_goes_alone) {
  Commons commons(100);
  Budget tenant(commons, 0);
  BOOST_TEST(tenant.open());
  tenant.take(1000);
  BOOST_TEST(!tenant.open());
  Budget other(commons, 10);
  BOOST_TEST(take_all(other) == 10);
  tenant.give(1000);
  BOOST_TEST(other.open());
  other.give(10);
}

BOOST_AUTO_TEST_CASE(what_is_given_back_is_there_again_in_any_order) {
  std::mt19937 random(1);
  Commons commons(1000);
  Budget a(commons, 5);
  Budget b(commons, 50);
  std::vector<std::pair<Budget*, std::int64_t>> taken;
  for (int i = 0; i < 10'000; ++i) {
    Budget& tenant = random() % 2 ? a : b;
    if (random() % 2 && tenant.open()) {
      taken.emplace_back(&tenant, random() % 40);
      tenant.take(taken.back().second);
    } else if (!taken.empty()) {
      std::swap(taken[random() % taken.size()], taken.back());
      taken.back().first->give(taken.back().second);
      taken.pop_back();
    }
  }
  for (const auto& [tenant, units] : taken) tenant->give(units);
  BOOST_TEST(commons.left() == 1000);
}

}  // namespace
}  // namespace pollux
