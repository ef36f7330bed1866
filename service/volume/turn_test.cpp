// How long the reactor that serves guests is busy at a time while pools and volumes come, change and go: not in
// proportion to them.

#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <ctime>
#include <filesystem>
#include <thread>

#include "blob/parallel.h"
#include "volume/test_support.h"
#include "volume/volume_service.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;

namespace {

// Of processor time, which other work on the machine does not change.
#ifdef NDEBUG
constexpr std::uint64_t kBoundUs = 5'000;
#else
constexpr std::uint64_t kBoundUs = 100'000;
#endif

// As seen by one poller: from one of its calls to the next.
class TurnMeter : public reactor::Poller {
 public:
  explicit TurnMeter(reactor::Reactor& reactor) : reactor_(reactor) { must(reactor::call(reactor_, begin())); }
  ~TurnMeter() override { must(reactor::call(reactor_, end())); }

  unsigned poll() override {
    const std::uint64_t now_ns = used_ns();
    longest_ns_ = std::max(longest_ns_, now_ns - last_ns_);
    last_ns_ = now_ns;
    return 0;
  }

  // Of the turns since the last call, in microseconds.
  std::uint64_t longest_us() { return must(reactor::call(reactor_, take())) / 1000; }

 private:
  static std::uint64_t used_ns() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
  }
  reactor::Task<Status> begin() {
    co_await reactor_.enter();
    last_ns_ = used_ns();
    reactor_.add_poller(*this);
    co_return Status{};
  }
  reactor::Task<Status> end() {
    co_await reactor_.enter();
    reactor_.remove_poller(*this);
    co_return Status{};
  }
  reactor::Task<Result<std::uint64_t>> take() {
    co_await reactor_.yield();
    co_return std::exchange(longest_ns_, 0);
  }

  reactor::Reactor& reactor_;
  std::uint64_t last_ns_ = 0;
  std::uint64_t longest_ns_ = 0;
};

struct Bench {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(1);
  // What changes a map is answered at once, as in a service that has memory for it.
  std::unique_ptr<VolumeService> service =
      std::make_unique<VolumeService>(*reactors, blob::Owner::Identity{}, nullptr, blob::JournalQueue::in_process());
  // In memory: a file system that discards what it frees takes minutes to remove such a file.
  const std::string path = "/dev/shm/pollux-" + Uuid::random().to_string();
  TurnMeter meter{reactors->main()};

  ~Bench() {
    must(reactor::call(reactors->main(), service->close()));
    std::filesystem::remove(path);
  }

  template <typename T>
  auto run(const char* what, reactor::Task<T> task) {
    meter.longest_us();
    T result = reactor::call(reactors->main(), std::move(task));
    check_turns(what);
    return must(std::move(result));
  }
  // Those since the last look at the meter.
  void check_turns(const char* what) {
    const std::uint64_t longest_us = meter.longest_us();
    BOOST_TEST_MESSAGE(what << ": " << longest_us << " us");
    BOOST_TEST(longest_us < kBoundUs, what << ": a turn of " << longest_us << " us");
  }
};

reactor::Task<Status> write_block(bdev::Channel& channel, std::uint64_t offset, const std::vector<std::byte>& block) {
  co_return bdev::to_status(co_await bdev::write(channel, offset, block.data(), block.size()), "write");
}

}  // namespace

BOOST_AUTO_TEST_SUITE(turns)

// 16.8 million clusters: what goes through all of them takes 70 ms and more.
BOOST_FIXTURE_TEST_CASE(a_large_pool_comes_grows_is_checked_and_goes, Bench) {
  const bdev::Spec file{.kind = bdev::Spec::Kind::kUring, .path = path, .size_bytes = 2048 * kGiB};
  run("create", service->create_pool({.id = Uuid::random(), .name = "large", .bdev = file}));
  BOOST_REQUIRE(truncate(path.c_str(), 4096LL * static_cast<off_t>(kGiB)) == 0);
  meter.longest_us();
  while (must(reactor::call(reactors->main(), service->describe_pool("large"))).free_bytes < 4000 * kGiB) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  check_turns("grow");
  run("export", service->export_pool("large"));
  run("import", service->import_pool(file));
  run("export", service->export_pool("large"));
  const PoolCheck check = run("check", service->check_pool(file, Uuid{}, /*repair=*/false));
  BOOST_TEST(check.clean());
}

