// What a process leaves in memory for the next: which of it is applied, and when nothing may be.

#include "blob/journal_queue.h"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>

using namespace pollux;
using blob::JournalQueue;

namespace {

constexpr std::size_t kChunkBytes = 8192;
constexpr std::size_t kSlots = 4;
constexpr std::uint64_t kCheckpoint = 7;

Uuid pool_id(std::uint8_t number = 1) {
  Uuid id;
  id.bytes[15] = number;
  return id;
}

// A folder on a tmpfs, and processes that come and go.
struct Fixture {
  Fixture() {
    std::string name = "/dev/shm/pollux-queue-XXXXXX";
    BOOST_REQUIRE(mkdtemp(name.data()) != nullptr);
    folder = name;
  }
  ~Fixture() { std::filesystem::remove_all(folder); }

  Result<std::unique_ptr<JournalQueue>> open(const Uuid& id = pool_id(), std::size_t slots = kSlots) const {
    auto memory = JournalQueue::in_folder(folder)(id, JournalQueue::bytes_for(kChunkBytes, slots));
    if (!memory) return fail(std::move(memory.error()));
    return JournalQueue::open(std::move(*memory), id, kChunkBytes, slots);
  }
  void start() {
    queue.reset();
    auto opened = open();
    BOOST_REQUIRE_MESSAGE(opened.has_value(), (opened ? std::string() : opened.error().message));
    queue = std::move(*opened);
  }
  // The numbers of what counts when the journal on the device ends there.
  Result<std::vector<std::uint64_t>> unwritten(std::uint64_t sequence, std::uint32_t crc,
                                               std::uint64_t checkpoint = kCheckpoint) const {
    const auto found = queue->unwritten(checkpoint, sequence, crc);
    if (!found) return fail(found.error());
    std::vector<std::uint64_t> numbers;
    for (const JournalQueue::Slot* slot : *found) numbers.push_back(slot->number());
    return numbers;
  }
  void expect(std::uint64_t sequence, std::uint32_t crc, const std::vector<std::uint64_t>& numbers,
              std::uint64_t checkpoint = kCheckpoint) const {
    const auto found = unwritten(sequence, crc, checkpoint);
    BOOST_REQUIRE_MESSAGE(found.has_value(), (found ? std::string() : found.error().message));
    BOOST_TEST(*found == numbers, boost::test_tools::per_element());
  }
  JournalQueue::Slot& add(std::uint64_t number, std::uint64_t follows) const {
    JournalQueue::Slot* slot = queue->take(number, follows);
    BOOST_REQUIRE(slot != nullptr);
    std::memset(slot->data(), static_cast<int>(number), kChunkBytes);
    JournalQueue::set(*slot, 100 + number, 1, true);
    return *slot;
  }
  // A pool whose journal ends at commit 10, with two chunks that are not on the device.
  void start_with_two() {
    start();
    expect(10, 0xaa, {});
    add(1, 0);
    add(2, 1);
  }

