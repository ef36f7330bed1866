// The rules by themselves, as SPC-5 5.14 has them.
#include "scsi/reservations.h"

#include <boost/test/unit_test.hpp>

using namespace pollux;
using namespace pollux::scsi;

namespace {

using Verdict = Reservations::Verdict;
using Type = ReservationType;

const NexusName kA{"a", 1};
const NexusName kB{"b", 1};
const NexusName kC{"c", 1};
constexpr Type kTypes[] = {Type::kWriteExclusive,
                           Type::kExclusiveAccess,
                           Type::kWriteExclusiveRegistrantsOnly,
                           Type::kExclusiveAccessRegistrantsOnly,
                           Type::kWriteExclusiveAllRegistrants,
                           Type::kExclusiveAccessAllRegistrants};

bool all_registrants(Type type) {
  return type == Type::kWriteExclusiveAllRegistrants || type == Type::kExclusiveAccessAllRegistrants;
}
bool registrants_only(Type type) {
  return type == Type::kWriteExclusiveRegistrantsOnly || type == Type::kExclusiveAccessRegistrantsOnly;
}

// a, b and c registered with the keys 1, 2 and 3.
Reservations three() {
  Reservations reservations;
  std::uint64_t key = 0;
  for (const NexusName& nexus : {kA, kB, kC}) {
    BOOST_REQUIRE(reservations.register_key(nexus, {.new_key = ++key}).verdict == Verdict::kDone);
  }
  return reservations;
}

bool told(const Reservations::Effects& effects, const NexusName& nexus, UnitAttention attention) {
  for (const auto& [name, what] : effects.attentions) {
    if (name == nexus && what == attention) return true;
  }
  return false;
}

}  // namespace

BOOST_AUTO_TEST_CASE(registering_takes_the_key_that_is_there) {
  Reservations reservations;
  BOOST_TEST((reservations.register_key(kA, {.key = 5, .new_key = 1}).verdict == Verdict::kConflict));
  BOOST_TEST((reservations.register_key(kA, {.new_key = 1}).verdict == Verdict::kDone));
  BOOST_TEST((reservations.register_key(kA, {.key = 2, .new_key = 3}).verdict == Verdict::kConflict));
  BOOST_TEST((reservations.register_key(kA, {.key = 1, .new_key = 3}).verdict == Verdict::kDone));
  BOOST_TEST(
      (reservations.register_key(kA, {.key = 9, .new_key = 4, .ignore_existing = true}).verdict == Verdict::kDone));
  BOOST_TEST(reservations.registrants().size() == 1u);
  BOOST_TEST(reservations.registrants()[0].key == 4u);
  BOOST_TEST(reservations.generation() == 3u);
  BOOST_TEST((reservations.register_key(kA, {.key = 4, .new_key = 0}).verdict == Verdict::kDone));
  BOOST_TEST(reservations.registrants().empty());
  BOOST_TEST((reservations.register_key(kB, {.ignore_existing = true}).verdict == Verdict::kDone));
  BOOST_TEST(reservations.registrants().empty());
}

BOOST_AUTO_TEST_CASE(registrations_are_bounded) {
  Reservations reservations;
  for (std::size_t i = 0; i < Reservations::kMaxRegistrants; ++i) {
    BOOST_REQUIRE(reservations.register_key({"n" + std::to_string(i), 1}, {.new_key = 1}).verdict == Verdict::kDone);
  }
  BOOST_TEST((reservations.register_key(kA, {.new_key = 1}).verdict == Verdict::kNoResources));
}

BOOST_AUTO_TEST_CASE(one_reservation_at_a_time_and_only_for_registrants) {
  for (Type type : kTypes) {
    Reservations reservations = three();
    BOOST_TEST((reservations.reserve({"x", 1}, 0, type).verdict == Verdict::kConflict));
    BOOST_TEST((reservations.reserve(kA, 2, type).verdict == Verdict::kConflict));
    BOOST_TEST((reservations.reserve(kA, 1, type).verdict == Verdict::kDone));
    BOOST_TEST((reservations.reserve(kA, 1, type).verdict == Verdict::kDone));
    // All registrants hold an all-registrants reservation.
    BOOST_TEST(
        (reservations.reserve(kB, 2, type).verdict == (all_registrants(type) ? Verdict::kDone : Verdict::kConflict)));
    for (Type other : kTypes) {
      if (other != type) BOOST_TEST((reservations.reserve(kA, 1, other).verdict == Verdict::kConflict));
    }
    BOOST_TEST(reservations.holds(kA));
    BOOST_TEST(reservations.holds(kB) == all_registrants(type));
  }
}

