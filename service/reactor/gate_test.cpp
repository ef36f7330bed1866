// Operations that wait and hop between two reactors while the object they work on is closed at a random moment. The
// seed of a run that failed is in its output: POLLUX_TEST_SEED.

#include "reactor/gate.h"

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>

namespace pollux::reactor {

namespace {

constexpr std::uint64_t kDeadlineMs = 60'000;

struct Object {
  explicit Object(Reactor& home) : gate(home) {}
  Gate gate;
  bool alive = true;
};

struct Counts {
  unsigned refused = 0;
  unsigned done = 0;
  unsigned touched_dead = 0;
};

// The object may be gone when this is called; then nothing of it is touched. `object` is set to nullptr with that.
Task<void> operate(Reactor& home, Reactor& other, std::unique_ptr<Object>& object, std::uint64_t seed, Counts& counts) {
  std::mt19937_64 random(seed);
  for (std::uint64_t turns = random() % 20; turns > 0; --turns) co_await home.yield();
  if (object == nullptr) {
    ++counts.refused;
    co_return;
  }
  Object& mine = *object;
  auto inside = mine.gate.enter("the object");
  if (!inside) {
    BOOST_TEST((inside.error().code == ErrorCode::kRetry));
    ++counts.refused;
    co_return;
  }
  for (std::uint64_t steps = random() % 8; steps > 0; --steps) {
    if (random() % 2 == 0) co_await other.enter();
    if (random() % 3 == 0) co_await other.yield();
    co_await home.enter();
    if (random() % 4 == 0) co_await home.sleep_us(random() % 50);
    counts.touched_dead += !mine.alive;
  }
  ++counts.done;
}

Task<Result<Counts>> one_round(Reactor& home, Reactor& other, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto object = std::make_unique<Object>(home);
  Counts counts;
  unsigned left = 1 + random() % 30;
  Completion<bool> over;
  const unsigned operations = left;
  for (unsigned i = 0; i < operations; ++i) {
    spawn(operate(home, other, object, random(), counts), [&left, &over] {
      if (--left == 0) over.set(true);
    });
  }
  for (std::uint64_t turns = random() % 30; turns > 0; --turns) co_await home.yield();
  co_await object->gate.close();
  object->alive = false;
  const unsigned inside = static_cast<unsigned>(object->gate.inside());
  object.reset();
  co_await over;
  if (inside != 0) co_return fail(ErrorCode::kInternal, "closed with " + std::to_string(inside) + " inside");
  if (counts.done + counts.refused != operations) co_return fail(ErrorCode::kInternal, "an operation is missing");
  co_return counts;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_gate_closes_when_all_who_entered_have_left_whatever_the_order) {
  const char* given = std::getenv("POLLUX_TEST_SEED");
  const std::uint64_t seed = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  BOOST_TEST_MESSAGE("POLLUX_TEST_SEED=" << seed);
  auto group = ReactorGroup::start({{.id = 0}, {.id = 1}});
  BOOST_REQUIRE(group.has_value());
  Reactor& home = (*group)->main();
  Counts all;
  for (std::uint64_t round = 0; round < 500; ++round) {
    BOOST_TEST_CONTEXT("POLLUX_TEST_SEED=" << seed << ", round " << round) {
      const auto counts = call(home, one_round(home, (*group)->at(1), seed + round), kDeadlineMs);
      BOOST_REQUIRE_MESSAGE(counts.has_value(), counts.error().message);
      BOOST_TEST(counts->touched_dead == 0U);
      all.done += counts->done;
      all.refused += counts->refused;
    }
  }
  // Both happened, or this showed nothing.
  BOOST_TEST(all.done > 100U);
  BOOST_TEST(all.refused > 100U);
}

BOOST_AUTO_TEST_CASE(a_gate_that_was_opened_again_lets_operations_in) {
  auto group = ReactorGroup::start({{.id = 0}});
  BOOST_REQUIRE(group.has_value());
  Reactor& home = (*group)->main();
  const auto steps = [&]() -> Task<Result<bool>> {
    Gate gate(home);
    co_await gate.close();
    const bool refused = !gate.enter("it");
    gate.open();
    const auto inside = gate.enter("it");
    co_return refused && inside.has_value() && gate.inside() == 1;
  };
  const auto done = call(home, steps(), kDeadlineMs);
  BOOST_REQUIRE(done.has_value());
  BOOST_TEST(*done);
}

}  // namespace pollux::reactor
