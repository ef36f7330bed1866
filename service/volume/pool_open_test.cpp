// Opening a pool may take long: its device waits for the kernel (for a lease on its file here, for a path that failed on a
// host), or its owner has to be watched. Reactors serve others meanwhile, and pools wait together.

#include <fcntl.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <future>
#include <thread>

#include "base/clock.h"
#include "volume/test_support.h"
#include "volume/volume_service.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;

BOOST_AUTO_TEST_SUITE(pool_open)

BOOST_AUTO_TEST_CASE(a_device_that_takes_long_to_open_holds_no_reactor_up) {
  const auto reactors = start_reactors(1);
  VolumeService service(*reactors);
  const auto path = std::filesystem::temp_directory_path() / ("pollux-" + Uuid::random().to_string());
  const bdev::Spec file{.kind = bdev::Spec::Kind::kUring, .path = path.string(), .size_bytes = 64 * kMiB};
  must(reactor::call(reactors->main(), service.create_pool({.id = Uuid::random(), .name = "file", .bdev = file})));
  must(reactor::call(reactors->main(), service.export_pool("file")));

  // Who opens the file waits until the lease is given back; the kernel takes it after 45 s (fs.lease-break-time).
  std::signal(SIGIO, SIG_IGN);
  const int lease = open(path.c_str(), O_RDWR | O_CLOEXEC);
  BOOST_REQUIRE(lease >= 0);
  BOOST_REQUIRE_MESSAGE(fcntl(lease, F_SETLEASE, F_WRLCK) == 0, "no lease: " << std::strerror(errno));
  auto import = std::async(std::launch::async,
                           [&] { return reactor::call(reactors->main(), service.import_pool(file)).has_value(); });
  // The kernel asks for the lease as soon as somebody waits for it.
  while (fcntl(lease, F_GETLEASE) == F_WRLCK) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const auto pools = reactor::call(reactors->main(), service.list_pools(), /*deadline_ms=*/10'000);
  const bool waiting = import.wait_for(std::chrono::seconds(0)) == std::future_status::timeout;
  BOOST_REQUIRE(fcntl(lease, F_SETLEASE, F_UNLCK) == 0);
  close(lease);
  BOOST_TEST(pools.has_value(), "the reactor did not answer while a device was being opened");
  BOOST_TEST(waiting);
  BOOST_TEST(import.get());
  must(reactor::call(reactors->main(), service.close()));
  std::filesystem::remove(path);
}

// A pool in a file of its own, as its owner left it when it died: copied while that one had it open.
struct Orphan {
  explicit Orphan(reactor::ReactorGroup& reactors, blob::Owner::Identity owner) {
    VolumeService service(reactors, std::move(owner));
    const bdev::Spec file{.kind = bdev::Spec::Kind::kUring, .path = path() + ".first", .size_bytes = 64 * kMiB};
    must(reactor::call(reactors.main(), service.create_pool({.id = id, .name = id.to_string(), .bdev = file})));
    must(reactor::call(reactors.main(),
                       service.create_volume(id.to_string(), {.id = volume, .name = "v", .size_bytes = kMiB})));
    std::filesystem::copy_file(file.path, path());
    must(reactor::call(reactors.main(), service.close()));
    std::filesystem::remove(file.path);
  }
  ~Orphan() { std::filesystem::remove(path()); }
  std::string path() const {
    return (std::filesystem::temp_directory_path() / ("pollux-" + id.to_string())).string();
  }
  VolumeService::ToImport wanted() const {
    return {{.kind = bdev::Spec::Kind::kUring, .path = path(), .size_bytes = 0}, id};
  }

  const Uuid id = Uuid::random();
  const Uuid volume = Uuid::random();
};

constexpr std::uint32_t kBeatMs = 500;
constexpr std::uint32_t kSilentBeats = 4;

blob::Owner::Identity identity(const char* host) {
  return {.host = host, .service = Uuid::random(), .beat_ms = kBeatMs, .silent_beats = kSilentBeats};
}

BOOST_AUTO_TEST_CASE(pools_whose_owners_are_watched_are_watched_together) {
  const auto reactors = start_reactors(2);
  constexpr std::size_t kPools = 4;
  const auto dead = identity("dead");
  std::vector<std::unique_ptr<Orphan>> orphans;
  std::vector<VolumeService::ToImport> wanted;
  for (std::size_t i = 0; i < kPools; ++i) {
    orphans.push_back(std::make_unique<Orphan>(*reactors, dead));
    wanted.push_back(orphans.back()->wanted());
  }
  // One more that does not open, between them.
  wanted.insert(wanted.begin() + 1, {{.kind = bdev::Spec::Kind::kUring, .path = "/nonexistent", .size_bytes = 0}, {}});
  VolumeService service(*reactors, identity("new"));
  const std::uint64_t begin_ns = monotonic_ns();
  const auto answers = must(reactor::call(reactors->main(), service.import_pools(wanted)));
  const std::uint64_t took_ms = (monotonic_ns() - begin_ns) / 1'000'000;
  std::vector<bool> opened;
  for (const auto& answer : answers) opened.push_back(answer.has_value());
  BOOST_TEST((opened == std::vector<bool>{true, false, true, true, true}));
  // One takes so long at least, for all devices are read and written in no time.
  constexpr std::uint64_t kOneMs = std::uint64_t{kBeatMs} * kSilentBeats;
  BOOST_TEST(took_ms >= kOneMs);
  BOOST_TEST(took_ms < kPools * kOneMs);
  must(reactor::call(reactors->main(), service.close()));
}

BOOST_AUTO_TEST_CASE(of_pools_with_one_name_that_are_opened_together_one_is_opened) {
  const auto reactors = start_reactors(1);
  const Orphan orphan(*reactors, identity("dead"));
  const std::string copy = orphan.path() + ".copy";
  std::filesystem::copy_file(orphan.path(), copy);
  auto other = orphan.wanted();
  other.bdev.path = copy;
  VolumeService service(*reactors, identity("new"));
  const auto answers = must(reactor::call(reactors->main(), service.import_pools({orphan.wanted(), other})));
  BOOST_REQUIRE(answers.size() == 2u);
  BOOST_TEST(answers[0].has_value() != answers[1].has_value());
  const auto& refused = answers[0] ? answers[1] : answers[0];
  BOOST_TEST((refused.error().code == ErrorCode::kExists), refused.error().message);
  must(reactor::call(reactors->main(), service.close()));
  std::filesystem::remove(copy);
}

BOOST_AUTO_TEST_CASE(a_pool_that_another_service_has_used_is_not_opened_under_guests_who_knew_it_before) {
  const auto reactors = start_reactors(2);
  const auto first = identity("first");
  const Orphan orphan(*reactors, first);
  const auto import = [&](const blob::Owner::Identity& who, bool force, std::vector<Uuid> attached) {
    VolumeService service(*reactors, who);
    const auto opened = reactor::call(reactors->main(), service.import_pool(orphan.wanted().bdev, orphan.id, force,
                                                                            std::move(attached)));
    must(reactor::call(reactors->main(), service.close()));
    return opened ? std::string() : opened.error().message;
  };
  const std::vector<Uuid> attached = {Uuid::random(), orphan.volume};
  // Its own guests have it back, whether it was killed or stopped.
  BOOST_TEST(import(first, false, attached) == "");
  BOOST_TEST(import(first, false, attached) == "");
  // Another has it for a while, and closes it.
  BOOST_TEST(import(identity("second"), false, {}) == "");
  for (const bool force : {false, true, false}) {
    const std::string refused = import(first, force, attached);
    BOOST_TEST(refused.find("was used by another service") != std::string::npos, refused);
    BOOST_TEST(refused.find(orphan.volume.to_string()) != std::string::npos, refused);
  }
  // Guests who have nothing of it do not matter.
  BOOST_TEST(import(first, false, {Uuid::random()}) == "");
  BOOST_TEST(import(first, false, attached) == "");
}

BOOST_AUTO_TEST_SUITE_END()
