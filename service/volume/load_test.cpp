// How long a pool takes to open, and how much memory it takes, on a device with 100 us for every request: 1 TiB with
// ten volumes that use all of it, and 5,000 volumes with a snapshot each; after a clean stop and after a kill with a
// long journal. The pool's home is one of two reactors, and guests' queues are on the other: it is open when the first
// request for each of the full volumes was answered there. Device time is counted, not waited for, and added to the
// processor time that opening took: what else the machine has to do changes neither.

#include <malloc.h>

#include <boost/test/unit_test.hpp>
#include <ctime>
#include <deque>

#include "bdev/ram.h"
#include "blob/store.h"
#include "blob/volume.h"
#include "volume/test_support.h"

using namespace pollux;
using namespace pollux::volume::test;
using reactor::call;

namespace {

constexpr std::uint64_t kLatencyNs = 100'000;
constexpr int kTries = 3;
#ifdef NDEBUG
constexpr double kSlack = 1;
#else
// Without optimisation the processor takes that much longer.
constexpr double kSlack = 3;
#endif

// Memory that would answer each request 100 us after it was submitted, any number at a time, and says how late it is.
class SlowChannel : public bdev::Channel, public reactor::Poller {
 public:
  SlowChannel(std::unique_ptr<bdev::Channel> memory, reactor::Reactor& reactor, std::uint64_t& now_ns)
      : memory_(std::move(memory)), reactor_(reactor), now_ns_(now_ns) {
    reactor_.add_poller(*this);
  }
  ~SlowChannel() override { reactor_.remove_poller(*this); }
  void submit(bdev::IoRequest& request) override { waiting_.push_back({now_ns_ + kLatencyNs, &request}); }
  unsigned poll() override {
    if (waiting_.empty()) return 0;
    now_ns_ = std::max(now_ns_, waiting_.front().due_ns);
    unsigned done = 0;
    while (!waiting_.empty() && waiting_.front().due_ns <= now_ns_) {
      bdev::IoRequest& request = *waiting_.front().request;
      waiting_.pop_front();
      ++done;
      memory_->submit(request);
    }
    return done;
  }
  bool arm() override { return waiting_.empty(); }

 private:
  struct Waiting {
    std::uint64_t due_ns;
    bdev::IoRequest* request;
  };
  std::unique_ptr<bdev::Channel> memory_;
  reactor::Reactor& reactor_;
  std::uint64_t& now_ns_;
  std::deque<Waiting> waiting_;
};

class SlowBdev : public bdev::Bdev {
 public:
  explicit SlowBdev(std::shared_ptr<bdev::Bdev> memory) : memory_(std::move(memory)) {}
  const std::string& name() const override { return memory_->name(); }
  std::uint64_t size_bytes() const override { return memory_->size_bytes(); }
  std::uint32_t block_bytes() const override { return memory_->block_bytes(); }
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    auto channel = co_await memory_->open_channel(reactor);
    if (!channel) co_return fail(std::move(channel.error()));
    co_return std::make_unique<SlowChannel>(std::move(*channel), reactor, now_ns_);
  }
  // The device's own clock. Between uses.
  std::uint64_t now_ns() const { return now_ns_; }

 private:
  std::shared_ptr<bdev::Bdev> memory_;
  std::uint64_t now_ns_ = 0;
};

double cpu_seconds() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
}

// Brings a leaf into memory, as a guest's first request there would.
struct LoadLeaf : blob::HomeIo {
  reactor::Completion<bdev::IoStatus> loaded;
  blob::Store& store;
  reactor::Reactor& from;

  // It begins on `reactor`, and is answered there.
  LoadLeaf(blob::Store& of_store, blob::Volume& of, std::size_t slot, reactor::Reactor& reactor)
      : store(of_store), from(reactor) {
    volume = &of;
    op = Op::kLoad;
    index = static_cast<std::uint32_t>(slot * blob::kLeafEntries);
    run = [](reactor::Message& message) {
      auto& self = static_cast<LoadLeaf&>(message);
      self.store.writer().start(self);
    };
    done = [](blob::HomeIo& io) {
      auto& self = static_cast<LoadLeaf&>(io);
      self.run = [](reactor::Message& message) {
        auto& mine = static_cast<LoadLeaf&>(message);
        mine.loaded.set(mine.status);
      };
      self.from.post(self);
    };
    store.home().post(*this);
  }
};

