// Rotten and hostile metadata: whatever lies on the device, loading it ends in an error or in a pool that can be used
// without harm to the process. The second test gives its changes a right checksum, as somebody would who means harm.
//
//   POLLUX_TEST_SEED     replays a run
//   POLLUX_TEST_ROUNDS   how many damaged pools (default few)

#include <boost/test/unit_test.hpp>
#include <cstring>

#include "blob/page_codec.h"
#include "blob/volume.h"
#include "volume/crash_harness.h"

using namespace pollux;
using namespace pollux::volume::test;

namespace {

std::uint64_t rounds() {
  const char* given = std::getenv("POLLUX_TEST_ROUNDS");
  return given ? std::strtoull(given, nullptr, 10) : 60;
}

Uuid id_of(std::uint8_t number) {
  Uuid id;
  id.bytes[0] = 0x42;
  id.bytes[15] = number;
  return id;
}

// A pool with volumes, snapshots, half-written clusters, an indexed volume and something in the journal.
std::vector<std::byte> busy_pool(reactor::Reactor& home) {
  CrashHarness pool(home);
  pool.open(CrashHarness::formatted(home, 24 * kMiB, 64 * kKiB), 1);
  const Uuid one = id_of(1), large = id_of(2), snap = id_of(3), clone = id_of(4);
  BOOST_REQUIRE(
      pool.create(one, 2 * kMiB) && pool.write(one, {{0, 4096}, {64 * kKiB, 128 * kKiB}}) &&
      pool.create(large, 3 * kGiB) && pool.write(large, {{0, 4096}, {3 * kGiB - 8192, 8192}}) &&
      pool.fork(one, snap, true) && pool.fork(snap, clone, false) && pool.write(clone, {{0, 4096}, {8192, 512}}) &&
      pool.checkpoint() && pool.write(one, {{0, 4096}, {70 * kKiB, 4096}}) && pool.fork(one, id_of(5), true) &&
      pool.write(clone, {{128 * kKiB, 64 * kKiB}}) && pool.unmap(one, {64 * kKiB, 64 * kKiB}) && pool.flush(one));
  return pool.disk().image();
}

reactor::Task<Status> use(reactor::Reactor& home, blob::Store& store) {
  std::vector<Uuid> ids;
  for (const auto& [number, volume] : store.state().volumes()) {
    if (!volume->deleting()) ids.push_back(volume->id);
  }
  for (const Uuid& id : ids) {
    auto volume = co_await store.view(id);
    if (!volume) continue;
    {
      auto device = std::make_shared<volume::VolumeBdev>(store, **volume);
      auto channel = device->open_channel(home);
      std::vector<std::byte> bytes(256 * kKiB);
      const std::uint64_t length = std::min<std::uint64_t>(bytes.size(), device->size_bytes() / 4096 * 4096);
      // Any status will do; what counts is that there is one.
      (void)co_await bdev::read(**channel, 0, bytes.data(), length);
      (void)co_await bdev::write(**channel, 0, bytes.data(), std::min<std::uint64_t>(length, 8192));
      (void)co_await bdev::write(**channel, 0, bytes.data(), length >= 512 ? 512 : 0);
      (void)co_await bdev::unmap(**channel, 0, length);
      (void)co_await bdev::flush(**channel);
      co_await home.yield();
    }
    co_await home.yield();
    blob::CreateOptions options{.id = Uuid::random(), .name = id.to_string() + "-fork", .snapshot = true};
    (void)co_await store.fork(id, std::move(options));
    (void)co_await store.remove(id);
  }
  while (!store.idle()) co_await home.yield();
  co_return Status{};
}

// True when the pool opened.
bool survives(reactor::Reactor& home, std::vector<std::byte> image) {
  {
    auto disk = std::make_shared<blob::SimDisk>(image);
    (void)reactor::call(home, blob::check_pool(make_sim_bdev(disk, 1), home));
  }
  auto disk = std::make_shared<blob::SimDisk>(std::move(image));
  auto store = reactor::call(home, blob::Store::open(make_sim_bdev(disk, 1), home));
  if (!store) {
    BOOST_TEST(!store.error().message.empty());
    return false;
  }
  must(reactor::call(home, use(home, **store)));
  (void)reactor::call(home, (*store)->close());
  return true;
}

std::vector<std::size_t> metadata_pages(const std::vector<std::byte>& image) {
  std::vector<std::size_t> found;
  for (std::size_t at = 0; at + blob::kPageBytes <= image.size(); at += blob::kPageBytes) {
    std::uint32_t magic = 0;
    std::memcpy(&magic, image.data() + at, sizeof(magic));
    if (magic == blob::kPageMagic) found.push_back(at);
  }
  return found;
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
    BOOST_TEST_CONTEXT("round " << round) opened += survives(reactors->main(), std::move(damaged));
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
    BOOST_TEST_CONTEXT("round " << round) opened += survives(reactors->main(), std::move(forged));
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
