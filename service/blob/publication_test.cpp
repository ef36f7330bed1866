// What the data path sees of the maps, and when it may write in place: the Publication over a State, without a device.

#include "blob/publication.h"

#include <boost/test/unit_test.hpp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>

#include "blob/volume.h"

using namespace pollux;
using namespace pollux::blob;

namespace {

constexpr std::uint32_t kClusters = 2000;

struct Fixture {
  State state{Geometry::from(64 * kKiB, kClusters, kMiB)};
  Publication publication{state, 64};

  Fixture() {
    state.refcounts.grow(kClusters);
    state.refcounts.open_grown(0);
    auto grow = make_record<MetadataGrowRecord>(RecordType::kMetadataGrow, 0);
    grow.number = state.pages.cluster_count();
    grow.cluster = *state.refcounts.allocate();
    apply(grow.header);
  }
  void apply(const RecordHeader& record) { BOOST_REQUIRE(state.apply(record).has_value()); }
  Volume& create(std::uint8_t id) {
    auto record = make_record<VolumeCreateRecord>(RecordType::kVolumeCreate, state.next_volume_number());
    fill(record, id);
    apply(record.header);
    Volume& volume = *state.find(record.id);
    publication.show(volume);
    return volume;
  }
  static void fill(VolumeCreateRecord& record, std::uint8_t id) {
    record.id.bytes[0] = id;
    record.size_bytes = 64 * kMiB;
    record.name_bytes = 1;
    record.name[0] = static_cast<char>('a' + id);
  }
  Volume& fork(Volume& source, std::uint8_t id) {
    auto record = make_record<ForkRecord>(RecordType::kFork, state.next_volume_number());
    record.source = source.number;
    fill(record.create, id);
    apply(record.header);
    Volume& volume = *state.find(record.create.id);
    publication.show(volume);
    return volume;
  }
  void set(Volume& volume, std::uint32_t index, LeafEntry entry) {
    auto record = make_record<MapSetRecord>(RecordType::kMapSet, volume.number);
    record.index = index;
    record.entry = entry;
    apply(record.header);
  }
  ClusterNo map(Volume& volume, std::uint32_t index) {
    const ClusterNo cluster = *state.refcounts.allocate();
    set(volume, index, {.own = cluster, .base = 0, .bits = kAllBits});
    return cluster;
  }
  void settle() {
    state.refcounts.begin_settling();
    state.refcounts.end_settling();
  }
  // What the data path of any reactor finds out.
  static bool writes_in_place(const Volume& volume, std::uint32_t index) {
    return volume.view->in_place(index, /*to_write=*/true, [] { return std::uint64_t{1}; }) != 0;
  }
  static ClusterNo reads(const Volume& volume, std::uint32_t index) {
    return volume.view->in_place(index, /*to_write=*/false, [] { return std::uint64_t{1}; });
  }

