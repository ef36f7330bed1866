// virtio-blk on a device whose path is lost and comes back: the guest, whose protocol has no words for it, waits.

#include <boost/test/unit_test.hpp>
#include <memory>

#include "bdev/losing_path.h"
#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

struct Fixture : ServiceFixture {
  Fixture() {
    FrontEndOptions options;
    options.socket_path = blk("guest", device, 1);
    options.queues = 1;
    front_end = std::make_unique<FrontEnd>(options);
    front_end->start();
  }
  std::shared_ptr<bdev::test::LosingPath> device = std::make_shared<bdev::test::LosingPath>(ram());
  std::unique_ptr<FrontEnd> front_end;
};

}  // namespace

// Larger ones go to the device in steps, of which any may lose the path.
BOOST_FIXTURE_TEST_CASE(requests_of_any_size_wait_for_the_path, Fixture) {
  for (const std::uint32_t bytes : {4096U, 5U << 20}) {
    IoSlot slot(front_end->ram(), bytes);
    for (const Op op : {Op::kWrite, Op::kRead}) {
      device->answer = bdev::IoStatus::kPathLost;
      const unsigned before = device->lost;
      BOOST_REQUIRE(front_end->ring(0).add(BlkDisk().build(front_end->ram(), slot, op, 0, bytes, 0), 0));
      front_end->ring(0).show();
      front_end->kick(0);
      BOOST_REQUIRE(wait_until([&] { return device->lost >= before + 2; }));
      BOOST_TEST(!front_end->ring(0).take().has_value());
      device->answer = bdev::IoStatus::kOk;
      BOOST_REQUIRE(wait_until([&] { return front_end->ring(0).take().has_value(); }));
      BOOST_TEST(BlkDisk().verdict(slot) == "");
    }
  }
}

}  // namespace pollux::initiator
