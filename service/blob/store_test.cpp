// The store as a whole, on the simulated disk: the journal's ring, growth, background deletes, the checker. The pool's home
// is one of two reactors, and on the other one it is loaded and a guest makes its requests; the seed says in which order they
// have their turns.

#include "blob/store.h"

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <sstream>
#include <vector>

#include "base/log.h"
#include "blob/checker.h"
#include "blob/guest_load.h"
#include "blob/page_codec.h"
#include "blob/sim_bdev.h"
#include "blob/volume.h"
#include "reactor/stepper.h"
#include "reactor/test_seed.h"

using namespace pollux;
using namespace pollux::blob;

namespace {

template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

struct Fixture {
  const std::uint64_t seed = reactor::test_seed();
  reactor::Stepper reactors{2, seed};
  reactor::Reactor& home = reactors.main();
  reactor::Reactor& elsewhere = reactors.at(1);
  std::shared_ptr<SimDisk> disk;
  std::unique_ptr<Store> store;

  template <typename T>
  Result<T> call(reactor::Reactor& on, reactor::Task<Result<T>> task) {
    return reactors.call(on, std::move(task));
  }
  void format(std::uint64_t bytes, std::uint32_t cluster_bytes = 64 * kKiB) {
    disk = std::make_shared<SimDisk>(bytes);
    FormatOptions options{.id = Uuid::random(), .name = "sim", .cluster_bytes = cluster_bytes, .created_ms = 1};
    must(call(home, Store::format(make_sim_bdev(disk, 1), home, std::move(options))));
  }
  void open() { store = must(call(home, Store::open(make_sim_bdev(disk, 1), home, {.loads_on = &elsewhere}))); }
  void close() {
    must(call(home, store->close()));
    store.reset();
  }
  Uuid create(const std::string& name, std::uint64_t bytes) {
    CreateOptions options{.id = Uuid::random(), .name = name, .size_bytes = bytes};
    const Uuid id = options.id;
    must(call(home, store->create(std::move(options))));
    return id;
  }
  // A guest on the other reactor is at work on `id` until the end of this.
  template <typename Work>
  void beside_a_guest(const Uuid& id, Work work) {
    GuestLoad guest(*store, id, elsewhere, seed);
    must(call(home, guest.start()));
    work();
    must(call(home, guest.stop()));
    BOOST_TEST(guest.answered() > 0U);
    must(call(home, store->commit(Journal::Data::kFlush)));
    const auto different = must(call(home, guest.difference(*disk)));
    BOOST_TEST(!different.has_value(), different.value_or(""));
  }
  CheckReport check(Repair repair = Repair::kNo) {
    return must(call(home, check_pool(make_sim_bdev(disk, 1), home, repair)));
  }
  Superblock super() {
    const auto image = disk->image();
    Superblock best{};
    for (const std::uint64_t at : {std::uint64_t{0}, kSuperSlotStride}) {
      Superblock found;
      std::memcpy(&found, image.data() + at, sizeof(found));
      if (found.magic == kSuperMagic && found.checkpoint > best.checkpoint) best = found;
    }
    return best;
  }
  // Changes a metadata page of the last checkpoint, with a right checksum.
  template <typename Page, typename Change>
  void forge(PageType type, std::uint64_t number, Change change) {
    const Superblock at = super();
    auto image = disk->image();
    PageHeader* best = nullptr;
    for (std::size_t offset = 0; offset + kPageBytes <= image.size(); offset += kPageBytes) {
      auto* header = reinterpret_cast<PageHeader*>(image.data() + offset);
      if (!page_valid(image.data() + offset, type, number, at.checkpoint, checksum_seed(at.pool_id))) continue;
      if (best == nullptr || header->generation > best->generation) best = header;
    }
    BOOST_REQUIRE(best != nullptr);
    change(*reinterpret_cast<Page*>(best));
    seal_page(reinterpret_cast<std::byte*>(best), type, number, best->generation, checksum_seed(at.pool_id));
    disk = std::make_shared<SimDisk>(std::move(image));
  }
  ~Fixture() {
    if (store) must(call(home, store->close()));
  }
};

// Flushes as many guests send them in one moment; true when all were answered well.
reactor::Task<Result<bool>> flush_at_once(reactor::Reactor& home, Store& store, int count) {
  struct Flush : Journal::Waiter {
    int* left = nullptr;
    bool* all_ok = nullptr;
    reactor::Completion<bool>* over = nullptr;
  };
  co_await home.enter();
  int left = count;
  bool all_ok = true;
  reactor::Completion<bool> over;
  std::vector<Flush> flushes(static_cast<std::size_t>(count));
  for (Flush& flush : flushes) {
    flush.left = &left;
    flush.all_ok = &all_ok;
    flush.over = &over;
    flush.done = [](Journal::Waiter& waiter, bool ok) {
      auto& mine = static_cast<Flush&>(waiter);
      *mine.all_ok &= ok;
      if (--*mine.left == 0) mine.over->set(true);
    };
    store.journal().sync(flush);
  }
  co_await over;
  co_return all_ok;
}

reactor::Task<Status> idle(Store& store) {
  while (!store.idle()) co_await store.home().yield();
  co_return Status{};
}

// A device of any size whose requests all succeed and do nothing.
class VastBdev : public bdev::Bdev, public std::enable_shared_from_this<VastBdev> {
 public:
  explicit VastBdev(std::uint64_t size_bytes) : size_bytes_(size_bytes) {}
  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return size_bytes_; }
  std::uint32_t block_bytes() const override { return 512; }
  bdev::Opening open_channel(reactor::Reactor&) override {
    struct Nothing : bdev::Channel {
      explicit Nothing(std::uint64_t& requests) : requests_(requests) {}
      void submit(bdev::IoRequest& request) override {
        ++requests_;
        request.status = bdev::IoStatus::kOk;
        request.complete(request);
      }
      std::uint64_t& requests_;
    };
    co_return std::make_unique<Nothing>(requests);
  }
  std::uint64_t requests = 0;

