// Where queues run: spread evenly over the reactors, moved when guests leave, and what becomes of calls when a device
// does not answer.

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "initiator/hanging_disk.h"
#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

FrontEndOptions options_for(const std::string& socket, std::uint16_t queues, bool packed = false) {
  FrontEndOptions options;
  options.socket_path = socket;
  options.queues = queues;
  options.ring.packed = packed;
  return options;
}

using Loads = std::vector<unsigned>;

class PlacementFixture : public ServiceFixture {
 public:
  bool loads_become(const Loads& wanted) {
    return wait_until([&] { return service().queues_by_reactor() == wanted; });
  }
};

BOOST_FIXTURE_TEST_SUITE(placement, PlacementFixture)

BOOST_AUTO_TEST_CASE(queues_of_one_guest_and_of_many_are_spread_evenly) {
  FrontEnd big(options_for(blk("big", ram(), 6), 6));
  big.start();
  BOOST_TEST((service().queues_by_reactor() == Loads{3, 3}));
  std::vector<std::unique_ptr<FrontEnd>> small;
  for (int i = 0; i < 5; ++i) {
    small.push_back(std::make_unique<FrontEnd>(options_for(blk("small-" + std::to_string(i), ram(), 1), 1)));
    small.back()->start();
  }
  BOOST_TEST((service().queues_by_reactor() == Loads{6, 5}));
}

BOOST_AUTO_TEST_CASE(control_and_event_queues_of_scsi_do_not_count) {
  const auto disk = ram();
  for (int i = 0; i < 3; ++i) {
    const std::string name = "g" + std::to_string(i);
    const std::string socket = scsi(name, 1);
    add(name, 0, disk);
    FrontEnd front_end(options_for(socket, 3));
    front_end.start();
    const Loads loads = service().queues_by_reactor();
    BOOST_TEST(loads[0] + loads[1] == 1u);
    front_end.stop();
  }
  BOOST_TEST((service().queues_by_reactor() == Loads{0, 0}));
}

BOOST_AUTO_TEST_CASE(queues_move_when_guests_leave_and_no_request_is_lost) {
  constexpr int kGuests = 8;
  const BlkDisk disk;
  std::vector<std::unique_ptr<FrontEnd>> guests;
  for (int i = 0; i < kGuests; ++i) {
    // Split and packed rings move alike.
    guests.push_back(
        std::make_unique<FrontEnd>(options_for(blk("g" + std::to_string(i), ram(), 1), 1, /*packed=*/i % 4 == 0)));
    guests.back()->start();
  }
  BOOST_TEST((service().queues_by_reactor() == Loads{4, 4}));
  // Those that stay are all on one reactor, and verify their data all the time.
  std::vector<std::unique_ptr<QueueLoad>> loads;
  std::vector<std::thread> threads;
  std::atomic<bool> stop{false};
  std::atomic<int> failures{0};
  for (int i = 0; i < kGuests; i += 2) {
    loads.push_back(std::make_unique<QueueLoad>(*guests[static_cast<std::size_t>(i)], disk, 0, 0, 1,
                                                LoadOptions{.length_bytes = 4 << 20, .queue_depth = 8}));
  }
  for (auto& load : loads) {
    threads.emplace_back([&] {
      try {
        load->run(stop);
      } catch (const std::exception&) {
        ++failures;
      }
    });
  }
  for (std::size_t i = 1; i < kGuests; i += 2) guests[i]->stop();
  BOOST_TEST(loads_become({2, 2}));
  // And they go on after the move.
  const auto done = [&] {
    std::uint64_t sum = 0;
    for (const auto& info : service().sessions()) sum += info.requests;
    return sum;
  };
  const std::uint64_t before = done();
  BOOST_TEST(wait_until([&] { return done() > before + 1000; }));
  stop = true;
  for (auto& thread : threads) thread.join();
  BOOST_TEST(failures == 0);
  for (auto& load : loads) {
    load->check_all();
    BOOST_TEST(load->result().errors == 0u);
  }
}