  // A cluster of a fresh volume in this condition.
  void bring(Volume& volume, std::uint32_t index, InPlace condition) {
    map(volume, index);
    switch (condition) {
      case InPlace::kClosed:
        break;
      case InPlace::kOpen:
        publication.changed(volume, index, /*outlives_process=*/true);
        break;
      case InPlace::kHeldUncommitted:
      case InPlace::kUncommitted:
        publication.changed(volume, index, /*outlives_process=*/false);
        if (condition == InPlace::kUncommitted) break;
        [[fallthrough]];
      case InPlace::kHeld:
        publication.hold(volume, index);
        break;
    }
    BOOST_REQUIRE((publication.condition(volume, index) == condition));
  }
  void happen(Volume& volume, std::uint32_t index, InPlaceEvent event) {
    switch (event) {
      case InPlaceEvent::kLoaded:
        publication.leaf_loaded(*state.leaf(volume.leaves[0]));
        break;
      case InPlaceEvent::kCopied:
        publication.leaf_copied(*state.leaf(volume.leaves[0]));
        break;
      case InPlaceEvent::kKept:
      case InPlaceEvent::kQueued:
        publication.changed(volume, index, event == InPlaceEvent::kKept);
        break;
      case InPlaceEvent::kCommitted:
      case InPlaceEvent::kLost:
        publication.committed(volume, index, event == InPlaceEvent::kCommitted);
        break;
      case InPlaceEvent::kHold:
        publication.hold(volume, index);
        break;
      case InPlaceEvent::kRelease:
        publication.release(volume, index);
        break;
      case InPlaceEvent::kLooked:
        publication.looked(volume, index);
        break;
    }
  }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(publication_of_maps, Fixture)

BOOST_AUTO_TEST_CASE(every_condition_with_every_event_moves_as_the_table_says_and_the_data_path_sees_it) {
  for (std::size_t c = 0; c < kInPlaceConditions; ++c) {
    for (std::size_t e = 0; e < kInPlaceEvents; ++e) {
      const auto from = static_cast<InPlace>(c);
      const auto event = static_cast<InPlaceEvent>(e);
      const InPlaceMove& move = in_place_move(from, event);
      if (move.impossible) continue;
      for (const bool alone : {true, false}) {
        // Only who is alone looks.
        if (!alone && event == InPlaceEvent::kLooked) continue;
        Fixture fresh;
        Volume& volume = fresh.create(1);
        fresh.bring(volume, 3, from);
        // Another map names it, which this volume's leaf does not show.
        if (!alone) BOOST_REQUIRE(fresh.state.refcounts.add(fresh.state.entry(volume, 3).own));
        fresh.happen(volume, 3, event);
        BOOST_TEST_CONTEXT("condition " << c << ", event " << e << ", alone " << alone) {
          const InPlace to = move.next(alone);
          BOOST_TEST((fresh.publication.condition(volume, 3) == to));
          BOOST_TEST(writes_in_place(volume, 3) == (to == InPlace::kOpen));
          BOOST_TEST(fresh.publication.at_work() == (to == InPlace::kOpen || to == InPlace::kClosed ? 0U : 1U));
          BOOST_TEST(reads(volume, 3) == fresh.state.entry(volume, 3).own);
        }
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(what_is_shared_opens_again_when_the_others_are_gone_for_good) {
  Volume& volume = create(1);
  const ClusterNo first = map(volume, 3);
  publication.changed(volume, 3, true);
  BOOST_TEST(writes_in_place(volume, 3));
  Volume& copy = fork(volume, 2);
  BOOST_TEST(!writes_in_place(volume, 3));
  BOOST_TEST(!writes_in_place(copy, 3));
  BOOST_TEST(reads(copy, 3) == first);
  // The copy gets a cluster of its own, and a leaf: the old leaf is the volume's alone, and its clusters are not known
  // to be.
  map(copy, 3);
  BOOST_TEST(!writes_in_place(copy, 3));
  publication.changed(copy, 3, true);
  BOOST_TEST(writes_in_place(copy, 3));
  publication.refresh(volume, 0);
  BOOST_TEST(!writes_in_place(volume, 3));
  BOOST_TEST((state.sharing(volume, 3) == Sharing::kContested));
  settle();
  BOOST_TEST(!writes_in_place(volume, 3));
  BOOST_TEST((state.sharing(volume, 3) == Sharing::kAlone));
  publication.looked(volume, 3);
  BOOST_TEST(writes_in_place(volume, 3));
}

BOOST_AUTO_TEST_CASE(a_cluster_opens_after_the_last_of_its_records_only) {
  Volume& volume = create(1);
  map(volume, 3);
  BOOST_TEST(publication.changed(volume, 3, false));
  BOOST_TEST(publication.changed(volume, 3, false));
  BOOST_TEST(!publication.changed(volume, 3, true));
  publication.committed(volume, 3, true);
  BOOST_TEST(publication.uncommitted(volume, 3));
  BOOST_TEST(!writes_in_place(volume, 3));
  publication.committed(volume, 3, true);
  BOOST_TEST(!publication.uncommitted(volume, 3));
  BOOST_TEST(writes_in_place(volume, 3));
}

BOOST_AUTO_TEST_CASE(a_volume_that_is_frozen_is_written_at_home_and_read_everywhere) {
  Volume& volume = create(1);
  const ClusterNo cluster = map(volume, 3);
  publication.changed(volume, 3, true);
  publication.freeze(volume);
  BOOST_TEST(Publication::frozen(volume));
  BOOST_TEST(!writes_in_place(volume, 3));
  BOOST_TEST(reads(volume, 3) == cluster);
  publication.thaw(volume);
  BOOST_TEST(writes_in_place(volume, 3));
}

BOOST_AUTO_TEST_CASE(leaves_that_were_loaded_before_there_were_users_are_opened_where_they_are_alone) {
  Volume& volume = create(1);
  map(volume, 3);
  const ClusterNo shared = map(volume, 4);
  BOOST_REQUIRE(state.refcounts.add(shared));
  BOOST_TEST(!writes_in_place(volume, 3));
  Publication::open_loaded(state);
  BOOST_TEST(writes_in_place(volume, 3));
  BOOST_TEST(!writes_in_place(volume, 4));
}

// Nothing is written in place that may not be, whatever comes in whatever order; and what is alone, with nothing under
// way, opens when somebody looks.
BOOST_AUTO_TEST_CASE(random_events_never_open_what_is_shared_held_or_uncommitted) {
  const char* given = std::getenv("POLLUX_TEST_SEED");
  const std::uint64_t seed = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("POLLUX_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  struct UnderWay {
    bool held = false;
    unsigned records = 0;
  };
  constexpr std::uint32_t kIndexes = 6;
  for (int round = 0; round < 40; ++round) {
    Fixture pool;
    std::vector<Volume*> volumes{&pool.create(1)};
    std::map<std::pair<VolumeNo, std::uint32_t>, UnderWay> under_way;
    for (int step = 0; step < 300; ++step) {
      Volume& volume = *volumes[below(volumes.size())];
      const auto index = static_cast<std::uint32_t>(below(kIndexes));
      UnderWay& now = under_way[{volume.number, index}];
      switch (below(8)) {
        case 0:
        case 1: {
          pool.map(volume, index);
          const bool outlives = below(2) == 0;
          if (pool.publication.changed(volume, index, outlives)) ++now.records;
          break;
        }
        case 2:
          if (now.records == 0) break;
          --now.records;
          pool.publication.committed(volume, index, below(4) != 0);
          break;
        case 3:
          now.held ? pool.publication.release(volume, index) : pool.publication.hold(volume, index);
          now.held = !now.held;
          break;
        case 4:
          pool.settle();
          break;
        case 5:
          if (volumes.size() < 4) volumes.push_back(&pool.fork(volume, static_cast<std::uint8_t>(volumes.size() + 1)));
          break;
        case 6:
          if (pool.state.entry(volume, index).own == 0) break;
          pool.set(volume, index, {});
          pool.publication.changed(volume, index, true);
          break;
        default:
          pool.publication.refresh(volume, 0);
          if (now.held || !pool.state.alone(volume, index)) break;
          pool.publication.looked(volume, index);
          BOOST_REQUIRE(writes_in_place(volume, index) == (now.records == 0));
      }
      for (Volume* each : volumes) {
        for (std::uint32_t i = 0; i < kIndexes; ++i) {
          const UnderWay& at = under_way[{each->number, i}];
          const bool allowed = !at.held && at.records == 0 && pool.state.alone(*each, i);
          BOOST_REQUIRE_MESSAGE(!writes_in_place(*each, i) || allowed, "round " << round << ", step " << step);
        }
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()