// 1 TiB with a block in each of its 16,513 leaves, and 10 TiB, the largest that there is.
BOOST_FIXTURE_TEST_CASE(large_volumes_come_change_and_go, Bench) {
  const bdev::Spec file{.kind = bdev::Spec::Kind::kUring, .path = path, .size_bytes = 2048 * kGiB};
  run("create pool", service->create_pool({.id = Uuid::random(), .name = "large", .bdev = file}));
  const Uuid written = Uuid::random();
  run("create", service->create_volume("large", {.id = written, .name = "written", .size_bytes = 1024 * kGiB}));
  {
    auto device = run("open", service->open(written));
    RemoteChannel channel(*device, reactors->main());
    const auto block = pattern(4096, 1);
    constexpr std::uint64_t kLeafBytes = 254 * 256 * kKiB;
    meter.longest_us();
    for (std::uint64_t at = 0; at < device->size_bytes(); at += kLeafBytes) {
      BOOST_REQUIRE(channel.write(at, block) == bdev::IoStatus::kOk);
    }
    check_turns("write");
  }
  const Uuid snapshot = Uuid::random();
  run("snapshot", service->create_snapshot(written, snapshot, "snapshot"));
  const Uuid clone = Uuid::random();
  run("clone", service->clone(snapshot, {.id = clone, .name = "clone", .size_bytes = 1024 * kGiB}));
  run("extend", service->extend_volume(clone, 2048 * kGiB));
  run("open", service->open(clone));
  run("revert", service->revert(written, snapshot));
  run("delete", service->delete_volume(clone));
  const Uuid largest = Uuid::random();
  run("create", service->create_volume("large", {.id = largest, .name = "largest", .size_bytes = 10000 * kGiB}));
  run("open", service->open(largest));
  run("extend", service->extend_volume(largest, 10050 * kGiB));
  run("delete", service->delete_volume(largest));
  meter.longest_us();
  while (!must(reactor::call(reactors->main(), service->list_jobs())).empty()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  check_turns("emptying");
  run("export", service->export_pool("large"));
  run("import", service->import_pool(file));
  run("open", service->open(written));
  run("export", service->export_pool("large"));
  const PoolCheck check = run("check", service->check_pool(file, Uuid{}, /*repair=*/false));
  BOOST_TEST(check.clean());
}

// 16 GiB with a block in each of its 65,536 clusters. What is given back is done at once, cluster by cluster.
BOOST_FIXTURE_TEST_CASE(a_request_that_gives_thousands_of_clusters_back_goes_in_steps, Bench) {
  const bdev::Spec file{.kind = bdev::Spec::Kind::kUring, .path = path, .size_bytes = 32 * kGiB};
  run("create pool", service->create_pool({.id = Uuid::random(), .name = "pool", .bdev = file, .discard = false}));
  const Uuid id = Uuid::random();
  constexpr std::uint64_t kBytes = 16 * kGiB;
  constexpr std::uint64_t kClusterBytes = 256 * kKiB;
  run("create", service->create_volume("pool", {.id = id, .name = "volume", .size_bytes = kBytes}));
  auto device = run("open", service->open(id));
  RemoteChannel channel(*device, reactors->main());
  const auto block = pattern(4096, 1);
  const auto in_each_cluster = [&]() -> reactor::Task<Status> {
    co_return co_await blob::parallel(reactors->main(), kBytes / kClusterBytes, 64, [&](std::size_t i) {
      return write_block(channel.channel(), i * kClusterBytes, block);
    });
  };
  for (int round = 0; round < 2; ++round) {
    must(reactor::call(reactors->main(), in_each_cluster()));
    meter.longest_us();
    BOOST_REQUIRE(channel.unmap(0, kBytes) == bdev::IoStatus::kOk);
    check_turns("give back");
    BOOST_TEST(must(reactor::call(reactors->main(), service->describe_volume(id))).mapped_bytes == 0u);
  }
}

BOOST_AUTO_TEST_SUITE_END()