 private:
  const std::string name_ = "vast";
  const std::uint64_t size_bytes_;
};

// A device that has come to say that it is larger than it is: what lies beyond it answers errors.
class GrownBdev : public bdev::Bdev {
 public:
  explicit GrownBdev(std::shared_ptr<SimDisk> disk) : below_(make_sim_bdev(std::move(disk), 1)) {}
  const std::string& name() const override { return below_->name(); }
  std::uint64_t size_bytes() const override { return grown_bytes != 0 ? grown_bytes.load() : below_->size_bytes(); }
  std::uint32_t block_bytes() const override { return below_->block_bytes(); }
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    return below_->open_channel(reactor);
  }
  std::atomic<std::uint64_t> grown_bytes{0};

 private:
  const std::shared_ptr<bdev::Bdev> below_;
};

// The log of its lifetime.
class LogText {
 public:
  LogText() : before_(spdlog::default_logger()) {
    spdlog::set_default_logger(
        std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text_)));
  }
  ~LogText() { spdlog::set_default_logger(before_); }
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  const std::shared_ptr<spdlog::logger> before_;
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(store, Fixture)

BOOST_AUTO_TEST_CASE(a_device_that_grows_beyond_what_a_pool_can_have_is_named_in_the_log) {
  format(32 * kMiB);
  auto device = std::make_shared<GrownBdev>(disk);
  auto pool = must(call(home, Store::open(device, home)));
  const auto grow_to = [&](std::uint64_t bytes) {
    const LogText log;
    device->grown_bytes = bytes;
    // The space beyond the device cannot be made ready, so that the pool stays as it is.
    BOOST_TEST(!call(home, pool->grow()).has_value());
    return log.text();
  };
  std::string said = grow_to(63 * kTiB);
  BOOST_TEST(said.find("does not grow with all of its device") == std::string::npos, said);
  said = grow_to(80 * kTiB);
  BOOST_TEST(said.find("pool 'sim' does not grow with all of its device") != std::string::npos, said);
  BOOST_TEST(said.find("the device has 81920 GiB") != std::string::npos, said);
  BOOST_TEST(said.find("clusters of 128 KiB can use all of it") != std::string::npos, said);
  device->grown_bytes = 0;
  must(call(home, pool->close()));
}