BOOST_AUTO_TEST_CASE(releasing_ends_it_and_tells_registrants_of_shared_types) {
  for (Type type : kTypes) {
    Reservations reservations = three();
    BOOST_TEST((reservations.release(kA, 1, type).verdict == Verdict::kDone));  // nothing is held
    reservations.reserve(kA, 1, type);
    BOOST_TEST((reservations.release(kA, 7, type).verdict == Verdict::kConflict));
    const Type other = type == Type::kWriteExclusive ? Type::kExclusiveAccess : Type::kWriteExclusive;
    BOOST_TEST((reservations.release(kA, 1, other).verdict == Verdict::kInvalidRelease));
    if (!all_registrants(type)) {
      BOOST_TEST((reservations.release(kB, 2, type).verdict == Verdict::kDone));
      BOOST_TEST(reservations.held().has_value());
    }
    const auto effects = reservations.release(kA, 1, type);
    BOOST_TEST((effects.verdict == Verdict::kDone));
    BOOST_TEST(!reservations.held().has_value());
    const bool shared = all_registrants(type) || registrants_only(type);
    BOOST_TEST(told(effects, kB, UnitAttention::kReservationsReleased) == shared);
    BOOST_TEST(!told(effects, kA, UnitAttention::kReservationsReleased));
  }
}

BOOST_AUTO_TEST_CASE(unregistering_the_holder_releases_what_it_held) {
  for (Type type : kTypes) {
    Reservations reservations = three();
    reservations.reserve(kA, 1, type);
    const auto effects = reservations.register_key(kA, {.key = 1, .new_key = 0});
    BOOST_TEST(reservations.held().has_value() == all_registrants(type));
    BOOST_TEST(told(effects, kB, UnitAttention::kReservationsReleased) == registrants_only(type));
    reservations.register_key(kB, {.key = 2, .new_key = 0});
    reservations.register_key(kC, {.key = 3, .new_key = 0});
    BOOST_TEST(!reservations.held().has_value());
  }
}

BOOST_AUTO_TEST_CASE(clear_takes_everything_from_everybody) {
  Reservations reservations = three();
  reservations.reserve(kA, 1, Type::kWriteExclusive);
  BOOST_TEST((reservations.clear(kB, 1).verdict == Verdict::kConflict));
  const auto effects = reservations.clear(kB, 2);
  BOOST_TEST(reservations.registrants().empty());
  BOOST_TEST(!reservations.held().has_value());
  BOOST_TEST(told(effects, kA, UnitAttention::kReservationsPreempted));
  BOOST_TEST(told(effects, kC, UnitAttention::kReservationsPreempted));
  BOOST_TEST(!told(effects, kB, UnitAttention::kReservationsPreempted));
}

BOOST_AUTO_TEST_CASE(preempting_the_holder_takes_the_reservation_over) {
  for (Type held : kTypes) {
    if (all_registrants(held)) continue;
    for (Type wanted : kTypes) {
      Reservations reservations = three();
      reservations.reserve(kA, 1, held);
      const auto effects = reservations.preempt(kB, {.key = 2, .victim_key = 1, .type = wanted});
      BOOST_TEST((effects.verdict == Verdict::kDone));
      BOOST_TEST(reservations.registrants().size() == 2u);
      BOOST_TEST(told(effects, kA, UnitAttention::kRegistrationsPreempted));
      BOOST_TEST(told(effects, kC, UnitAttention::kReservationsReleased) == (held != wanted));
      BOOST_REQUIRE_EQUAL(effects.preempted.size(), 1u);
      BOOST_TEST((effects.preempted[0] == kA));
      BOOST_TEST((reservations.held()->type == wanted));
      BOOST_TEST(reservations.holds(kB));
      BOOST_TEST(reservations.holds(kC) == all_registrants(wanted));
    }
  }
}