  std::string folder;
  std::unique_ptr<JournalQueue> queue;
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(journal_queue, Fixture)

BOOST_AUTO_TEST_CASE(the_next_process_finds_what_is_not_on_the_device) {
  start_with_two();
  start();
  const auto found = queue->unwritten(kCheckpoint, 10, 0xaa);
  BOOST_REQUIRE(found.has_value());
  BOOST_REQUIRE(found->size() == 2U);
  for (JournalQueue::Slot* slot : *found) {
    BOOST_TEST(slot->used() == 100 + slot->number());
    BOOST_TEST(slot->has_data());
    BOOST_TEST(std::to_integer<std::uint64_t>(*slot->data()) == slot->number());
  }
}

BOOST_AUTO_TEST_CASE(what_has_no_record_counts_for_nothing) {
  start();
  expect(10, 0xaa, {});
  BOOST_REQUIRE(queue->take(1, 0) != nullptr);
  start();
  expect(10, 0xaa, {});
}

BOOST_AUTO_TEST_CASE(a_commit_that_was_announced_counts_as_written_only_when_the_device_has_it) {
  for (const bool arrived : {false, true}) {
    start_with_two();
    queue->announce({.sequence = 11, .number = 1, .previous_crc = 0xbb});
    start();
    const std::vector<std::uint64_t> left = arrived ? std::vector<std::uint64_t>{2} : std::vector<std::uint64_t>{1, 2};
    expect(arrived ? 11 : 10, arrived ? 0xbb : 0xaa, left);
    queue->discard();
  }
}

BOOST_AUTO_TEST_CASE(after_a_start_that_found_nothing_the_numbers_begin_again) {
  start_with_two();
  queue->announce({.sequence = 11, .number = 1, .previous_crc = 0xbb});
  queue->arrived();
  queue->announce({.sequence = 12, .number = 2, .previous_crc = 0xcc});
  start();
  expect(12, 0xcc, {});
  add(1, 0);
  start();
  expect(12, 0xcc, {1});
}

BOOST_AUTO_TEST_CASE(what_a_durable_checkpoint_holds_is_not_applied_again) {
  start_with_two();
  queue->absorb(2, kCheckpoint + 1);
  start();
  expect(10, 0xaa, {1, 2});
  queue->absorb(2, kCheckpoint + 1);
  start();
  expect(10, 0xaa, {2}, kCheckpoint + 1);
}

BOOST_AUTO_TEST_CASE(nothing_counts_behind_a_chunk_that_was_in_no_slot) {
  start_with_two();
  add(4, 3);
  start();
  expect(10, 0xaa, {1, 2});
}

BOOST_AUTO_TEST_CASE(a_pool_that_was_changed_elsewhere_gets_nothing) {
  start_with_two();
  start();
  const auto found = unwritten(12, 0xdd);
  BOOST_REQUIRE(!found.has_value());
  BOOST_TEST((found.error().code == ErrorCode::kCorrupt));
  start();
  expect(12, 0xdd, {});
}

BOOST_AUTO_TEST_CASE(after_a_flush_that_may_have_lost_the_data_nothing_leads_to_it) {
  start_with_two();
  queue->lose();
  start();
  BOOST_TEST(!unwritten(10, 0xaa).has_value());
  start();
  expect(10, 0xaa, {});
}

BOOST_AUTO_TEST_CASE(slots_come_back) {
  start();
  expect(10, 0xaa, {});
  std::vector<JournalQueue::Slot*> slots;
  for (std::uint64_t number = 1; number <= kSlots; ++number) slots.push_back(&add(number, number - 1));
  BOOST_TEST(queue->take(kSlots + 1, kSlots) == nullptr);
  JournalQueue::free(*slots[1]);
  BOOST_TEST(queue->take(kSlots + 1, kSlots) == slots[1]);
}

BOOST_AUTO_TEST_CASE(a_pool_that_was_closed_leaves_nothing) {
  start_with_two();
  queue->discard();
  BOOST_TEST(std::filesystem::is_empty(folder));
}

BOOST_AUTO_TEST_CASE(what_cannot_be_understood_is_refused_and_stays) {
  start_with_two();
  queue.reset();
  BOOST_TEST(!open(pool_id(), kSlots + 1).has_value());
  const std::string path = folder + "/journal-" + pool_id().to_string();
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary) << "other";
  BOOST_TEST(!open().has_value());
  BOOST_TEST(std::filesystem::exists(path));
}

BOOST_AUTO_TEST_CASE(a_folder_on_a_disk_is_not_used) {
  std::string name = "/var/tmp/pollux-queue-XXXXXX";
  BOOST_REQUIRE(mkdtemp(name.data()) != nullptr);
  const auto memory = JournalQueue::in_folder(name)(pool_id(), JournalQueue::bytes_for(kChunkBytes, kSlots));
  BOOST_REQUIRE(!memory.has_value());
  BOOST_TEST((memory.error().code == ErrorCode::kUnsupported));
  BOOST_TEST(std::filesystem::is_empty(name));
  std::filesystem::remove(name);
}

BOOST_AUTO_TEST_SUITE_END()