BOOST_AUTO_TEST_CASE(a_device_of_more_clusters_than_a_pool_can_have_is_refused_with_the_size_that_does) {
  const auto format_vast = [this](std::uint64_t bytes, std::uint32_t cluster_bytes, std::uint64_t& requests) {
    auto device = std::make_shared<VastBdev>(bytes);
    FormatOptions options{.id = Uuid::random(), .name = "vast", .cluster_bytes = cluster_bytes, .created_ms = 1};
    const auto done = call(home, Store::format(device, home, std::move(options)));
    requests = device->requests;
    return done ? std::string() : done.error().message;
  };
  std::uint64_t requests = 0;
  // 2^30 clusters: one more than there can be.
  std::string refused = format_vast(64 * kTiB, 64 * kKiB, requests);
  BOOST_TEST(refused.find("clusters of 128 KiB can use all of it") != std::string::npos, refused);
  BOOST_TEST(requests == 0U);
  refused = format_vast(3000 * kTiB, 0, requests);
  BOOST_TEST(refused.find("clusters of 4096 KiB can use all of it") != std::string::npos, refused);
  refused = format_vast(5000 * kTiB, 4 * kMiB, requests);
  BOOST_TEST(refused.find("no pool can use all of it") != std::string::npos, refused);
  BOOST_TEST(requests == 0U);
}

BOOST_AUTO_TEST_CASE(flushes_of_one_moment_share_the_devices_flushes) {
  format(32 * kMiB);
  open();
  create("one", kMiB);
  const auto cost = [&](int count) {
    const std::uint64_t before = disk->flushes();
    BOOST_TEST(must(call(home, flush_at_once(home, *store, count))));
    return disk->flushes() - before;
  };
  const std::uint64_t of_one = cost(1);
  BOOST_TEST(of_one >= 1U);
  // The first is under way alone when the others come; they make one group.
  BOOST_TEST(cost(200) <= 2 * of_one);
}

BOOST_AUTO_TEST_CASE(a_new_pool_is_empty_and_in_order) {
  format(32 * kMiB);
  const auto report = check();
  BOOST_TEST(report.clean());
  BOOST_TEST(report.volumes == 0U);
  open();
  BOOST_TEST(store->usage().allocated_bytes == 0U);
  BOOST_TEST(store->usage().free_bytes > 24 * kMiB);
}

BOOST_AUTO_TEST_CASE(what_holds_no_pool_is_told_from_what_holds_a_damaged_one) {
  disk = std::make_shared<SimDisk>(32 * kMiB);
  auto blank = call(home, Store::probe(make_sim_bdev(disk, 1), home));
  BOOST_REQUIRE(!blank.has_value());
  BOOST_TEST((blank.error().code == ErrorCode::kNotFound));
  format(32 * kMiB);
  disk->rot(2 * kSuperSlotStride - kSuperSlotStride + 100, 3);
  auto damaged = call(home, Store::probe(make_sim_bdev(disk, 1), home));
  BOOST_REQUIRE(!damaged.has_value());
  BOOST_TEST((damaged.error().code == ErrorCode::kCorrupt));
}

BOOST_AUTO_TEST_CASE(bursts_last_in_the_journal_and_in_pages_where_the_name_leaves_room) {
  format(24 * kMiB);
  open();
  const std::string longest(kMaxNameWithBurstsBytes, 'n');
  const std::string too_long(kMaxNameBytes, 'n');
  const Uuid with = create(longest, kMiB);
  const Uuid without = create(too_long, kMiB);
  const Qos qos{.limits = {1, 2, 3, 4, 5, 6}};
  const Bursts bursts{
      .limits = {10, 20, 30, 40, 50, UINT64_MAX}, .lengths_s = {1, 2, 3, 4, 5, 3600}, .reserved = {}};
  must(call(home, store->set_qos(with, qos, bursts)));
  must(call(home, store->set_qos(without, qos)));
  const auto refused = call(home, store->set_qos(without, qos, bursts));
  BOOST_REQUIRE(!refused.has_value());
  BOOST_TEST((refused.error().code == ErrorCode::kInvalid));
  // From the journal, and from the pages of a checkpoint.
  for (const bool clean : {false, true}) {
    if (clean) must(call(home, store->close()));
    auto copy = std::make_shared<SimDisk>(disk->image());
    auto again = must(call(home, Store::open(make_sim_bdev(copy, 1), home)));
    const Volume& found = *again->state().find(with);
    BOOST_TEST(found.name == longest);
    BOOST_TEST((std::memcmp(&found.bursts, &bursts, sizeof(bursts)) == 0));
    BOOST_TEST((std::memcmp(&found.qos, &qos, sizeof(qos)) == 0));
    BOOST_TEST(again->state().find(without)->name == too_long);
    BOOST_TEST(again->state().find(without)->bursts.limits[0] == 0U);
    must(call(home, again->close()));
  }
  store.reset();
}

