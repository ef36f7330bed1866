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
#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

// The largest queue that QEMU lets a guest have (VIRTQUEUE_MAX_SIZE).
constexpr std::uint16_t kLargest = 1024;

struct Variant {
  const char* name;
  bool scsi;
  RingOptions ring;
};
std::ostream& operator<<(std::ostream& out, const Variant& variant) {
  return out << variant.name;
}

const Variant kVariants[] = {
    {"blk, split", false, {}},
    {"blk, split, event index", false, {.event_idx = true}},
    {"blk, packed", false, {.packed = true}},
    {"blk, packed, event index", false, {.packed = true, .event_idx = true}},
    {"scsi, split", true, {}},
    {"scsi, split, event index", true, {.event_idx = true}},
    {"scsi, packed", true, {.packed = true}},
    {"scsi, packed, event index", true, {.packed = true, .event_idx = true}},
};

// A front end with one request queue on a disk of its own.
struct Guest {
  Guest(ServiceFixture& fixture, const Variant& variant, std::shared_ptr<bdev::Bdev> bdev, RingOptions ring) {
    FrontEndOptions options;
    if (variant.scsi) {
      options.socket_path = fixture.scsi("g", 1);
      options.queues = 3;
      fixture.add("g", 0, std::move(bdev));
      disk = std::make_unique<ScsiDisk>(0, 0, 512);
    } else {
      options.socket_path = fixture.blk("g", std::move(bdev), 1);
      options.queues = 1;
      disk = std::make_unique<BlkDisk>();
    }
    options.ring = ring;
    options.inflight = true;
    // The tables of indirect descriptors take most of it.
    options.ram_bytes = 64 << 20;
    front_end = std::make_unique<FrontEnd>(options);
    front_end->start();
    queue = disk->first_queue();
    if (variant.scsi) take_attentions(static_cast<const ScsiDisk&>(*disk));
  }
  // A new nexus has unit attentions to tell (SAM-5 5.14), which TEST UNIT READY hears without touching the medium.
  void take_attentions(const ScsiDisk& scsi) {
    IoSlot slot(front_end->ram(), 0);
    const std::uint8_t test_unit_ready[6] = {};
    const auto segments = scsi.command(front_end->ram(), slot, test_unit_ready, 0, 0);
    for (int i = 0; i < 8; ++i) {
      run_request(*front_end, queue, segments);
      if (scsi.verdict(slot).empty()) return;
    }
    throw std::runtime_error("the target does not become ready");
  }
  DriverRing& ring() { return front_end->ring(queue); }
  // Adds a read of 512 bytes; false when the ring is full.
  bool add_read(std::uint64_t offset_bytes) {
    slots.push_back(std::make_unique<IoSlot>(front_end->ram(), 512));
    const auto segments = disk->build(front_end->ram(), *slots.back(), Op::kRead, offset_bytes, 512, 0);
    return ring().add(segments, slots.size() - 1);
  }
  void show() {
    if (ring().show()) front_end->kick(queue);
  }
  // Takes what is there and checks it; how many.
  std::size_t take_all() {
    std::size_t count = 0;
    while (auto done = ring().take()) {
      BOOST_TEST(disk->verdict(*slots.at(done->cookie)) == "");
      ++count;
    }
    return count;
  }

  std::unique_ptr<FrontEnd> front_end;
  std::unique_ptr<Disk> disk;
  std::uint16_t queue = 0;
  std::vector<std::unique_ptr<IoSlot>> slots;
};

BOOST_FIXTURE_TEST_SUITE(queues, ServiceFixture)

BOOST_DATA_TEST_CASE(a_ring_of_the_largest_size_may_be_full_to_the_last_entry,
                     boost::unit_test::data::make(kVariants) * boost::unit_test::data::make({false, true}), variant,
                     indirect) {
  RingOptions ring = variant.ring;
  ring.size = kLargest;
  ring.indirect = indirect;
  auto hanging = std::make_shared<HangingDisk>();
  Guest guest(*this, variant, hanging, ring);
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

BOOST_DATA_TEST_CASE(data_verify_on_rings_of_the_largest_size, boost::unit_test::data::make(kVariants), variant) {
  RingOptions ring = variant.ring;
  ring.size = kLargest;
  Guest guest(*this, variant, ram(), ring);
  const LoadResult result = run_load(
      *guest.front_end, *guest.disk, 1,
      {.seed = 3, .length_bytes = 12 << 20, .queue_depth = 340, .flush_every = 100, .requests = 20000}, true);
  for (const auto& text : result.what) BOOST_TEST_MESSAGE(text);
  BOOST_TEST(result.errors == 0u);
  guest.front_end->stop();
}

// VIRTIO 1.2 2.7.7 and 2.7.10: avail flags or used_event; 2.8.10: the driver event suppression structure.
BOOST_DATA_TEST_CASE(a_driver_that_polls_is_not_interrupted, boost::unit_test::data::make(kVariants), variant) {
  RingOptions ring = variant.ring;
  ring.indirect = true;
  Guest guest(*this, variant, ram(), ring);
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

BOOST_DATA_TEST_CASE(requests_that_end_together_make_one_interrupt, boost::unit_test::data::make(kVariants), variant) {
  constexpr std::size_t kBatch = 64;
  RingOptions ring = variant.ring;
  ring.indirect = true;
  ring.size = kBatch;
  auto hanging = std::make_shared<HangingDisk>();
  Guest guest(*this, variant, hanging, ring);
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