struct Fixture {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(2);
  reactor::Reactor& home = reactors->main();
  reactor::Reactor& elsewhere = reactors->at(1);
  std::shared_ptr<bdev::Bdev> memory;
  std::shared_ptr<SlowBdev> slow;
  // Stores that were left as a kill leaves them: closed at the end, over a device nobody looks at any more.
  std::vector<std::unique_ptr<blob::Store>> killed;

  void format(std::uint64_t bytes) {
    memory = must(bdev::make_ram_bdev("ram", bytes));
    slow = std::make_shared<SlowBdev>(memory);
    blob::FormatOptions options{.id = Uuid::random(), .name = "pool", .cluster_bytes = 0, .created_ms = 1};
    must(call(home, blob::Store::format(memory, home, std::move(options))));
  }
  std::unique_ptr<blob::Store> open(std::shared_ptr<bdev::Bdev> device) {
    // As the service does.
    const blob::OpenOptions options{.discard_pace = {}, .loads_on = &reactors->background()};
    return must(call(home, blob::Store::open(std::move(device), home, options)));
  }
  void close(std::unique_ptr<blob::Store>& store) {
    must(call(home, store->close()));
    store.reset();
  }
  ~Fixture() {
    for (auto& store : killed) must(call(home, store->close()));
  }

  // Maps one cluster of each leaf; with `journal` as records that the next start has to replay.
  reactor::Task<Status> map(blob::Store& store, Uuid id, bool journal) {
    co_await home.enter();
    auto volume = co_await store.view(id);
    if (!volume) co_return fail(std::move(volume.error()));
    blob::State& state = store.state();
    auto record = blob::make_record<blob::MapSetRecord>(blob::RecordType::kMapSet, (*volume)->number);
    for (std::size_t slot = 0; slot < (*volume)->leaves.size(); ++slot) {
      while (state.pages.free_pages() < 2) {
        auto grow = blob::make_record<blob::MetadataGrowRecord>(blob::RecordType::kMetadataGrow, 0);
        grow.number = state.pages.cluster_count();
        grow.cluster = *state.refcounts.allocate();
        POLLUX_CO_TRY(state.apply(grow.header));
        if (journal) store.journal().append(grow.header);
      }
      LoadLeaf load(store, **volume, slot, home);
      POLLUX_CO_TRY(bdev::to_status(co_await load.loaded, "load of a leaf"));
      record.index = static_cast<std::uint32_t>(slot * blob::kLeafEntries + (journal ? 1 : 0));
      record.entry = {.own = *state.refcounts.allocate(), .base = 0, .bits = blob::kAllBits};
      POLLUX_CO_TRY(state.apply(record.header));
      if (journal) store.journal().append(record.header);
      if (slot % 256 == 0) {
        if (journal && store.journal().congested()) POLLUX_CO_TRY(co_await store.journal().commit());
        co_await home.yield();
      }
    }
    store.unview(**volume);
    co_return journal ? co_await store.journal().commit() : Status{};
  }

  // Of a guest of each volume, on the other reactor.
  reactor::Task<Status> first_requests(blob::Store& store, const std::vector<Uuid>& ids) {
    for (const Uuid& id : ids) {
      co_await home.enter();
      auto volume = co_await store.view(id);
      if (!volume) co_return fail(std::move(volume.error()));
      co_await elsewhere.enter();
      LoadLeaf load(store, **volume, 0, elsewhere);
      POLLUX_CO_TRY(bdev::to_status(co_await load.loaded, "load of a leaf"));
      co_await home.enter();
      store.unview(**volume);
    }
    co_return Status{};
  }