BOOST_AUTO_TEST_CASE(the_journal_goes_round_its_ring_many_times) {
  format(24 * kMiB);
  open();
  const Uuid id = create("one", kMiB);
  const std::uint64_t checkpoints = store->super().checkpoint;
  // A commit takes a page of the ring of 256.
  beside_a_guest(create("guest's", kMiB), [&] {
    for (std::uint64_t i = 1; i <= 1500; ++i) {
      Qos qos{};
      qos.limits[0] = i;
      must(call(home, store->set_qos(id, qos)));
    }
  });
  BOOST_TEST(store->super().checkpoint >= checkpoints + 4);
  // As it lies there, with whatever is in the ring.
  disk = std::make_shared<SimDisk>(disk->image());
  BOOST_TEST(check().clean());
  auto second = must(call(home, Store::open(make_sim_bdev(disk, 1), home)));
  BOOST_TEST(second->state().find(id)->qos.limits[0] == 1500U);
  must(call(home, second->close()));
}

BOOST_AUTO_TEST_CASE(many_volumes_with_snapshots_come_and_go_without_a_trace) {
  format(64 * kMiB);
  open();
  const Usage before = store->usage();
  std::vector<Uuid> all;
  // The guest's own as well, under its requests.
  const Uuid used = create("guest's", kMiB);
  beside_a_guest(used, [&] {
    for (int i = 0; i < 150; ++i) {
      const Uuid source = i % 3 == 2 ? used : create("v" + std::to_string(i), (i % 3 == 0 ? 4 * kGiB : kMiB));
      if (source != used) all.push_back(source);
      CreateOptions options{.id = Uuid::random(), .name = "s" + std::to_string(i), .snapshot = true};
      all.push_back(options.id);
      must(call(home, store->fork(source, std::move(options))));
    }
  });
  close();
  BOOST_TEST(check().clean());
  open();
  BOOST_TEST(store->usage().volumes == 101U);
  BOOST_TEST(store->usage().snapshots == 150U);
  beside_a_guest(used, [&] {
    for (const Uuid& id : all) must(call(home, store->remove(id)));
  });
  must(call(home, store->remove(used)));
  close();
  open();
  must(call(home, idle(*store)));
  BOOST_TEST(store->usage().volumes + store->usage().snapshots == 0U);
  BOOST_TEST(store->usage().allocated_bytes == before.allocated_bytes);
  close();
  const auto report = check();
  BOOST_TEST(report.clean());
  BOOST_TEST(report.volumes == 0U);
  BOOST_TEST(report.metadata_pages == 0U);
}

BOOST_AUTO_TEST_CASE(a_pool_takes_over_the_growth_of_its_device) {
  format(24 * kMiB);
  auto image = disk->image();
  image.resize(40 * kMiB);
  disk = std::make_shared<SimDisk>(std::move(image));
  open();
  const Uuid used = create("guest's", kMiB);
  const Usage before = store->usage();
  beside_a_guest(used, [&] { must(call(home, store->grow())); });
  must(call(home, store->remove(used)));
  must(call(home, idle(*store)));
  BOOST_TEST(store->usage().capacity_bytes == before.capacity_bytes + 16 * kMiB);
  BOOST_TEST(store->usage().free_bytes == before.free_bytes + 16 * kMiB);
  close();
  BOOST_TEST(check().clean());
  open();
  BOOST_TEST(store->usage().capacity_bytes == before.capacity_bytes + 16 * kMiB);
}

