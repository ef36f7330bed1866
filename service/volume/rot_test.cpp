// Rotten and hostile metadata: whatever lies on the device, loading it ends in an error or in a pool that can be used
// without harm to the process. The second test gives its changes a right checksum, as somebody would who means harm.
//
//   POLLUX_TEST_SEED     replays a run
//   POLLUX_TEST_ROUNDS   how many damaged pools (default few)

#include <boost/test/unit_test.hpp>
#include <cstring>

#include "blob/page_codec.h"
#include "volume/rot_harness.h"

using namespace pollux;
using namespace pollux::volume::test;

namespace {

std::uint64_t rounds() {
  const char* given = std::getenv("POLLUX_TEST_ROUNDS");
  return given ? std::strtoull(given, nullptr, 10) : 60;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(rot)

BOOST_AUTO_TEST_CASE(flipped_bits_in_metadata_do_no_harm) {
  const auto reactors = start_reactors(1);
  const std::uint64_t seed = test_seed();
  BOOST_TEST_MESSAGE("POLLUX_TEST_SEED=" << seed);
  std::mt19937_64 random(seed);
  const auto image = busy_pool(reactors->main());
  auto pages = metadata_pages(image);
  for (std::size_t at = 0; at < 2 * kMiB; at += blob::kPageBytes) pages.push_back(at);
  std::uint64_t opened = 0;
  for (std::uint64_t round = 0; round < rounds(); ++round) {
    auto damaged = image;
    for (std::uint64_t i = 0; i <= random() % 20; ++i) {
      const std::size_t at = pages[random() % pages.size()] + random() % blob::kPageBytes;
      damaged[at] ^= static_cast<std::byte>(1U << (random() % 8));
    }
    BOOST_TEST_CONTEXT("round " << round) opened += survives(reactors->main(), damaged);
  }
  BOOST_TEST_MESSAGE(opened << " of " << rounds() << " opened");
  BOOST_TEST(opened < rounds());
}

BOOST_AUTO_TEST_CASE(forged_metadata_with_right_checksums_does_no_harm) {
  const auto reactors = start_reactors(1);
  const std::uint64_t seed = test_seed();
  BOOST_TEST_MESSAGE("POLLUX_TEST_SEED=" << seed);
  std::mt19937_64 random(seed);
  const auto image = busy_pool(reactors->main());
  const auto pages = metadata_pages(image);
  blob::Superblock super;
  std::memcpy(&super, image.data(), sizeof(super));
  const std::uint32_t checksum_seed = blob::checksum_seed(super.pool_id);
  std::uint64_t opened = 0;
  for (std::uint64_t round = 0; round < rounds(); ++round) {
    auto forged = image;
    for (std::uint64_t i = 0; i <= random() % 4; ++i) {
      std::byte* page = forged.data() + pages[random() % pages.size()];
      blob::PageHeader header;
      std::memcpy(&header, page, sizeof(header));
      for (std::uint64_t j = 0; j <= random() % 8; ++j) {
        // Small numbers in words near the start hit most often what means something.
        const std::size_t span = random() % 2 ? 256 : blob::kPagePayloadBytes;
        const std::uint32_t word = random() % 3 == 0 ? static_cast<std::uint32_t>(random()) : random() % 64;
        std::memcpy(page + sizeof(header) + random() % (span / 4) * 4, &word, sizeof(word));
      }
      blob::seal_page(page, header.type, header.number, header.generation, checksum_seed);
    }
    BOOST_TEST_CONTEXT("round " << round) opened += survives(reactors->main(), forged);
  }
  BOOST_TEST_MESSAGE(opened << " of " << rounds() << " opened");
  BOOST_TEST(opened > 0U);
}

BOOST_AUTO_TEST_CASE(another_version_is_refused_by_number) {
  const auto reactors = start_reactors(1);
  auto image = CrashHarness::formatted(reactors->main(), 24 * kMiB, 64 * kKiB);
  for (std::size_t at : {std::size_t{0}, static_cast<std::size_t>(blob::kSuperSlotStride)}) {
    blob::Superblock super;
    std::memcpy(&super, image.data() + at, sizeof(super));
    if (super.magic != blob::kSuperMagic) continue;
    super.version = 7;
    blob::seal_super(super);
    std::memcpy(image.data() + at, &super, sizeof(super));
  }
  auto disk = std::make_shared<blob::SimDisk>(std::move(image));
  auto store = reactor::call(reactors->main(), blob::Store::open(make_sim_bdev(disk, 1), reactors->main()));
  BOOST_REQUIRE(!store.has_value());
  BOOST_TEST((store.error().code == ErrorCode::kUnsupported));
  BOOST_TEST(store.error().message.find("version 7") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()
