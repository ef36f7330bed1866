#include "virtio/inflight.h"

#include <boost/test/unit_test.hpp>
#include <vector>

namespace pollux::virtio {

using namespace protocol;

namespace {

constexpr std::uint16_t kSize = 8;

// The region's memory, which outlives those that track in it.
struct Memory {
  alignas(64) std::byte bytes[1024] = {};
  InflightSplit split() {
    InflightSplit tracker;
    tracker.attach(bytes, kSize);
    return tracker;
  }
  InflightPacked packed() {
    InflightPacked tracker;
    tracker.attach(bytes, kSize);
    return tracker;
  }
};

using Heads = std::vector<std::uint16_t>;

void take_packed(InflightPacked& tracker, std::uint16_t id, std::uint16_t entries) {
  tracker.begin();
  for (std::uint16_t i = 0; i < entries; ++i)
    BOOST_REQUIRE(tracker.note({.addr = std::uint64_t{100} * id + i, .len = 1, .id = id, .flags = 0}));
  tracker.take(id, entries);
}

BOOST_FIXTURE_TEST_SUITE(inflight, Memory)

BOOST_AUTO_TEST_CASE(split_a_new_region_leaves_the_position_to_the_front_end) {
  BOOST_TEST(!split().recover(77, 80).known);
  const auto again = split().recover(77, 80);
  BOOST_TEST(again.known);
  BOOST_TEST(again.heads.empty());
}
BOOST_AUTO_TEST_CASE(split_a_region_is_believed_when_all_has_been_answered) {
  InflightSplit first = split();
  first.recover(65530, 65530);
  for (const std::uint16_t head : {5, 1, 7}) first.take(head);
  for (const std::uint16_t head : {7, 1, 5}) first.stage(head);
  first.commit(65533);
  const auto recovered = split().recover(65533, 65534);
  BOOST_TEST(recovered.known);
  BOOST_TEST(recovered.heads.empty());
}
BOOST_AUTO_TEST_CASE(split_a_ring_that_is_begun_anew_has_nothing_in_flight) {
  // The driver was loaded again and the front end kept the region: what it names belongs to the old ring.
  InflightSplit first = split();
  first.recover(0, 0);
  for (const std::uint16_t head : {5, 1, 7, 2}) first.take(head);
  first.stage(5);
  first.commit(1);
  // The index went backwards.
  const auto recovered = split().recover(0, 3);
  BOOST_TEST(!recovered.known);
  BOOST_TEST(recovered.heads.empty());
  const auto again = split().recover(0, 3);
  BOOST_TEST(again.known);
  BOOST_TEST(again.heads.empty());
}
BOOST_AUTO_TEST_CASE(split_more_in_flight_than_was_made_available_is_of_another_ring) {
  InflightSplit first = split();
  first.recover(0, 0);
  for (const std::uint16_t head : {5, 1, 7}) first.take(head);
  const auto recovered = split().recover(0, 2);
  BOOST_TEST(!recovered.known);
  BOOST_TEST(recovered.heads.empty());
}
BOOST_AUTO_TEST_CASE(split_what_was_taken_comes_back_in_order_of_arrival) {
  InflightSplit first = split();
  first.recover(0, kSize);
  for (const std::uint16_t head : {5, 1, 7, 2}) first.take(head);
  BOOST_TEST(split().recover(0, kSize).heads == Heads({5, 1, 7, 2}), boost::test_tools::per_element());
}
BOOST_AUTO_TEST_CASE(split_what_was_answered_does_not_come_back) {
  InflightSplit first = split();
  first.recover(0, kSize);
  for (const std::uint16_t head : {5, 1, 7, 2}) first.take(head);
  first.stage(7);
  first.stage(5);
  first.commit(2);
  BOOST_TEST(split().recover(2, kSize).heads == Heads({1, 2}), boost::test_tools::per_element());
}
BOOST_AUTO_TEST_CASE(split_a_batch_that_was_shown_but_not_recorded_is_answered) {
  InflightSplit first = split();
  first.recover(0, kSize);
  for (const std::uint16_t head : {5, 1, 7, 2}) first.take(head);
  first.stage(1);
  first.commit(1);
  first.stage(2);
  first.stage(7);
  // used->idx said 3, then the process died.
  BOOST_TEST(split().recover(3, kSize).heads == Heads({5}), boost::test_tools::per_element());
}
BOOST_AUTO_TEST_CASE(split_a_batch_that_was_staged_and_never_shown_is_done_again) {
  InflightSplit first = split();
  first.recover(0, kSize);
  first.take(3);
  first.take(4);
  first.stage(4);
  BOOST_TEST(split().recover(0, kSize).heads == Heads({3, 4}), boost::test_tools::per_element());
}
BOOST_AUTO_TEST_CASE(split_the_order_holds_over_two_deaths) {
  InflightSplit first = split();
  first.recover(0, kSize);
  first.take(6);
  first.take(0);
  InflightSplit second = split();
  second.recover(0, kSize);
  second.take(3);
  BOOST_TEST(split().recover(0, kSize).heads == Heads({6, 0, 3}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(packed_a_new_region_leaves_the_position_to_the_front_end) {
  const PackedDesc ring[kSize] = {};
  BOOST_TEST(!packed().recover(ring, 3, true).known);
  const auto again = packed().recover(ring, 0, true);
  BOOST_TEST(again.known);
  BOOST_TEST(again.used_idx == 3);
  BOOST_TEST(again.heads.empty());
}
BOOST_AUTO_TEST_CASE(packed_what_was_taken_comes_back_whole_and_in_order) {
  const PackedDesc ring[kSize] = {};
  InflightPacked first = packed();
  first.recover(ring, 0, true);
  take_packed(first, 4, 3);
  take_packed(first, 2, 2);
  InflightPacked second = packed();
  const auto recovered = second.recover(ring, 0, true);
  BOOST_TEST(recovered.entries == 5);
  BOOST_REQUIRE(recovered.heads.size() == 2u);
  const auto descs = second.descriptors(recovered.heads[0]);
  BOOST_REQUIRE(descs.size() == 3u);
  BOOST_TEST(descs[0].addr == 400u);
  BOOST_TEST(descs[2].addr == 402u);
  BOOST_TEST(descs[2].id == 4);
  BOOST_TEST(second.descriptors(recovered.heads[1]).size() == 2u);
}
BOOST_AUTO_TEST_CASE(packed_a_batch_counts_once_its_first_entry_is_shown) {
  for (const bool shown : {false, true}) {
    std::fill(std::begin(bytes), std::end(bytes), std::byte{0});
    PackedDesc ring[kSize] = {};
    ring[0].flags = kDescAvail;
    InflightPacked first = packed();
    first.recover(ring, 0, true);
    take_packed(first, 1, 1);
    take_packed(first, 2, 1);
    first.stage(1);
    first.prepare(1, true);
    // The process died right before or right after it stored this.
    if (shown) ring[0].flags = kDescAvail | kDescUsed;
    const auto recovered = packed().recover(ring, 0, true);
    BOOST_TEST(recovered.used_idx == (shown ? 1 : 0));
    BOOST_TEST(recovered.heads.size() == (shown ? 1u : 2u));
  }
}
BOOST_AUTO_TEST_CASE(packed_entries_are_used_again_for_ever) {
  const PackedDesc ring[kSize] = {};
  InflightPacked tracker = packed();
  tracker.recover(ring, 0, true);
  for (std::uint16_t round = 0; round < 1000; ++round) {
    take_packed(tracker, 1, 5);
    take_packed(tracker, 3, 3);
    tracker.begin();
    BOOST_REQUIRE(!tracker.note({}));
    tracker.stage(round % 2 ? 1 : 3);
    tracker.stage(round % 2 ? 3 : 1);
    tracker.prepare(0, round % 2);
    tracker.commit();
  }
  BOOST_TEST(packed().recover(ring, 0, true).heads.empty());
}
BOOST_AUTO_TEST_CASE(split_each_request_has_a_number_of_its_own_over_deaths) {
  InflightSplit first = split();
  first.recover(0, 0);
  first.take(1);
  const std::uint64_t one = first.arrival(1);
  BOOST_TEST(one >= first.first_arrival());
  InflightSplit second = split();
  BOOST_TEST((second.recover(0, 1).heads == Heads{1}));
  BOOST_TEST(second.arrival(1) == one);
  BOOST_TEST(second.first_arrival() > one);
  second.take(2);
  BOOST_TEST(second.arrival(2) >= second.first_arrival());
  // Also when nothing was in flight to count on from.
  InflightSplit third = split();
  third.recover(2, 2);
  third.take(4);
  BOOST_TEST(third.arrival(4) > second.arrival(2));
}
BOOST_AUTO_TEST_CASE(packed_each_request_has_a_number_of_its_own_over_deaths) {
  PackedDesc ring[kSize] = {};
  InflightPacked first = packed();
  first.recover(ring, 0, true);
  take_packed(first, 1, 2);
  const std::uint64_t one = first.arrival(1);
  BOOST_TEST(one >= first.first_arrival());
  InflightPacked second = packed();
  const auto recovered = second.recover(ring, 0, true);
  BOOST_REQUIRE_EQUAL(recovered.heads.size(), 1U);
  second.retake(1, recovered.heads[0]);
  BOOST_TEST(second.arrival(1) == one);
  BOOST_TEST(second.first_arrival() > one);
  take_packed(second, 2, 1);
  BOOST_TEST(second.arrival(2) >= second.first_arrival());
}
BOOST_AUTO_TEST_CASE(nonsense_in_the_region_yields_valid_heads_or_none) {
  PackedDesc ring[kSize] = {};
  split().recover(0, 0);
  for (std::size_t i = 16; i < sizeof(bytes); ++i) bytes[i] = static_cast<std::byte>(i % 3 ? 1 : i * 37);
  for (const std::uint16_t head : split().recover(3, 11).heads) BOOST_TEST(head < kSize);
  std::fill(std::begin(bytes), std::end(bytes), std::byte{0});
  packed().recover(ring, 0, true);
  for (std::size_t i = 32; i < sizeof(bytes); ++i) bytes[i] = static_cast<std::byte>(i * 29 + 1);
  InflightPacked tracker = packed();
  const auto recovered = tracker.recover(ring, 0, true);
  BOOST_TEST(recovered.entries <= kSize);
  for (const std::uint16_t head : recovered.heads) {
    BOOST_TEST(head < kSize);
    BOOST_TEST(tracker.descriptors(head).size() <= kSize);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::virtio