BOOST_AUTO_TEST_CASE(wrong_counts_are_found_and_a_repair_puts_them_right) {
  format(24 * kMiB);
  open();
  const Uuid id = create("one", kMiB);
  close();
  const std::uint32_t clusters = super().cluster_count;
  const auto free_before = [&] {
    open();
    const std::uint64_t bytes = store->usage().free_bytes;
    close();
    return bytes;
  }();
  forge<RefcountPage>(PageType::kRefcounts, 0, [&](RefcountPage& page) { page.words[clusters - 1] = 3; });
  const auto report = check();
  BOOST_TEST(report.leaked == 1U);
  BOOST_TEST(report.lost == 0U);
  BOOST_TEST(report.repaired == 0U);
  BOOST_REQUIRE(report.findings.size() == 1U);
  BOOST_TEST(report.findings[0].find("cluster " + std::to_string(clusters - 1)) != std::string::npos);
  BOOST_TEST(check().leaked == 1U);  // looking changes nothing
  BOOST_TEST(check(Repair::kYes).repaired == 1U);
  BOOST_TEST(check().clean());
  open();
  BOOST_TEST(store->usage().free_bytes == free_before);
  BOOST_TEST(store->state().find(id) != nullptr);
}

BOOST_AUTO_TEST_CASE(a_cluster_counted_too_low_is_raised_before_it_can_be_given_away) {
  format(24 * kMiB);
  open();
  const Uuid id = create("one", kMiB);
  ClusterNo cluster = 0;
  const auto map_one = [&]() -> reactor::Task<Status> {
    co_await home.enter();
    cluster = *store->state().refcounts.allocate();
    auto record = make_record<MapSetRecord>(RecordType::kMapSet, store->state().find(id)->number);
    record.entry = {.own = cluster, .base = 0, .bits = kAllBits};
    POLLUX_CO_TRY(store->state().apply(record.header));
    store->journal().append(record.header);
    co_return co_await store->journal().commit();
  };
  must(call(home, map_one()));
  close();
  BOOST_TEST(check().clean());
  forge<RefcountPage>(PageType::kRefcounts, 0, [&](RefcountPage& page) { page.words[cluster] = 0; });
  BOOST_TEST(check().lost == 1U);
  const auto repaired = check(Repair::kYes);
  BOOST_TEST(repaired.lost == 1U);
  BOOST_TEST(repaired.repaired == 1U);
  BOOST_TEST(check().clean());
  open();
  const auto mapped = [&]() -> reactor::Task<Result<ClusterNo>> {
    co_await home.enter();
    POLLUX_CO_TRY(co_await store->view(id));
    Volume& volume = *store->state().find(id);
    store->unview(volume);
    co_return store->state().refcounts.word(cluster);
  };
  BOOST_TEST(must(call(home, mapped())) == 1U);
}

BOOST_AUTO_TEST_CASE(nothing_is_given_up_while_something_is_damaged) {
  format(24 * kMiB);
  open();
  const Uuid id = create("one", kMiB);
  const auto map_one = [&]() -> reactor::Task<Status> {
    co_await home.enter();
    auto record = make_record<MapSetRecord>(RecordType::kMapSet, store->state().find(id)->number);
    record.entry = {.own = *store->state().refcounts.allocate(), .base = 0, .bits = kAllBits};
    POLLUX_CO_TRY(store->state().apply(record.header));
    store->journal().append(record.header);
    co_return co_await store->journal().commit();
  };
  must(call(home, map_one()));
  const PageNo leaf = store->state().find(id)->leaves[0];
  close();
  forge<LeafPage>(PageType::kLeaf, leaf, [&](LeafPage& page) { page.entries[0].own = 1; });  // the journal's
  const auto report = check(Repair::kYes);
  BOOST_TEST(report.damaged == 1U);
  BOOST_TEST(report.leaked == 2U);  // the cluster, and the volume's own count
  BOOST_TEST(report.repaired == 0U);
  BOOST_TEST(check().leaked == 2U);
}

BOOST_AUTO_TEST_SUITE_END()