BOOST_AUTO_TEST_CASE(a_queue_whose_requests_do_not_end_stays_and_others_move) {
  auto hanging = std::make_shared<HangingDisk>();
  // On reactor 0, 1, 0, 1, 0: the first hangs, and all of reactor 1 leaves.
  std::vector<std::unique_ptr<FrontEnd>> guests;
  for (int i = 0; i < 5; ++i) {
    const std::string name = "g" + std::to_string(i);
    guests.push_back(std::make_unique<FrontEnd>(
        options_for(blk(name, i == 0 ? std::static_pointer_cast<bdev::Bdev>(hanging) : ram(), 1), 1)));
    guests.back()->start();
  }
  IoSlot slot(guests[0]->ram(), 4096);
  const auto segments = BlkDisk().build(guests[0]->ram(), slot, Op::kWrite, 0, 4096, 0);
  BOOST_REQUIRE(guests[0]->ring(0).add(segments, 0));
  guests[0]->ring(0).show();
  guests[0]->kick(0);
  BOOST_REQUIRE(wait_until([&] { return hanging->kept() == 1; }));
  guests[1]->stop();
  guests[3]->stop();
  BOOST_TEST(loads_become({2, 1}));
  hanging->answer();
  BOOST_TEST(wait_until([&] { return guests[0]->ring(0).take().has_value(); }));
}

BOOST_AUTO_TEST_CASE(calls_are_bounded_when_a_device_does_not_answer) {
  auto hanging = std::make_shared<HangingDisk>();
  const std::string blk_socket = blk("hung", hanging, 1);
  const std::string scsi_socket = scsi("hung", 1);
  add("hung", 0, hanging);
  FrontEnd blk_front_end(options_for(blk_socket, 1));
  FrontEnd scsi_front_end(options_for(scsi_socket, 3));
  blk_front_end.start();
  scsi_front_end.start();
  IoSlot blk_slot(blk_front_end.ram(), 4096), scsi_slot(scsi_front_end.ram(), 4096);
  BOOST_REQUIRE(blk_front_end.ring(0).add(BlkDisk().build(blk_front_end.ram(), blk_slot, Op::kRead, 0, 4096, 0), 0));
  blk_front_end.ring(0).show();
  blk_front_end.kick(0);
  const ScsiDisk scsi_disk(0, 0, 512);
  // The first command hears of the power on; the second is the read.
  for (int i = 0; i < 2 && hanging->kept() < 2; ++i) {
    BOOST_REQUIRE(
        scsi_front_end.ring(2).add(scsi_disk.build(scsi_front_end.ram(), scsi_slot, Op::kRead, 0, 4096, 0), 0));
    scsi_front_end.ring(2).show();
    scsi_front_end.kick(2);
    wait_until([&] { return hanging->kept() == 2 || scsi_front_end.ring(2).take().has_value(); });
  }
  BOOST_REQUIRE(hanging->kept() == 2u);

  // Nobody waits for it who only asks.
  std::thread leaving([&] { blk_front_end.disconnect(); });
  const auto asked = std::chrono::steady_clock::now();
  BOOST_TEST(service().sessions().size() == 2u);
  BOOST_TEST((std::chrono::steady_clock::now() - asked < std::chrono::seconds(5)));
  leaving.join();
  // Removing gives up in time and can be repeated; the socket is gone, the target stays.
  const auto began = std::chrono::steady_clock::now();
  BOOST_TEST((service().remove_blk("hung").error().code == ErrorCode::kBusy));
  BOOST_TEST((service().remove_scsi_target("hung", {0, 0}).error().code == ErrorCode::kBusy));
  BOOST_TEST((std::chrono::steady_clock::now() - began < 10 * kDrainPatience));
  BOOST_TEST((service().create_blk("hung", 1, {hanging, uuid(1), false}).error().code == ErrorCode::kBusy));
  hanging->answer();
  BOOST_TEST(wait_until([&] { return scsi_front_end.ring(2).take().has_value(); }));
  BOOST_TEST(service().remove_blk("hung").has_value());
  BOOST_TEST(run_io(scsi_front_end, 2, scsi_disk, scsi_slot, Op::kRead, 0, 4096) == "");
  BOOST_TEST(service().remove_scsi_target("hung", {0, 0}).has_value());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
