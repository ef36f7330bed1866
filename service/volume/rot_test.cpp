// Rotten and hostile metadata: whatever lies on the device, loading it ends in an error or in a pool that can be used
// without harm to the process. The second test gives its changes a right checksum, as somebody would who means harm.
//
//   POLLUX_TEST_SEED     replays a run
//   POLLUX_TEST_ROUNDS   how many damaged pools (default few)
//   POLLUX_TEST_ROUND    of these, only the one with this number

#include <boost/test/unit_test.hpp>
#include <cstring>

#include "blob/page_codec.h"
#include "volume/rot_harness.h"

using namespace pollux;
using namespace pollux::volume::test;

namespace {

constexpr std::uint64_t kRounds = 60;

Uuid id_of(std::uint8_t number) {
  Uuid id;
  id.bytes[15] = number;
  return id;
}

// Replaces every word of every directory.
template <typename Change>
void forge_directories(std::vector<std::byte>& image, Change change) {
  for (std::size_t at : metadata_pages(image)) {
    blob::PageHeader header;
    std::memcpy(&header, image.data() + at, sizeof(header));
    if (header.type != blob::PageType::kDirectory) continue;
    forge_page(image, at, [&](std::byte* payload) {
      for (std::size_t i = 0; i < blob::kWordsPerPage; ++i) {
        std::uint32_t word = 0;
        std::memcpy(&word, payload + i * sizeof(word), sizeof(word));
        word = change(word);
        std::memcpy(payload + i * sizeof(word), &word, sizeof(word));
      }
    });
  }
}

// A pool in whose last checkpoint the leaf that a volume shares with its snapshot counts one reference too few, and in
// whose journal the snapshot is deleted, which frees the leaf, and a new volume is written to, unless it has no bytes.
std::vector<std::byte> pool_that_frees_a_leaf_in_use(const Reactors& reactors, CrashHarness& pool,
                                                     std::uint64_t new_volume_bytes) {
  const Uuid one = id_of(1), snap = id_of(2);
  pool.open(CrashHarness::formatted(reactors, 16 * kMiB, 64 * kKiB), 1);
  bool done = pool.create(one, kMiB) && pool.write(one, {{0, 8192}}) && pool.fork(one, snap, true) &&
              pool.checkpoint() && pool.remove(snap) && pool.wait_until_idle();
  const Uuid fresh = id_of(3);
  if (new_volume_bytes != 0) done = done && pool.create(fresh, new_volume_bytes) && pool.write(fresh, {{0, 4096}});
  if (!done || !pool.flush(one)) throw std::runtime_error("the disk failed");
  auto image = pool.disk().image();
  forge_directories(image, [](std::uint32_t word) {
    const bool leaf = (word >> blob::kDirTypeShift) == static_cast<std::uint32_t>(blob::PageType::kLeaf);
    return leaf && (word & blob::kDirRefsMask) == 2 ? word - 1 : word;
  });
  return image;
}

Result<blob::CheckReport> check(const Reactors& reactors, std::shared_ptr<blob::SimDisk> disk, blob::Repair repair) {
  return reactors.call(blob::check_pool(make_sim_bdev(std::move(disk), 1), reactors.home(), repair));
}

void require_refused(const Reactors& reactors, std::shared_ptr<blob::SimDisk> disk) {
  const auto store = reactors.call(blob::Store::open(make_sim_bdev(std::move(disk), 1), reactors.home()));
  BOOST_REQUIRE(!store.has_value());
  BOOST_TEST((store.error().code == ErrorCode::kCorrupt), store.error().message);
}

struct Outcome {
  std::uint64_t rounds = 0;
  std::uint64_t opened = 0;
};

// Each round damages a copy of the image in its own way, whatever the other rounds did, and sees what becomes of it.
template <typename Damage>
Outcome damage_in_many_ways(const std::vector<std::byte>& image, Damage damage) {
  const std::uint64_t seed = test_seed();
  const char* wanted = std::getenv("POLLUX_TEST_ROUNDS");
  const char* only = std::getenv("POLLUX_TEST_ROUND");
  const std::uint64_t first = only ? std::strtoull(only, nullptr, 10) : 0;
  const std::uint64_t end = only ? first + 1 : wanted ? std::strtoull(wanted, nullptr, 10) : kRounds;
  Outcome outcome;
  for (std::uint64_t round = first; round < end; ++round) {
    std::seed_seq sequence{seed >> 32, seed & 0xffff'ffff, round >> 32, round & 0xffff'ffff};
    std::mt19937_64 random(sequence);
    auto damaged = image;
    damage(damaged, random);
    ++outcome.rounds;
    try {
      outcome.opened += survives(damaged, seed + round);
    } catch (const std::exception& error) {
      BOOST_FAIL("POLLUX_TEST_SEED=" << seed << " POLLUX_TEST_ROUND=" << round << ": " << error.what());
    }
  }
  BOOST_TEST_MESSAGE(outcome.opened << " of " << outcome.rounds << " opened");
  return outcome;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(rot)

BOOST_AUTO_TEST_CASE(flipped_bits_in_metadata_do_no_harm) {
  reactor::Stepper reactors(2, 1);
  const auto image = busy_pool(reactors);
  auto pages = metadata_pages(image);
  for (std::size_t at = 0; at < 2 * kMiB; at += blob::kPageBytes) pages.push_back(at);
  const auto flip = [&](std::vector<std::byte>& damaged, std::mt19937_64& random) {
    for (std::uint64_t i = 0; i <= random() % 20; ++i) {
      const std::size_t at = pages[random() % pages.size()] + random() % blob::kPageBytes;
      damaged[at] ^= static_cast<std::byte>(1U << (random() % 8));
    }
  };
  const Outcome outcome = damage_in_many_ways(image, flip);
  if (outcome.rounds >= kRounds) BOOST_TEST(outcome.opened < outcome.rounds);
}

BOOST_AUTO_TEST_CASE(forged_metadata_with_right_checksums_does_no_harm) {
  reactor::Stepper reactors(2, 1);
  const auto image = busy_pool(reactors);
  const auto pages = metadata_pages(image);
  const auto forge = [&](std::vector<std::byte>& forged, std::mt19937_64& random) {
    for (std::uint64_t i = 0; i <= random() % 4; ++i) {
      forge_page(forged, pages[random() % pages.size()], [&](std::byte* payload) {
        for (std::uint64_t j = 0; j <= random() % 8; ++j) {
          // Small numbers in words near the start hit most often what means something.
          const std::size_t span = random() % 2 ? 256 : blob::kPagePayloadBytes;
          const std::uint32_t word = random() % 3 == 0 ? static_cast<std::uint32_t>(random()) : random() % 64;
          std::memcpy(payload + random() % (span / 4) * 4, &word, sizeof(word));
        }
      });
    }
  };
  const Outcome outcome = damage_in_many_ways(image, forge);
  if (outcome.rounds >= kRounds) BOOST_TEST(outcome.opened > 0U);
}

BOOST_AUTO_TEST_CASE(a_leaf_that_the_journal_freed_while_in_use_gets_its_page_back) {
  reactor::Stepper reactors(2, 1);
  CrashHarness pool(reactors);
  const auto image = pool_that_frees_a_leaf_in_use(reactors, pool, 0);
  auto disk = std::make_shared<blob::SimDisk>(image);
  require_refused(reactors, disk);
  const auto found = must(check(reactors, disk, blob::Repair::kNo));
  // The page, and the two clusters of the leaf, one of which was half-written before.
  BOOST_TEST(found.lost > 0U);
  BOOST_TEST(found.doubly_used + found.damaged == 0U);
  BOOST_TEST(found.irreparable == "");
  const auto repaired = must(check(reactors, disk, blob::Repair::kYes));
  BOOST_TEST(repaired.repaired == repaired.found());
  BOOST_TEST(must(check(reactors, disk, blob::Repair::kNo)).clean());
  pool.open(disk->image(), 1);
  pool.verify();
}

BOOST_AUTO_TEST_CASE(a_directory_that_calls_itself_something_else_is_refused) {
  reactor::Stepper reactors(2, 1);
  auto image = busy_pool(reactors);
  forge_directories(image, [](std::uint32_t word) {
    const bool directory = (word >> blob::kDirTypeShift) == static_cast<std::uint32_t>(blob::PageType::kDirectory);
    return directory ? (static_cast<std::uint32_t>(blob::PageType::kLeaf) << blob::kDirTypeShift) | 3 : word;
  });
  auto disk = std::make_shared<blob::SimDisk>(image);
  require_refused(reactors, disk);
  const auto report = check(reactors, disk, blob::Repair::kYes);
  BOOST_REQUIRE(!report.has_value());
  BOOST_TEST((report.error().code == ErrorCode::kCorrupt));
  BOOST_TEST((disk->image() == image));
}

BOOST_AUTO_TEST_CASE(a_repair_that_would_leave_what_cannot_be_opened_writes_nothing) {
  reactor::Stepper reactors(2, 1);
  // The page becomes a leaf again, or the index of a volume large enough to need one.
  for (const std::uint64_t bytes : {kMiB, 3 * kGiB}) {
    BOOST_TEST_CONTEXT("a new volume of " << bytes << " bytes") {
      CrashHarness pool(reactors);
      const auto image = pool_that_frees_a_leaf_in_use(reactors, pool, bytes);
      auto disk = std::make_shared<blob::SimDisk>(image);
      require_refused(reactors, disk);
      const auto report = must(check(reactors, disk, blob::Repair::kYes));
      BOOST_TEST(report.doubly_used > 0U);
      BOOST_TEST(report.repaired == 0U);
      BOOST_REQUIRE(!report.findings.empty());
      BOOST_TEST(report.findings.back() == "nothing was repaired: " + report.irreparable);
      BOOST_TEST((disk->image() == image));
    }
  }
}

// The error of opening a pool whose superblock was changed.
Error refusal(void (*change)(blob::Superblock&)) {
  reactor::Stepper reactors(2, 1);
  auto image = CrashHarness::formatted(reactors, 24 * kMiB, 64 * kKiB);
  for (std::size_t at : {std::size_t{0}, static_cast<std::size_t>(blob::kSuperSlotStride)}) {
    blob::Superblock super;
    std::memcpy(&super, image.data() + at, sizeof(super));
    if (super.magic != blob::kSuperMagic) continue;
    change(super);
    blob::seal_super(super);
    std::memcpy(image.data() + at, &super, sizeof(super));
  }
  auto disk = std::make_shared<blob::SimDisk>(std::move(image));
  auto store = reactors.call(reactors.main(), blob::Store::open(make_sim_bdev(disk, 1), reactors.main()));
  BOOST_REQUIRE(!store.has_value());
  BOOST_TEST((store.error().code == ErrorCode::kUnsupported));
  return store.error();
}

BOOST_AUTO_TEST_CASE(another_version_is_refused_by_name_and_number) {
  const Error error = refusal([](blob::Superblock& super) { super.version = 7; });
  BOOST_TEST(error.message.find("pool 'sim' (") == 0U);
  BOOST_TEST(error.message.find("version 7") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_name_of_another_version_may_be_anything) {
  const Error error = refusal([](blob::Superblock& super) {
    super.version = 7;
    super.name_bytes = UINT32_MAX;
    super.name[0] = '\n';
  });
  BOOST_TEST(error.message.find("pool '?im") == 0U);
  BOOST_TEST(error.message.find('\n') == std::string::npos);
}

BOOST_AUTO_TEST_CASE(unknown_features_are_refused) {
  const Error error = refusal([](blob::Superblock& super) { super.incompatible_features = 4; });
  BOOST_TEST(error.message.find("mask 4") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()
