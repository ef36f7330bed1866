// What a guest that changes the maps of its volume as fast as it can does to the others of its pool and reactor:
// nothing. They share the pool's home, its journal and its device.

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>

#include "base/units.h"
#include "initiator/neighbours.h"
#include "initiator/wait_until.h"
#include "volume/test_support.h"
#include "volume/volume_service.h"

namespace pollux::initiator {
namespace {

namespace data = boost::unit_test::data;
using volume::test::must;
using Request = GoodGuest::Request;

constexpr std::uint64_t kClusterBytes = 256 * kKiB;
constexpr std::uint32_t kSubBlockBytes = 4 * kKiB;

// A guest that keeps its rings full between begin() and end(), and leaves its data as they are.
class BadGuest {
 public:
  struct Habits {
    // The nth request of all its queues.
    std::function<Request(std::uint64_t n)> next;
    std::uint16_t queues = 1;
    std::uint16_t depth = 1024;
    // Its writes are answered when they are stable.
    bool write_through = false;
  };

  BadGuest(const std::string& socket, Habits habits)
      : habits_(std::move(habits)), front_end_(options(socket, habits_)) {
    front_end_.start();
    free_.resize(habits_.queues);
    for (std::uint16_t queue = 0; queue < habits_.queues; ++queue) {
      for (std::uint16_t i = 0; i < habits_.depth; ++i) {
        slots_.push_back(std::make_unique<IoSlot>(front_end_.ram(), kSubBlockBytes));
        free_[queue].push_back(slots_.back().get());
      }
    }
    thread_ = std::thread([this] { run(); });
  }
  ~BadGuest() {
    stop_ = true;
    thread_.join();
    BOOST_TEST(failed_ == 0u);
  }
  BadGuest(const BadGuest&) = delete;
  BadGuest& operator=(const BadGuest&) = delete;

  // As many requests as there may be; without a number until end().
  void begin(std::int64_t requests = INT64_MAX) { left_ = requests; }
  // Everything has been answered.
  void end() {
    left_ = 0;
    BOOST_TEST(wait_until([&] { return in_flight_ == 0; }, std::chrono::seconds(120)));
  }
  // So many answers so far.
  std::uint64_t answers() const { return answers_; }

 private:
  static FrontEndOptions options(const std::string& socket, const Habits& habits) {
    FrontEndOptions options;
    options.socket_path = socket;
    options.queues = habits.queues;
    options.ring = {.size = habits.depth, .indirect = true};
    options.ram_bytes = std::uint64_t{habits.queues} * habits.depth * 16 * kKiB + 16 * kMiB;
    options.features = bit(kBlkFeatureDiscard) | bit(kBlkFeatureWriteZeroes);
    if (!habits.write_through) options.features |= bit(kBlkFeatureFlush);
    return options;
  }