  struct Opened {
    double seconds = 1e9;
    std::uint64_t replayed = 0;
    std::uint64_t bytes = 0;
  };
  // Opens on the slow device. What that store writes must not reach the pool: it is killed as soon as it is open.
  Opened time_open(const std::vector<Uuid>& used = {}) {
    Opened best;
    for (int i = 0; i < kTries; ++i) {
      const std::uint64_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
      const std::uint64_t device_ns = slow->now_ns();
      const double cpu = cpu_seconds();
      auto store = open(slow);
      must(call(home, first_requests(*store, used)));
      const double took = cpu_seconds() - cpu + static_cast<double>(slow->now_ns() - device_ns) / 1e9;
      best.bytes = mallinfo2().uordblks + mallinfo2().hblkhd - before;
      best.seconds = std::min(best.seconds, took);
      best.replayed = store->replayed_records();
      killed.push_back(std::move(store));
    }
    return best;
  }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(load, Fixture)

BOOST_AUTO_TEST_CASE(a_pool_of_a_tebibyte_with_ten_full_volumes_opens_in_half_a_second) {
  format(kTiB);
  auto store = open(memory);
  std::vector<Uuid> ids;
  for (int i = 0; i < 10; ++i) {
    ids.push_back(Uuid::random());
    blob::CreateOptions options{.id = ids.back(), .name = std::to_string(i), .size_bytes = 100 * kGiB};
    must(call(home, store->create(std::move(options))));
    must(call(home, map(*store, ids.back(), /*journal=*/false)));
  }
  close(store);
  const Opened clean = time_open(ids);
  BOOST_TEST_MESSAGE("clean: " << clean.seconds << " s, " << clean.bytes / 1024 << " KiB of memory");
  BOOST_TEST(clean.seconds <= 0.5 * kSlack);
  BOOST_TEST(clean.replayed == 0U);
  // Reference counts and directories, and the map of free clusters: 4 bytes and a bit a cluster.
  BOOST_TEST(clean.bytes <= 24 * kMiB);

  // A record for every leaf of the pool: the replay has to read them all.
  store = open(memory);
  for (const Uuid& id : ids) must(call(home, map(*store, id, /*journal=*/true)));
  killed.push_back(std::move(store));
  const Opened crashed = time_open(ids);
  BOOST_TEST_MESSAGE("killed: " << crashed.seconds << " s, " << crashed.replayed << " records, " << crashed.bytes / 1024
                                << " KiB of memory with all leaves");
  BOOST_TEST(crashed.seconds <= 0.5 * kSlack);
  BOOST_TEST(crashed.replayed > 16'000U);
  BOOST_TEST(crashed.bytes <= 100 * kMiB);
}

BOOST_AUTO_TEST_CASE(a_pool_with_ten_thousand_volumes_and_snapshots_opens_in_two_seconds) {
  constexpr int kVolumes = 5'000;
  format(64 * kGiB);
  auto store = open(memory);
  const auto make = [&](int first, int last) -> reactor::Task<Status> {
    co_await home.enter();
    for (int i = first; i < last; ++i) {
      const Uuid id = Uuid::random();
      blob::CreateOptions volume{.id = id, .name = std::to_string(i), .size_bytes = 10 * kGiB};
      POLLUX_CO_TRY(co_await store->create(std::move(volume)));
      blob::CreateOptions snapshot{.id = Uuid::random(), .name = "snapshot-" + std::to_string(i), .snapshot = true};
      POLLUX_CO_TRY(co_await store->fork(id, std::move(snapshot)));
      // Memory answers at once: without a turn of the loop each step would stand on the one before.
      co_await home.yield();
    }
    co_return Status{};
  };
  must(call(home, make(0, kVolumes)));
  close(store);
  const Opened clean = time_open();
  BOOST_TEST_MESSAGE("clean: " << clean.seconds << " s, " << clean.bytes / (2 * kVolumes) << " bytes a volume");
  BOOST_TEST(clean.seconds <= 2.0 * kSlack);
  BOOST_TEST(clean.bytes / (2 * kVolumes) <= 4'096U);

  store = open(memory);
  must(call(home, make(kVolumes, kVolumes + 500)));
  killed.push_back(std::move(store));
  const Opened crashed = time_open();
  BOOST_TEST_MESSAGE("killed: " << crashed.seconds << " s, " << crashed.replayed << " records");
  BOOST_TEST(crashed.seconds <= 2.0 * kSlack);
  BOOST_TEST(crashed.replayed >= 1'000U);
}

BOOST_AUTO_TEST_SUITE_END()