BOOST_AUTO_TEST_CASE(preempting_others_leaves_the_reservation) {
  Reservations reservations = three();
  reservations.reserve(kA, 1, Type::kWriteExclusive);
  const auto effects = reservations.preempt(kB, {.key = 2, .victim_key = 3, .type = Type::kExclusiveAccess});
  BOOST_TEST(told(effects, kC, UnitAttention::kRegistrationsPreempted));
  BOOST_TEST((reservations.held()->type == Type::kWriteExclusive));
  BOOST_TEST(reservations.holds(kA));
  BOOST_TEST((reservations.preempt(kB, {.key = 2, .victim_key = 99}).verdict == Verdict::kConflict));
  BOOST_TEST((reservations.preempt(kB, {.key = 2, .victim_key = 0}).verdict == Verdict::kInvalidServiceActionKey));
  BOOST_TEST((reservations.preempt(kB, {.key = 1, .victim_key = 1}).verdict == Verdict::kConflict));
}

BOOST_AUTO_TEST_CASE(preempting_all_registrants_with_key_zero_removes_all_others) {
  Reservations reservations = three();
  reservations.reserve(kA, 1, Type::kWriteExclusiveAllRegistrants);
  const auto some = reservations.preempt(kB, {.key = 2, .victim_key = 3, .type = Type::kExclusiveAccess});
  BOOST_TEST((some.verdict == Verdict::kDone));
  BOOST_TEST((reservations.held()->type == Type::kWriteExclusiveAllRegistrants));
  const auto all = reservations.preempt(kB, {.key = 2, .victim_key = 0, .type = Type::kExclusiveAccess});
  BOOST_TEST((all.verdict == Verdict::kDone));
  BOOST_TEST(reservations.registrants().size() == 1u);
  BOOST_TEST((reservations.held()->type == Type::kExclusiveAccess));
  BOOST_TEST(reservations.holds(kB));
}

BOOST_AUTO_TEST_CASE(a_reservation_moves_to_another_nexus) {
  Reservations reservations = three();
  BOOST_TEST((reservations.register_and_move(kA, {.key = 1, .new_key = 7, .to = kB}).verdict == Verdict::kConflict));
  reservations.reserve(kA, 1, Type::kWriteExclusive);
  BOOST_TEST((reservations.register_and_move(kB, {.key = 2, .new_key = 7, .to = kC}).verdict == Verdict::kConflict));
  BOOST_TEST((reservations.register_and_move(kA, {.key = 1, .new_key = 0, .to = kB}).verdict ==
              Verdict::kInvalidServiceActionKey));
  BOOST_TEST(
      (reservations.register_and_move(kA, {.key = 1, .new_key = 7, .to = kA}).verdict == Verdict::kInvalidTransportId));
  const NexusName fresh{"new", 1};
  BOOST_TEST((reservations.register_and_move(kA, {.key = 1, .new_key = 7, .to = fresh, .unregister = true}).verdict ==
              Verdict::kDone));
  BOOST_TEST(reservations.holds(fresh));
  BOOST_TEST(!reservations.holds(kA));
  BOOST_TEST(reservations.registrants().size() == 3u);
  BOOST_TEST((reservations.release(fresh, 7, Type::kWriteExclusive).verdict == Verdict::kDone));
}

BOOST_AUTO_TEST_CASE(what_was_saved_comes_back_and_anything_else_is_corrupt) {
  for (Type type : kTypes) {
    Reservations reservations = three();
    reservations.register_key(kA, {.key = 1, .new_key = 11, .aptpl = true});
    reservations.reserve(kA, 11, type);
    const std::string state = reservations.save();
    Reservations restored;
    BOOST_REQUIRE(restored.restore(state).has_value());
    BOOST_TEST(restored.save() == state);
    BOOST_TEST(restored.generation() == reservations.generation());
    BOOST_TEST(restored.holds(kA));
    BOOST_TEST(restored.holds(kB) == all_registrants(type));
    // No cut of it is taken for the whole, and none crashes.
    for (std::size_t length = 1; length + 2 < state.size(); ++length) {
      Reservations cut;
      const auto status = cut.restore(state.substr(0, length));
      if (status.has_value()) BOOST_TEST(cut.save() == state.substr(0, length));
    }
  }
  BOOST_TEST(Reservations().save().empty());
  const std::string header = "pollux-reservations-2 1 ";
  for (const char* bad : {"1 2 1\na 1 1 1\n", "1 1 1\na 1 1 0\n", "1 0 1\na 1 1 1\n", "1 0 99999\n", "1 7 1\na 1 1 1\n",
                          "1 0 1\na 1 0 0\n", "2 0 1\na 1 1 0\n", "x"}) {
    Reservations reservations;
    BOOST_TEST(!reservations.restore(header + bad).has_value());
    BOOST_TEST(reservations.registrants().empty());
  }
}
