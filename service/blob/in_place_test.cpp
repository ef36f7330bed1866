// The table of conditions and events, by itself: every condition with every event against what the words of in_place.h
// say.

#include "blob/in_place.h"

#include <boost/test/unit_test.hpp>
#include <optional>
#include <set>

using namespace pollux::blob;

namespace {

// A condition taken apart.
struct Parts {
  bool held = false;
  bool uncommitted = false;
  bool open = false;

  bool operator==(const Parts&) const = default;
};

Parts apart(InPlace condition) {
  return {.held = condition == InPlace::kHeld || condition == InPlace::kHeldUncommitted,
          .uncommitted = condition == InPlace::kUncommitted || condition == InPlace::kHeldUncommitted,
          .open = condition == InPlace::kOpen};
}

// What comes of it; none: the event does not come in this condition.
std::optional<Parts> expected(const Parts& from, InPlaceEvent event, bool alone) {
  Parts to = from;
  // Whether the metadata is asked, now that nothing else is in the way.
  bool asks = false;
  switch (event) {
    case InPlaceEvent::kLoaded:
      if (from != Parts{}) return std::nullopt;
      asks = true;
      break;
    case InPlaceEvent::kCopied:
      to.open = false;
      break;
    case InPlaceEvent::kKept:
      asks = true;
      break;
    case InPlaceEvent::kQueued:
      to.uncommitted = true;
      break;
    case InPlaceEvent::kCommitted:
    case InPlaceEvent::kLost:
      if (!from.uncommitted) return std::nullopt;
      to.uncommitted = false;
      asks = event == InPlaceEvent::kCommitted;
      break;
    case InPlaceEvent::kHold:
      if (from.held) return std::nullopt;
      to.held = true;
      break;
    case InPlaceEvent::kRelease:
      if (!from.held) return std::nullopt;
      to.held = false;
      asks = true;
      break;
    case InPlaceEvent::kLooked:
      if (from.held) return std::nullopt;
      // The caller has asked.
      if (!alone) return std::nullopt;
      asks = true;
      break;
  }
  if (asks) to.open = alone;
  if (to.held || to.uncommitted) to.open = false;
  return to;
}

constexpr InPlace kConditions[] = {InPlace::kOpen, InPlace::kClosed, InPlace::kHeld, InPlace::kUncommitted,
                                   InPlace::kHeldUncommitted};

}  // namespace

BOOST_AUTO_TEST_SUITE(in_place_table)

BOOST_AUTO_TEST_CASE(every_condition_with_every_event_leads_where_the_words_say) {
  static_assert(std::size(kConditions) == kInPlaceConditions);
  unsigned possible = 0;
  for (const InPlace from : kConditions) {
    for (std::size_t e = 0; e < kInPlaceEvents; ++e) {
      const auto event = static_cast<InPlaceEvent>(e);
      const InPlaceMove& move = in_place_move(from, event);
      for (const bool alone : {false, true}) {
        const auto wanted = expected(apart(from), event, alone);
        BOOST_TEST_CONTEXT("condition " << static_cast<int>(from) << ", event " << e << ", alone " << alone) {
          if (event != InPlaceEvent::kLooked) BOOST_TEST(move.impossible == !wanted.has_value());
          if (move.impossible || !wanted) continue;
          ++possible;
          BOOST_TEST((apart(move.next(alone)) == *wanted));
        }
      }
    }
  }
  BOOST_TEST(possible == 53U);
}

BOOST_AUTO_TEST_CASE(nothing_but_being_alone_with_nothing_under_way_opens) {
  for (const InPlace from : kConditions) {
    for (std::size_t e = 0; e < kInPlaceEvents; ++e) {
      const InPlaceMove& move = in_place_move(from, static_cast<InPlaceEvent>(e));
      if (move.impossible || from == InPlace::kOpen) continue;
      BOOST_TEST((move.otherwise != InPlace::kOpen));
    }
  }
}

BOOST_AUTO_TEST_CASE(every_condition_is_reached_from_a_closed_one_and_leads_back_to_an_open_one) {
  const auto reach = [](InPlace begin) {
    std::set<InPlace> seen{begin};
    for (bool more = true; more;) {
      more = false;
      for (const InPlace from : std::set<InPlace>(seen)) {
        for (std::size_t e = 0; e < kInPlaceEvents; ++e) {
          const InPlaceMove& move = in_place_move(from, static_cast<InPlaceEvent>(e));
          if (!move.impossible) more = seen.insert(move.if_alone).second || more;
        }
      }
    }
    return seen;
  };
  BOOST_TEST(reach(InPlace::kClosed).size() == kInPlaceConditions);
  for (const InPlace from : kConditions) BOOST_TEST(reach(from).contains(InPlace::kOpen));
}

BOOST_AUTO_TEST_SUITE_END()
