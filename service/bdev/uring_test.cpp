// What the kernel's devices ask for beyond the contract that bdev_test.cpp holds against every kind of device.

#include "bdev/uring.h"

#include <boost/test/unit_test.hpp>

#include <memory>
#include <vector>

#include "base/units.h"
#include "bdev/loop_device.h"
#include "reactor/reactor.h"

using namespace pollux;
using namespace pollux::bdev;
using pollux::bdev::test::LoopDevice;
using reactor::call;
using reactor::Reactor;
using reactor::ReactorGroup;
using reactor::Task;

namespace {

constexpr std::uint64_t kSize = 16 * kMiB;

struct Fixture {
  Fixture() {
    auto started = ReactorGroup::start({{.id = 0}});
    BOOST_REQUIRE(started.has_value());
    reactors = std::move(*started);
  }
  static std::shared_ptr<Bdev> open(const std::string& path) {
    auto bdev = make_uring_bdev(path, 0);
    BOOST_REQUIRE_MESSAGE(bdev.has_value(), (bdev ? "" : bdev.error().message));
    return std::move(*bdev);
  }
  Reactor& home() { return reactors->main(); }

  std::unique_ptr<ReactorGroup> reactors;
};

Task<Result<IoStatus>> change(Reactor& reactor, Bdev& bdev, IoOp op, std::uint8_t flags) {
  auto channel = bdev.open_channel(reactor);
  if (!channel) co_return fail(channel.error());
  const std::vector<std::byte> data(8192, std::byte{0x5a});
  switch (op) {
    case IoOp::kUnmap:
      co_return co_await unmap(**channel, 4096, data.size(), flags);
    case IoOp::kWriteZeroes:
      co_return co_await write_zeroes(**channel, 4096, data.size(), flags);
    default:
      co_return co_await write(**channel, 4096, data.data(), data.size(), flags);
  }
}

}  // namespace

BOOST_FIXTURE_TEST_CASE(a_change_with_fua_flushes_the_devices_cache_and_one_without_does_not, Fixture) {
  LoopDevice loop(kSize, 512);
  auto bdev = open(loop.path());
  for (const IoOp op : {IoOp::kWrite, IoOp::kUnmap, IoOp::kWriteZeroes}) {
    for (const bool fua : {false, true}) {
      BOOST_TEST_CONTEXT(to_string(op) << (fua ? " with FUA" : "")) {
        const std::uint64_t before = loop.flushes();
        const std::uint8_t flags = fua ? IoRequest::kFua : 0;
        const auto status = call(home(), change(home(), *bdev, op, flags));
        BOOST_REQUIRE_MESSAGE(status.has_value(), (status ? "" : status.error().message));
        BOOST_TEST((*status == IoStatus::kOk));
        BOOST_TEST((loop.flushes() > before) == fua);
      }
    }
  }
}
