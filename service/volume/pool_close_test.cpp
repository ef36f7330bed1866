// Pools that are closed and opened again while calls come in from other threads. Every call has a deadline: one that
// does not answer by then hangs for good, which ends the test, and the process with it.

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "volume/test_support.h"
#include "volume/volume_service.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;

namespace {

constexpr std::uint64_t kDeadlineMs = 60'000;

struct Fixture {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(2);
  std::unique_ptr<VolumeService> service = std::make_unique<VolumeService>(*reactors);
  const std::filesystem::path path = std::filesystem::temp_directory_path() / ("pollux-" + Uuid::random().to_string());
  const bdev::Spec file{.kind = bdev::Spec::Kind::kUring, .path = path.string(), .size_bytes = 64 * kMiB};
  const Uuid pool_id = Uuid::random();

  template <typename T>
  Result<T> run(reactor::Task<Result<T>> task) {
    auto result = reactor::call(reactors->main(), std::move(task), kDeadlineMs);
    if (!result && result.error().message.find("not finished within") != std::string::npos) {
      std::fprintf(stderr, "fatal error: a call hangs\n");
      std::_Exit(1);
    }
    return result;
  }
  ~Fixture() {
    BOOST_CHECK(run(service->close()).has_value());
    std::filesystem::remove(path);
  }
};

// What a call may answer while the pool comes and goes.
template <typename T>
bool expected(const Result<T>& result) {
  if (result) return true;
  switch (result.error().code) {
    case ErrorCode::kRetry:
    case ErrorCode::kNotFound:
    case ErrorCode::kBusy:
      return true;
    default:
      std::fprintf(stderr, "unexpected: %s\n", result.error().message.c_str());
      return false;
  }
}

}  // namespace

BOOST_FIXTURE_TEST_SUITE(pool_close, Fixture)

BOOST_AUTO_TEST_CASE(a_pool_closes_and_opens_while_volumes_are_made_and_deleted) {
  must(run(service->create_pool({.id = pool_id, .name = "file", .bdev = file})));
  std::atomic<bool> stop{false};
  std::atomic<unsigned> changes{0};
  std::atomic<unsigned> unexpected{0};
  const auto change = [&](unsigned number) {
    for (unsigned round = 0; !stop; ++round) {
      const std::string name = std::to_string(number) + "-" + std::to_string(round);
      const Uuid volume = Uuid::random(), snapshot = Uuid::random();
      VolumeSpec spec{.id = volume, .name = name, .size_bytes = 4 * kMiB};
      const auto made = run(service->create_volume("file", spec));
      unexpected += !expected(made);
      changes += made.has_value();
      unexpected += !expected(run(service->create_snapshot(volume, snapshot, name + "-snapshot")));
      unexpected += !expected(run(service->open(volume)));
      unexpected += !expected(run(service->flatten(volume, Uuid::random())));
      unexpected += !expected(run(service->set_qos(volume, {.read_iops = round + 1})));
      for (const Uuid& id : {snapshot, volume}) unexpected += !expected(run(service->delete_volume(id)));
      unexpected += !expected(run(service->list_jobs()));
      unexpected += !expected(run(service->stats(volume)));
    }
  };
  std::vector<std::thread> threads;
  for (unsigned number = 0; number < 3; ++number) threads.emplace_back(change, number);
  unsigned closed = 0;
  while (closed < 60) {
    const auto done = run(service->export_pool("file"));
    unexpected += !expected(done);
    closed += done.has_value();
    unexpected += !expected(run(service->import_pool(file, pool_id)));
    unexpected += !expected(run(service->list_pools()));
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  BOOST_TEST(unexpected == 0U);
  BOOST_TEST(changes > 10U);
  while (!run(service->export_pool("file"))) std::this_thread::yield();
  const auto checked = must(run(service->check_pool(file, pool_id, /*repair=*/false)));
  BOOST_TEST(checked.clean());
}

BOOST_AUTO_TEST_CASE(the_service_ends_while_calls_are_under_way) {
  for (int round = 0; round < 20; ++round) {
    auto own = std::make_unique<VolumeService>(*reactors);
    must(run(own->create_pool({.id = pool_id, .name = "file", .bdev = file})));
    // Started, and not waited for: they are under way when the service closes.
    std::atomic<unsigned> left{0}, unexpected{0}, answered{0};
    const auto start = [&](auto task) {
      ++left;
      auto owned = std::make_shared<decltype(task)>(std::move(task));
      reactors->main().post([owned, &left, &unexpected, &answered] {
        reactor::spawn(std::move(*owned), [&](auto result) {
          unexpected += !expected(result);
          answered += result.has_value();
          --left;
        });
      });
    };
    for (int i = 0; i < 30; ++i) {
      start(own->create_volume("file", {.id = Uuid::random(), .name = std::to_string(i), .size_bytes = kMiB}));
      if (i % 10 == 0) start(own->import_pool(file, pool_id));
    }
    start(own->export_pool("file"));
    start(own->import_pool(file, pool_id));
    BOOST_TEST(run(own->close()).has_value());
    // It has waited for all of them, and refuses what comes later.
    BOOST_TEST(left == 0U);
    BOOST_TEST(unexpected == 0U);
    BOOST_TEST(answered > 0U);
    const auto late = run(own->import_pool(file, pool_id));
    BOOST_REQUIRE(!late.has_value());
    BOOST_TEST((late.error().code == ErrorCode::kRetry));
    while (left != 0) std::this_thread::yield();
    BOOST_TEST(must(run(own->list_pools())).empty());
    own.reset();
    std::filesystem::remove(path);
  }
}

BOOST_AUTO_TEST_SUITE_END()
