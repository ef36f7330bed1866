// Virtqueues as drivers use them: full to the last entry, without interrupts that nobody asked for, and idle.

#include <sys/resource.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "initiator/hanging_disk.h"
#include "initiator/one_queue_guest.h"
#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

// The largest queue that QEMU lets a guest have (VIRTQUEUE_MAX_SIZE).
constexpr std::uint16_t kLargest = 1024;

BOOST_FIXTURE_TEST_SUITE(queues, ServiceFixture)

BOOST_DATA_TEST_CASE(a_ring_of_the_largest_size_may_be_full_to_the_last_entry,
                     boost::unit_test::data::make(kRingVariants) * boost::unit_test::data::make({false, true}), variant,
                     indirect) {
  RingOptions ring = variant.ring;
  ring.size = kLargest;
  ring.indirect = indirect;
  auto hanging = std::make_shared<HangingDisk>();
  OneQueueGuest guest(*this, variant, hanging, ring);
  // Indirect requests take an entry each; direct reads three.
  const std::size_t room = indirect ? kLargest : kLargest / 3;
  std::size_t shown = 0;
  while (shown < room && guest.add_read(512 * shown)) ++shown;
  BOOST_TEST(shown == room);
  guest.show();
  // All of them are with the device at one time.
  BOOST_TEST(wait_until([&] { return hanging->kept() == room; }));
  hanging->answer();
  std::size_t done = 0;
  BOOST_TEST(wait_until([&] { return (done += guest.take_all()) == room; }));
  guest.front_end->stop();
}

BOOST_DATA_TEST_CASE(data_verify_on_rings_of_the_largest_size, boost::unit_test::data::make(kRingVariants), variant) {
  RingOptions ring = variant.ring;
  ring.size = kLargest;
  OneQueueGuest guest(*this, variant, ram(), ring);
  const LoadResult result = run_load(
      *guest.front_end, *guest.disk, 1,
      {.seed = 3, .length_bytes = 12 << 20, .queue_depth = 340, .flush_every = 100, .requests = 20000}, true);
  for (const auto& text : result.what) BOOST_TEST_MESSAGE(text);
  BOOST_TEST(result.errors == 0u);
  guest.front_end->stop();
}

// VIRTIO 1.2 2.7.7 and 2.7.10: avail flags or used_event; 2.8.10: the driver event suppression structure.
BOOST_DATA_TEST_CASE(a_driver_that_polls_is_not_interrupted, boost::unit_test::data::make(kRingVariants), variant) {
  RingOptions ring = variant.ring;
  ring.indirect = true;
  OneQueueGuest guest(*this, variant, ram(), ring);
  // With an event index a driver stays out of the way by leaving it where it was: what that asked for comes first.
  guest.ring().no_calls();
  guest.add_read(0);
  guest.show();
  BOOST_TEST(wait_until([&] { return guest.take_all() == 1; }));
  guest.front_end->take_calls(guest.queue);
  for (unsigned i = 0; i < 1000; ++i) {
    guest.add_read(512 * i);
    guest.show();
    BOOST_REQUIRE(wait_until([&] { return guest.take_all() == 1; }));
  }
  guest.front_end->stop();
  BOOST_TEST(guest.front_end->take_calls(guest.queue) == 0u);
}

BOOST_DATA_TEST_CASE(requests_that_end_together_make_one_interrupt, boost::unit_test::data::make(kRingVariants), variant) {
  constexpr std::size_t kBatch = 64;
  RingOptions ring = variant.ring;
  ring.indirect = true;
  ring.size = kBatch;
  auto hanging = std::make_shared<HangingDisk>();
  OneQueueGuest guest(*this, variant, hanging, ring);
  guest.front_end->take_calls(guest.queue);
  for (std::size_t i = 0; i < kBatch; ++i) BOOST_REQUIRE(guest.add_read(512 * i));
  guest.show();
  BOOST_TEST(wait_until([&] { return hanging->kept() == kBatch; }));
  BOOST_TEST(guest.ring().want_call());
  hanging->answer();
  BOOST_TEST(guest.front_end->wait_call(guest.queue, 30000));
  std::size_t done = 0;
  BOOST_TEST(wait_until([&] { return (done += guest.take_all()) == kBatch; }));
  guest.front_end->stop();
  BOOST_TEST(guest.front_end->take_calls(guest.queue) == 0u);
}

BOOST_AUTO_TEST_CASE(sixty_four_idle_guests_take_no_time) {
  constexpr int kGuests = 64;
  constexpr std::uint16_t kQueues = 2;
  std::vector<std::unique_ptr<FrontEnd>> guests;
  const auto disk = ram();
  for (int i = 0; i < kGuests; ++i) {
    FrontEndOptions options;
    options.socket_path = blk("g" + std::to_string(i), disk, kQueues);
    options.queues = kQueues;
    options.ram_bytes = 1 << 20;
    guests.push_back(std::make_unique<FrontEnd>(options));
    guests.back()->start();
    IoSlot slot(guests.back()->ram(), 4096);
    for (std::uint16_t queue = 0; queue < kQueues; ++queue)
      BOOST_REQUIRE(run_io(*guests.back(), queue, BlkDisk(), slot, Op::kRead, 0, 4096) == "");
  }
  const auto cpu = [] {
    rusage usage{};
    BOOST_REQUIRE(::getrusage(RUSAGE_SELF, &usage) == 0);
    const auto of = [](const timeval& time) {
      return std::chrono::seconds(time.tv_sec) + std::chrono::microseconds(time.tv_usec);
    };
    return of(usage.ru_utime) + of(usage.ru_stime);
  };
  // The reactors go to sleep, and so does this thread.
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  const auto before = cpu();
  constexpr std::chrono::seconds kWatched(2);
  std::this_thread::sleep_for(kWatched);
  const std::chrono::microseconds used = cpu() - before;
  BOOST_TEST_MESSAGE(used.count() << " us of " << kWatched.count() << " s");
  BOOST_TEST(used.count() <= std::chrono::microseconds(kWatched).count() / 100);
  // None of them is asleep for good.
  for (auto& guest : guests) {
    IoSlot slot(guest->ram(), 4096);
    for (std::uint16_t queue = 0; queue < kQueues; ++queue)
      BOOST_REQUIRE(run_io(*guest, queue, BlkDisk(), slot, Op::kRead, 0, 4096) == "");
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
