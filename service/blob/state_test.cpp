// Counts, pages and the cut of a checkpoint, without a device.

#include "blob/state.h"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <set>

#include "blob/page_codec.h"

using namespace pollux;
using namespace pollux::blob;

namespace {

constexpr std::uint32_t kClusters = 2000;

Geometry geometry() {
  return Geometry::from(64 * kKiB, kClusters, kMiB);
}

struct Fixture {
  State state{geometry()};
  Fixture() {
    state.refcounts.grow(kClusters);
    state.refcounts.open_grown(0);
    grow_metadata();
  }
  void grow_metadata() {
    const MetadataGrowRecord record{
        .header = {.type = RecordType::kMetadataGrow, .bytes = sizeof(MetadataGrowRecord), .volume = 0},
        .number = state.pages.cluster_count(),
        .cluster = *state.refcounts.allocate()};
    BOOST_REQUIRE(state.apply(record.header).has_value());
  }
  void create(std::uint8_t id, std::uint64_t bytes) {
    VolumeCreateRecord record{};
    record.header = {.type = RecordType::kVolumeCreate, .bytes = sizeof(record), .volume = state.next_volume_number()};
    record.id.bytes[0] = id;
    record.size_bytes = bytes;
    record.name_bytes = 1;
    record.name[0] = static_cast<char>('a' + id);
    BOOST_REQUIRE(state.apply(record.header).has_value());
  }
  Volume& volume(std::uint8_t id) {
    Uuid uuid;
    uuid.bytes[0] = id;
    return *state.find(uuid);
  }
  Status map(std::uint8_t id, std::uint32_t index, LeafEntry entry) {
    const MapSetRecord record{
        .header = {.type = RecordType::kMapSet, .bytes = sizeof(MapSetRecord), .volume = volume(id).number},
        .index = index,
        .reserved = 0,
        .entry = entry};
    return state.apply(record.header);
  }
  void fork(std::uint8_t from, std::uint8_t to) {
    ForkRecord record{};
    record.header = {.type = RecordType::kFork, .bytes = sizeof(record), .volume = state.next_volume_number()};
    record.source = volume(from).number;
    record.create.size_bytes = volume(from).size_bytes;
    record.create.id.bytes[0] = to;
    record.create.name_bytes = 1;
    record.create.name[0] = static_cast<char>('a' + to);
    BOOST_REQUIRE(state.apply(record.header).has_value());
  }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(state, Fixture)

BOOST_AUTO_TEST_CASE(every_free_cluster_is_handed_out_once) {
  std::set<ClusterNo> seen;
  const std::uint32_t free = state.refcounts.free_count();
  while (auto cluster = state.refcounts.allocate()) {
    BOOST_REQUIRE(!state.geometry.is_system(*cluster));
    BOOST_REQUIRE(seen.insert(*cluster).second);
  }
  BOOST_TEST(seen.size() == free);
  for (ClusterNo cluster : seen) state.refcounts.give_back(cluster);
  BOOST_TEST(state.refcounts.free_count() == free);
}

BOOST_AUTO_TEST_CASE(a_released_cluster_is_not_free_before_it_is_made_free) {
  create(1, kMiB);
  const ClusterNo cluster = *state.refcounts.allocate();
  const std::uint32_t free = state.refcounts.free_count();
  BOOST_REQUIRE(map(1, 0, {.own = cluster, .base = 0, .bits = kAllBits}).has_value());
  BOOST_TEST(volume(1).mapped == 1U);
  BOOST_REQUIRE(map(1, 0, {}).has_value());
  BOOST_TEST(volume(1).mapped == 0U);
  BOOST_TEST(state.refcounts.free_count() == free);
  BOOST_TEST(state.refcounts.released_count() == 1U);
  const auto released = state.refcounts.collect_released();
  BOOST_REQUIRE(released.size() == 1U);
  state.refcounts.make_free(released);
  BOOST_TEST(state.refcounts.free_count() == free + 1);
}

BOOST_AUTO_TEST_CASE(a_fork_shares_leaves_and_the_first_change_copies_one) {
  create(1, 64 * kMiB);
  const ClusterNo a = *state.refcounts.allocate();
  const ClusterNo b = *state.refcounts.allocate();
  BOOST_REQUIRE(map(1, 0, {.own = a, .base = 0, .bits = kAllBits}).has_value());
  BOOST_REQUIRE(map(1, 700, {.own = b, .base = 0, .bits = kAllBits}).has_value());
  BOOST_TEST((state.sharing(volume(1), 0) == Sharing::kAlone));
  BOOST_TEST((state.sharing(volume(1), 1) == Sharing::kUnmapped));
  fork(1, 2);
  BOOST_TEST(volume(2).leaves[0] == volume(1).leaves[0]);
  BOOST_TEST(state.pages.refs(volume(1).leaves[0]) == 2U);
  BOOST_TEST((state.sharing(volume(1), 0) == Sharing::kShared));
  const ClusterNo c = *state.refcounts.allocate();
  const std::uint64_t unused = state.geometry.unused_bits();
  BOOST_REQUIRE(map(1, 0, {.own = c, .base = a, .bits = unused | 1}).has_value());
  BOOST_TEST(volume(2).leaves[0] != volume(1).leaves[0]);
  BOOST_TEST(volume(2).leaves[2] == volume(1).leaves[2]);
  BOOST_TEST(state.refcounts.word(a) == 2U);
  BOOST_TEST(state.refcounts.word(c) == 1U);
  BOOST_TEST(state.entry(volume(2), 0).own == a);
  BOOST_TEST((state.sharing(volume(1), 0) == Sharing::kAlone));
  // It is the base of one and the own of the other.
  BOOST_TEST((state.sharing(volume(2), 0) == Sharing::kShared));
  // Written in full, the base is released.
  BOOST_REQUIRE(map(1, 0, {.own = c, .base = 0, .bits = kAllBits}).has_value());
  BOOST_TEST(state.refcounts.word(a) == 1U);
  // A crash may bring the record back that named it.
  BOOST_TEST((state.sharing(volume(2), 0) == Sharing::kContested));
  state.refcounts.begin_settling();
  BOOST_TEST((state.sharing(volume(2), 0) == Sharing::kContested));
  state.refcounts.end_settling();
  BOOST_TEST((state.sharing(volume(2), 0) == Sharing::kAlone));
}

// Observed or not, the metadata comes out the same, page by page.
BOOST_AUTO_TEST_CASE(an_observer_changes_nothing_and_is_told_of_every_slot_leaf_and_size) {
  struct Told final : MapObserver {
    void leaf_loaded(Leaf&) override { ++loaded; }
    void leaf_copied(Leaf&) override { ++copied; }
    void slot_changed(Volume& volume, std::size_t slot) override { slots.emplace(volume.id.bytes[0], slot); }
    void resized(Volume& volume) override { sizes.push_back(volume.size_bytes); }
    unsigned loaded = 0;
    unsigned copied = 0;
    std::set<std::pair<unsigned, std::size_t>> slots;
    std::vector<std::uint64_t> sizes;
  } told;
  Fixture watched;
  watched.state.set_observer(&told);
  for (Fixture* each : {static_cast<Fixture*>(this), &watched}) {
    each->create(1, 64 * kMiB);
    for (const std::uint32_t index : {0U, 700U}) {
      const ClusterNo cluster = *each->state.refcounts.allocate();
      BOOST_REQUIRE(each->map(1, index, {.own = cluster, .base = 0, .bits = kAllBits}).has_value());
    }
    each->fork(1, 2);
    const ClusterNo other = *each->state.refcounts.allocate();
    BOOST_REQUIRE(each->map(2, 0, {.own = other, .base = 0, .bits = kAllBits}).has_value());
    auto resize = make_record<ResizeRecord>(RecordType::kResize, each->volume(1).number);
    resize.size_bytes = 128 * kMiB;
    BOOST_REQUIRE(each->state.apply(resize.header).has_value());
  }
  BOOST_TEST(told.copied == 1U);
  BOOST_TEST(told.loaded == 0U);
  using Slot = std::pair<unsigned, std::size_t>;
  BOOST_TEST((told.slots == std::set<Slot>{{1, 0}, {1, 2}, {2, 0}, {2, 2}}));
  BOOST_TEST((told.sizes == std::vector<std::uint64_t>{128 * kMiB}));
  const auto cut = state.dirty.cut();
  const auto same = watched.state.dirty.cut();
  BOOST_REQUIRE(cut.size() == same.size());
  for (std::size_t i = 0; i < cut.size(); ++i) {
    BOOST_TEST(cut[i].value == same[i].value);
    const auto mine = state.dirty.image(cut[i]);
    const auto theirs = watched.state.dirty.image(same[i]);
    BOOST_TEST(std::memcmp(mine.data(), theirs.data(), kPageBytes) == 0);
  }
}

// A leaf that comes from the device says who is alone with what, as one that was made here.
BOOST_AUTO_TEST_CASE(a_leaf_that_is_written_and_loaded_says_the_same) {
  create(1, kMiB);
  const ClusterNo a = *state.refcounts.allocate();
  BOOST_REQUIRE(map(1, 3, {.own = a, .base = 0, .bits = kAllBits}).has_value());
  const PageNo page = volume(1).leaves[0];
  alignas(8) std::byte bytes[kPageBytes] = {};
  state.serialize(PageKey::metadata(page), bytes);
  state.load_leaf(page, *reinterpret_cast<const LeafPage*>(bytes));
  BOOST_TEST(state.entry(volume(1), 3).own == a);
  BOOST_TEST((state.sharing(volume(1), 3) == Sharing::kAlone));
  BOOST_TEST((state.sharing(volume(1), 4) == Sharing::kUnmapped));
}

BOOST_AUTO_TEST_CASE(what_makes_no_sense_is_refused) {
  create(1, kMiB);
  BOOST_TEST(!map(1, 16, {}).has_value());
  BOOST_TEST(!map(1, 0, {.own = 0, .base = 5, .bits = 0}).has_value());
  BOOST_TEST(!map(1, 0, {.own = kClusters, .base = 0, .bits = kAllBits}).has_value());
  BOOST_TEST(!map(1, 0, {.own = 1, .base = 0, .bits = kAllBits}).has_value());
  MetadataGrowRecord grow{
      .header = {.type = RecordType::kMetadataGrow, .bytes = sizeof(MetadataGrowRecord), .volume = 0},
      .number = 7,
      .cluster = 1500};
  BOOST_TEST(!state.apply(grow.header).has_value());
  grow.header.type = static_cast<RecordType>(99);
  BOOST_TEST(!state.apply(grow.header).has_value());
  grow.header.type = RecordType::kMapSet;
  BOOST_TEST(!state.apply(grow.header).has_value());
}

BOOST_AUTO_TEST_CASE(a_page_changed_after_the_cut_is_written_as_it_was) {
  create(1, kMiB);
  const ClusterNo a = *state.refcounts.allocate();
  BOOST_REQUIRE(map(1, 3, {.own = a, .base = 0, .bits = kAllBits}).has_value());
  const PageKey key = PageKey::metadata(volume(1).leaves[0]);
  const auto cut = state.dirty.cut();
  BOOST_REQUIRE(map(1, 3, {}).has_value());
  const auto image = state.dirty.image(key);
  BOOST_TEST(reinterpret_cast<const LeafPage*>(image.data())->entries[3].own == a);
  for (PageKey other : cut) {
    if (other.value != key.value) state.dirty.image(other);
  }
  // The change belongs to the next one.
  bool again = false;
  for (PageKey other : state.dirty.cut()) again = again || other.value == key.value;
  BOOST_TEST(again);
  BOOST_TEST(reinterpret_cast<const LeafPage*>(state.dirty.image(key).data())->entries[3].own == 0U);
}

BOOST_AUTO_TEST_CASE(pages_come_back_lowest_first) {
  const PageNo first = state.pages.allocate(PageType::kLeaf);
  const PageNo second = state.pages.allocate(PageType::kLeaf);
  BOOST_TEST(second > first);
  state.pages.add_ref(first);
  BOOST_TEST(state.pages.drop_ref(first) == 1U);
  BOOST_TEST(state.pages.drop_ref(first) == 0U);
  BOOST_TEST((state.pages.type(first) == PageType::kFree));
  BOOST_TEST(state.pages.allocate(PageType::kIndex) == first);
}

BOOST_AUTO_TEST_CASE(a_sealed_page_is_only_valid_as_what_it_is) {
  AlignedBuffer page(kPageBytes);
  page.data()[100] = std::byte{42};
  seal_page(page.data(), PageType::kLeaf, 12, 5, 77);
  BOOST_TEST(page_valid(page.data(), PageType::kLeaf, 12, 5, 77));
  BOOST_TEST(!page_valid(page.data(), PageType::kIndex, 12, 5, 77));
  BOOST_TEST(!page_valid(page.data(), PageType::kLeaf, 13, 5, 77));
  BOOST_TEST(!page_valid(page.data(), PageType::kLeaf, 12, 4, 77));
  BOOST_TEST(page_from_future(page.data(), PageType::kLeaf, 12, 4, 77));
  BOOST_TEST(!page_valid(page.data(), PageType::kLeaf, 12, 5, 78));
  page.data()[4095] ^= std::byte{1};
  BOOST_TEST(!page_valid(page.data(), PageType::kLeaf, 12, 5, 77));
}

BOOST_AUTO_TEST_SUITE_END()
