// A front end that loses its back end, or drops it, and comes back while requests are in flight: each of them is done
// once and answered once. As QEMU does it: GET_VRING_BASE cannot be asked any more, so the rings go on from where they
// were when the front end found its connection gone.

#include <sys/mman.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <thread>

#include "initiator/hanging_disk.h"
#include "initiator/one_queue_guest.h"
#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"
#include "virtio/inflight.h"

namespace pollux::initiator {
namespace {

constexpr std::size_t kRequests = 4;
// Long enough for what must not happen to happen.
constexpr std::chrono::milliseconds kWatched{300};

struct Reconnect : ServiceFixture {
  void submit(OneQueueGuest& guest, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) BOOST_REQUIRE(guest.add_read(512 * i));
    guest.show();
  }
  std::shared_ptr<HangingDisk> disk = std::make_shared<HangingDisk>();
};

BOOST_FIXTURE_TEST_SUITE(reconnect, Reconnect)

BOOST_DATA_TEST_CASE(a_service_that_ends_disconnects_nobody_before_his_rings_have_stopped,
                     boost::unit_test::data::make(kRingVariants), variant) {
  OneQueueGuest guest(*this, variant, disk, variant.ring);
  submit(guest, kRequests);
  BOOST_REQUIRE(wait_until([&] { return disk->kept() == kRequests; }));
  std::thread ending([&] { end_service(); });
  BOOST_TEST(!guest.front_end->wait_lost(kWatched.count()));
  disk->answer();
  BOOST_TEST(guest.front_end->wait_lost(30000));
  BOOST_TEST(guest.take_all() == kRequests);
  ending.join();
}

BOOST_DATA_TEST_CASE(a_blk_disk_that_is_removed_disconnects_nobody_before_his_rings_have_stopped,
                     boost::unit_test::data::make({false, true}), packed) {
  OneQueueGuest guest(*this, {"blk", false, {.packed = packed}}, disk, {.packed = packed});
  submit(guest, kRequests);
  BOOST_REQUIRE(wait_until([&] { return disk->kept() == kRequests; }));
  // The requests outlast what a removal waits for them.
  BOOST_TEST(!service().remove_blk("g").has_value());
  BOOST_TEST(!guest.front_end->wait_lost(0));
  disk->answer();
  BOOST_TEST(guest.front_end->wait_lost(30000));
  BOOST_TEST(guest.take_all() == kRequests);
  // Attached again at once.
  BOOST_TEST(service().remove_blk("g").has_value());
  blk("g", disk, 1);
  guest.front_end->reconnect();
  submit(guest, 1);
  BOOST_TEST(wait_until([&] { return guest.take_all() == 1; }));
  BOOST_TEST(disk->requests() == kRequests + 1);
  guest.front_end->stop();
}

BOOST_DATA_TEST_CASE(a_front_end_that_comes_back_waits_for_what_it_had_in_flight,
                     boost::unit_test::data::make(kRingVariants), variant) {
  OneQueueGuest guest(*this, variant, disk, variant.ring);
  submit(guest, kRequests);
  BOOST_REQUIRE(wait_until([&] { return disk->kept() == kRequests; }));
  std::thread coming_back([&] { guest.front_end->reconnect(); });
  // The in-flight region names the requests: they would be done a second time.
  BOOST_TEST(!wait_until([&] { return disk->requests() != kRequests; }, kWatched));
  disk->answer();
  coming_back.join();
  std::size_t done = 0;
  BOOST_TEST(wait_until([&] { return (done += guest.take_all()) == kRequests; }));
  submit(guest, 1);
  BOOST_TEST(wait_until([&] { return guest.take_all() == 1; }));
  BOOST_TEST(disk->requests() == kRequests + 1);
  guest.front_end->stop();
}

BOOST_DATA_TEST_CASE(what_was_answered_after_the_front_end_lost_sight_of_its_ring_is_not_done_again,
                     boost::unit_test::data::make(kRingVariants), variant) {
  OneQueueGuest guest(*this, variant, disk, variant.ring);
  guest.front_end->note_positions();
  disk->answer();
  submit(guest, kRequests);
  std::size_t done = 0;
  BOOST_REQUIRE(wait_until([&] { return (done += guest.take_all()) == kRequests; }));
  guest.front_end->reconnect();
  submit(guest, 1);
  BOOST_TEST(wait_until([&] { return guest.take_all() == 1; }));
  BOOST_TEST(disk->requests() == kRequests + 1);
  guest.front_end->stop();
}

// GET_VRING_BASE: a front end that asks for it hands the ring to somebody who does not have the in-flight region.
BOOST_AUTO_TEST_CASE(a_ring_that_is_stopped_has_answered_what_a_dead_process_left_in_it) {
  constexpr std::uint16_t kSize = 1024;
  const RingOptions ring{.size = kSize, .indirect = true};
  OneQueueGuest guest(*this, {"blk, split", false, ring}, disk, ring);
  BOOST_REQUIRE(guest.front_end->get_vring_base(guest.queue) == 0u);
  // Of so many pieces that there is not room for all of them at one time.
  constexpr std::uint32_t kBytes = 16 * 512;
  std::vector<std::unique_ptr<IoSlot>> slots;
  for (std::size_t i = 0; i < kSize; ++i) {
    slots.push_back(std::make_unique<IoSlot>(guest.front_end->ram(), kBytes));
    const auto segments = guest.disk->build(guest.front_end->ram(), *slots.back(), Op::kRead, 0, kBytes, 512);
    BOOST_REQUIRE(guest.ring().add(segments, i));
  }
  guest.ring().show();
  // As if a process had taken them all and died.
  const std::uint64_t bytes = virtio::InflightRegion::queue_bytes(kSize, false);
  const auto region = virtio::SharedMapping::map(guest.front_end->inflight_fd(), 0, bytes);
  BOOST_REQUIRE(region.has_value());
  virtio::InflightSplit tracker;
  tracker.attach((*region)->data(), kSize);
  tracker.recover(0, kSize);
  const auto* avail = reinterpret_cast<const std::uint16_t*>(guest.ring().addresses(0).avail_user_addr);
  for (std::size_t i = 0; i < kSize; ++i) tracker.take(avail[2 + i]);
  guest.front_end->reconnect();
  BOOST_REQUIRE(wait_until([&] { return disk->kept() != 0; }));
  std::uint32_t base = 0;
  std::thread stopping([&] { base = guest.front_end->get_vring_base(guest.queue); });
  BOOST_TEST(!wait_until([&] { return disk->kept() == kSize; }, kWatched));
  disk->answer();
  stopping.join();
  BOOST_TEST(base == kSize);
  std::size_t answered = 0;
  while (guest.ring().take()) ++answered;
  BOOST_TEST(answered == kSize);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