  void run() {
    while (!stop_) {
      unsigned done = 0;
      for (std::uint16_t queue = 0; queue < habits_.queues; ++queue) done += collect(queue) + fill(queue);
      // It has a processor to itself as little as the others.
      if (done == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  unsigned fill(std::uint16_t queue) {
    unsigned sent = 0;
    while (left_ > 0 && !free_[queue].empty()) {
      IoSlot& slot = *free_[queue].back();
      const Request request = habits_.next(n_++);
      const auto segments = BlkDisk().build(front_end_.ram(), slot, request.op, request.offset_bytes, request.bytes, 0);
      if (!front_end_.ring(queue).add(segments, reinterpret_cast<std::uint64_t>(&slot))) break;
      free_[queue].pop_back();
      ++in_flight_;
      --left_;
      ++sent;
    }
    if (sent != 0 && front_end_.ring(queue).show()) front_end_.kick(queue);
    return sent;
  }

  unsigned collect(std::uint16_t queue) {
    unsigned taken = 0;
    while (const auto done = front_end_.ring(queue).take()) {
      IoSlot& slot = *reinterpret_cast<IoSlot*>(done->cookie);
      if (!BlkDisk().verdict(slot).empty()) ++failed_;
      free_[queue].push_back(&slot);
      ++answers_;
      --in_flight_;
      ++taken;
    }
    return taken;
  }

  const Habits habits_;
  FrontEnd front_end_;
  std::vector<std::unique_ptr<IoSlot>> slots_;
  std::vector<std::vector<IoSlot*>> free_;
  std::uint64_t n_ = 0;
  std::atomic<std::int64_t> left_{0};
  std::atomic<std::uint64_t> in_flight_{0};
  std::atomic<std::uint64_t> answers_{0};
  std::atomic<std::uint64_t> failed_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

enum class Device { kRam, kFile };
std::ostream& operator<<(std::ostream& out, Device device) {
  return out << (device == Device::kRam ? "RAM" : "a file");
}
const auto kDevices = data::make({Device::kRam, Device::kFile});

// A pool, and guests that use volumes which were written before, or write them for the first time.
class PoolNeighbours : public ServiceFixture {
 public:
  PoolNeighbours() : ServiceFixture(/*reactors=*/1) {}
  ~PoolNeighbours() {
    guests_.clear();
    end_service();
    must(run(pools_.close()));
    if (!file_.empty()) std::filesystem::remove(file_);
  }

  void make_pool(Device device) {
    bdev::Spec spec{.kind = bdev::Spec::Kind::kRam, .path = "", .size_bytes = kPoolBytes};
    if (device == Device::kFile) {
      file_ = "/var/tmp/pollux-neighbours-" + std::to_string(::getpid());
      std::filesystem::remove(file_);
      spec = {.kind = bdev::Spec::Kind::kUring, .path = file_, .size_bytes = kPoolBytes};
    }
    must(run(pools_.create_pool(
        {.id = Uuid::random(), .name = "pool", .bdev = spec, .cluster_bytes = kClusterBytes, .discard = false})));
    fill_once();
    // A device that is kept busy takes longer for each request. A guest that makes one at a time and has to wait longer
    // than this falls behind.
    const std::chrono::milliseconds wait(device == Device::kRam ? 4 : 16);
    add_good({.name = "overwrites and reads", .next = in_place, .requests_per_tick = 4, .depth = 32, .tick = wait / 4});
    add_good({.name = "first writes, one at a time", .next = first_write, .tick = wait});
    add_good({.name = "first writes, four at a time",
              .next = first_write,
              .requests_per_tick = 4,
              .depth = 4,
              .tick = wait});
    add_good({.name = "first writes of 512 bytes, one at a time", .next = small_first_write, .tick = wait});
  }

  // A volume of the bad guest's own, which ends with it.
  struct Bad {
    Uuid volume;
    std::string name;
    std::unique_ptr<BadGuest> guest;
  };
  Bad add_bad(BadGuest::Habits habits, std::optional<Uuid> source = std::nullopt) {
    Bad bad{.volume = Uuid::random(), .name = "bad" + std::to_string(++bads_), .guest = nullptr};
    volume::VolumeSpec spec{.id = bad.volume, .name = bad.name, .size_bytes = kBadBytes};
    must(source ? run(pools_.clone(*source, spec)) : run(pools_.create_volume("pool", spec)));
    const std::string socket = blk(bad.name, must(run(pools_.open(bad.volume))), habits.queues);
    bad.guest = std::make_unique<BadGuest>(socket, std::move(habits));
    return bad;
  }
  void remove_bad(Bad& bad) {
    bad.guest.reset();
    must(service().remove_blk(bad.name));
    must(run(pools_.delete_volume(bad.volume)));
    BOOST_TEST(wait_until([&] { return must(run(pools_.list_jobs())).empty(); }, std::chrono::seconds(60)));
  }
  // A snapshot of a volume that was written everywhere.
  Uuid full_snapshot() {
    constexpr std::uint64_t kWrites = kBadBytes / kSubBlockBytes;
    Bad source = add_bad({.next = first_write});
    source.guest->begin(kWrites);
    BOOST_TEST(wait_until([&] { return source.guest->answers() == kWrites; }, std::chrono::seconds(120)));
    const Uuid snapshot = Uuid::random();
    must(run(pools_.create_snapshot(source.volume, snapshot, "full")));
    source.guest.reset();
    return snapshot;
  }

  void check(const BadGuest::Habits& habits, std::optional<Uuid> source = std::nullopt,
             const std::function<void(BadGuest&)>& prepare = nullptr) {
    std::optional<Bad> bad;
    std::uint64_t before = 0;
    const auto begin = [&] {
      bad = add_bad(habits, source);
      if (prepare) prepare(*bad->guest);
      before = bad->guest->answers();
      bad->guest->begin();
    };
    const auto end = [&] {
      BOOST_TEST_MESSAGE("the bad guest had " << bad->guest->answers() - before << " requests answered");
      bad->guest->end();
      remove_bad(*bad);
      bad.reset();
    };
    const std::vector<double> parts = parts_kept(guests_, begin, end);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      BOOST_TEST(parts[i] >= kEnough, guests_[i]->name() << " keep " << parts[i]);
    }
  }

  static constexpr std::uint64_t kBadBytes = 256 * kMiB;

 private:
  static constexpr std::uint64_t kPoolBytes = 1 * kGiB;
  static constexpr std::uint64_t kInPlaceBytes = 16 * kMiB;

  template <typename T>
  T run(reactor::Task<T> task) {
    return reactor::call(reactors().main(), std::move(task));
  }

  static Request in_place(std::uint64_t n) {
    return {.op = n % 2 == 0 ? Op::kRead : Op::kWrite,
            .offset_bytes = n * 7 % (kInPlaceBytes / kSubBlockBytes) * kSubBlockBytes,
            .bytes = kSubBlockBytes};
  }
  static Request first_write(std::uint64_t n) { return {Op::kWrite, n * kSubBlockBytes, kSubBlockBytes}; }
  static Request small_first_write(std::uint64_t n) { return {Op::kWrite, n * kSubBlockBytes, 512}; }

  void add_good(GoodGuest::Habits habits) {
    const Uuid id = Uuid::random();
    const std::string name = "good" + std::to_string(guests_.size());
    must(run(pools_.create_volume("pool", {.id = id, .name = name, .size_bytes = 1 * kGiB})));
    const std::string socket = blk(name, must(run(pools_.open(id))), 1);
    if (guests_.empty()) write_all(socket, kInPlaceBytes);
    guests_.push_back(std::make_unique<GoodGuest>(socket, std::move(habits)));
  }

  // The kernel gives memory and blocks of a file to what is written for the first time, which takes it longer than all
  // that is asked about here.
  void fill_once() {
    constexpr std::uint64_t kFillBytes = kPoolBytes / 8 * 7;
    const Uuid id = Uuid::random();
    must(run(pools_.create_volume("pool", {.id = id, .name = "fill", .size_bytes = kFillBytes})));
    write_all(blk("fill", must(run(pools_.open(id))), 1), kFillBytes);
    must(service().remove_blk("fill"));
    must(run(pools_.delete_volume(id)));
    BOOST_TEST(wait_until([&] { return must(run(pools_.list_jobs())).empty(); }, std::chrono::seconds(60)));
  }

  static void write_all(const std::string& socket, std::uint64_t bytes) {
    FrontEndOptions options;
    options.socket_path = socket;
    options.queues = 1;
    options.features = bit(kBlkFeatureFlush);
    FrontEnd writer(options);
    writer.start();
    IoSlot slot(writer.ram(), 1 * kMiB);
    for (std::uint64_t at = 0; at < bytes; at += kMiB) {
      BOOST_REQUIRE(run_io(writer, 0, BlkDisk(), slot, Op::kWrite, at, kMiB, 64 * kKiB) == "");
    }
    writer.stop();
  }

  volume::VolumeService pools_{reactors(), {}, nullptr, blob::JournalQueue::in_folder("/dev/shm")};
  std::string file_;
  unsigned bads_ = 0;
  GoodGuests guests_;
};

// Every request into another cluster than the one before it.
Request spread(Op op, std::uint64_t n, std::uint32_t bytes) {
  constexpr std::uint64_t kClusters = PoolNeighbours::kBadBytes / kClusterBytes;
  constexpr std::uint64_t kSubBlocks = kClusterBytes / kSubBlockBytes;
  return {op, n % kClusters * kClusterBytes + n / kClusters % kSubBlocks * kSubBlockBytes, bytes};
}

BOOST_FIXTURE_TEST_SUITE(pool_neighbours, PoolNeighbours)

BOOST_DATA_TEST_CASE(first_writes_of_a_thin_volume, kDevices, device) {
  make_pool(device);
  check({.next = [](std::uint64_t n) { return spread(Op::kWrite, n, kSubBlockBytes); }});
}

BOOST_DATA_TEST_CASE(first_writes_of_a_clone, kDevices, device) {
  make_pool(device);
  check({.next = [](std::uint64_t n) { return spread(Op::kWrite, n, kSubBlockBytes); }}, full_snapshot());
}

BOOST_DATA_TEST_CASE(first_writes_by_many_queues, kDevices, device) {
  make_pool(device);
  check({.next = [](std::uint64_t n) { return spread(Op::kWrite, n, kSubBlockBytes); }, .queues = 64, .depth = 64});
}

BOOST_DATA_TEST_CASE(first_writes_of_less_than_is_mapped, kDevices, device) {
  make_pool(device);
  check({.next = [](std::uint64_t n) { return spread(Op::kWrite, n, 512); }}, full_snapshot());
}

BOOST_DATA_TEST_CASE(first_writes_that_are_stable, kDevices, device) {
  make_pool(device);
  check({.next = [](std::uint64_t n) { return spread(Op::kWrite, n, kSubBlockBytes); }, .write_through = true});
}

// Written, and given back at once.
BOOST_DATA_TEST_CASE(writes_and_discards_in_turns, kDevices, device) {
  make_pool(device);
  check({.next = [](std::uint64_t n) {
    constexpr std::uint64_t kClusters = kBadBytes / kClusterBytes;
    const bool writes = n / kClusters % 2 == 0;
    return Request{writes ? Op::kWrite : Op::kDiscard, n % kClusters * kClusterBytes,
                   writes ? kSubBlockBytes : static_cast<std::uint32_t>(kClusterBytes)};
  }});
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
