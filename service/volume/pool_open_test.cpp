// Opening a device may wait for the kernel: for a lease on its file here, for a path that failed on a host. The reactor
// serves others meanwhile.

#include <fcntl.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <future>
#include <thread>

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

BOOST_AUTO_TEST_SUITE_END()
