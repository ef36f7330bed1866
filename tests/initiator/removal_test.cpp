// Removing a disk whose device does not answer: what its guest sees until it is decided, and that nobody else waits.

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstring>
#include <future>
#include <thread>

#include "initiator/hanging_disk.h"
#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

constexpr std::uint16_t kQueue = 2;

FrontEndOptions options_for(const std::string& socket) {
  FrontEndOptions options;
  options.socket_path = socket;
  options.queues = 3;
  return options;
}

// A guest with one disk that hangs, and a command that is with the device.
struct Fixture : ServiceFixture {
  // Long enough that what happens while a removal waits does so while it waits.
  static constexpr std::chrono::milliseconds kLongPatience{4'000};

  Fixture() : ServiceFixture(2, kLongPatience) {
    front_end = std::make_unique<FrontEnd>(options_for(scsi("guest", 1)));
    add("guest", 0, hanging);
    front_end->start();
    begun = std::make_unique<IoSlot>(front_end->ram(), 4096);
    late = std::make_unique<IoSlot>(front_end->ram(), 4096);
    // The first command hears of the power on.
    for (int i = 0; i < 2 && hanging->kept() < 1; ++i) {
      submit(*begun, 1);
      wait_until([&] { return hanging->kept() == 1 || front_end->ring(kQueue).take().has_value(); });
    }
    BOOST_REQUIRE(hanging->kept() == 1U);
  }
  ~Fixture() { hanging->answer(); }

  void submit(IoSlot& slot, std::uint64_t token) {
    BOOST_REQUIRE(
        front_end->ring(kQueue).add(disk.build(front_end->ram(), slot, Op::kWrite, 0, 4096, 0), token));
    front_end->ring(kQueue).show();
    front_end->kick(kQueue);
  }
  std::future<Status> remove() {
    auto removal = std::async(std::launch::async, [this] { return service().remove_scsi_target("guest", {0, 0}); });
    // It is under way: the disk cannot be added while it leaves.
    BOOST_REQUIRE(wait_until([&] {
      const auto again = service().add_scsi_target("guest", {0, 0}, {hanging, uuid(0), false});
      return !again && again.error().code == ErrorCode::kBusy;
    }));
    return removal;
  }
  static bool waits(const std::future<Status>& removal) {
    return removal.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  }

  std::shared_ptr<HangingDisk> hanging = std::make_shared<HangingDisk>();
  const ScsiDisk disk{0, 0, 512};
  std::unique_ptr<FrontEnd> front_end;
  std::unique_ptr<IoSlot> begun;
  std::unique_ptr<IoSlot> late;
};

BOOST_FIXTURE_TEST_SUITE(removal, Fixture)

BOOST_AUTO_TEST_CASE(commands_to_a_disk_that_stays_after_all_are_only_late) {
  auto removal = remove();
  submit(*late, 2);
  BOOST_TEST((removal.get().error().code == ErrorCode::kBusy));
  // Neither has been answered with an error, nor at all.
  BOOST_TEST(!front_end->ring(kQueue).take().has_value());
  hanging->answer();
  for (int i = 0; i < 2; ++i) BOOST_TEST(wait_until([&] { return front_end->ring(kQueue).take().has_value(); }));
  BOOST_TEST(disk.verdict(*begun) == "");
  BOOST_TEST(disk.verdict(*late) == "");
  BOOST_TEST(run_io(*front_end, kQueue, disk, *late, Op::kRead, 0, 4096) == "");
  BOOST_TEST(service().remove_scsi_target("guest", {0, 0}).has_value());
}

BOOST_AUTO_TEST_CASE(commands_to_a_disk_that_goes_find_no_target) {
  auto removal = remove();
  submit(*late, 2);
  BOOST_TEST(waits(removal));
  hanging->answer();
  BOOST_TEST(removal.get().has_value());
  for (int i = 0; i < 2; ++i) BOOST_TEST(wait_until([&] { return front_end->ring(kQueue).take().has_value(); }));
  BOOST_TEST(disk.verdict(*begun) == "");
  // VIRTIO 1.2 5.6.6.1: BAD_TARGET.
  BOOST_TEST((disk.verdict(*late).find("response 3") != std::string::npos), disk.verdict(*late));
}

BOOST_AUTO_TEST_CASE(everybody_else_comes_and_goes_while_a_removal_waits) {
  auto removal = remove();
  // On the same controller, on another one, and by virtio-blk.
  add("guest", 1, ram());
  IoSlot slot(front_end->ram(), 4096);
  const ScsiDisk neighbour(1, 0, 512);
  run_io(*front_end, kQueue, neighbour, slot, Op::kWrite, 0, 4096);  // hears of the power on
  BOOST_TEST(run_io(*front_end, kQueue, neighbour, slot, Op::kWrite, 0, 4096) == "");
  BOOST_TEST(service().remove_scsi_target("guest", {1, 0}).has_value());
  another_guest_comes_and_goes();
  // A call about the disk itself is told.
  BOOST_TEST((service().remove_scsi_target("guest", {0, 0}).error().code == ErrorCode::kBusy));
  BOOST_TEST((service().remove_scsi_controller("guest").error().code == ErrorCode::kBusy));
  BOOST_TEST(waits(removal));
  hanging->answer();
  BOOST_TEST(removal.get().has_value());
}

BOOST_AUTO_TEST_CASE(everybody_else_comes_and_goes_while_the_removal_of_a_blk_disk_waits) {
  auto stuck = std::make_shared<HangingDisk>();
  FrontEndOptions options;
  options.socket_path = blk("stuck", stuck, 1);
  options.queues = 1;
  FrontEnd guest(options);
  guest.start();
  IoSlot slot(guest.ram(), 4096);
  BOOST_REQUIRE(guest.ring(0).add(BlkDisk().build(guest.ram(), slot, Op::kWrite, 0, 4096, 0), 0));
  guest.ring(0).show();
  guest.kick(0);
  BOOST_REQUIRE(wait_until([&] { return stuck->kept() == 1; }));
  auto removal = std::async(std::launch::async, [this] { return service().remove_blk("stuck"); });
  BOOST_REQUIRE(wait_until([&] {
    const auto again = service().create_blk("stuck", 1, {stuck, uuid(1), false});
    return !again && again.error().code == ErrorCode::kBusy;
  }));
  scsi("other", 1);
  add("other", 7, ram());
  BOOST_TEST(service().remove_scsi_target("other", {7, 0}).has_value());
  blk("other", ram(), 1);
  BOOST_TEST(service().remove_blk("other").has_value());
  BOOST_TEST(waits(removal));
  stuck->answer();
  BOOST_TEST(removal.get().has_value());
  BOOST_TEST(service().create_blk("stuck", 1, {stuck, uuid(1), false}).has_value());
}

// A task management function that waits for one disk does not hold up the removal of another of the same guest.
BOOST_AUTO_TEST_CASE(a_reset_of_a_disk_that_hangs_keeps_no_other_disk) {
  add("guest", 1, ram());
  struct __attribute__((packed)) {
    std::uint32_t type = 0;     // VIRTIO_SCSI_T_TMF
    std::uint32_t subtype = 5;  // LOGICAL_UNIT_RESET
    std::uint8_t lun[8] = {1, 0, 0x40, 0, 0, 0, 0, 0};
    std::uint64_t id = 0;
  } request;
  auto* header = front_end->ram().allocate(sizeof(request));
  auto* response = front_end->ram().allocate(1);
  std::memcpy(header, &request, sizeof(request));
  const Segment segments[] = {{front_end->ram().guest_addr(header), sizeof(request), false},
                              {front_end->ram().guest_addr(response), 1, true}};
  BOOST_REQUIRE(front_end->ring(0).add(segments, 0));
  front_end->ring(0).show();
  front_end->kick(0);
  IoSlot slot(front_end->ram(), 4096);
  const ScsiDisk neighbour(1, 0, 512);
  run_io(*front_end, kQueue, neighbour, slot, Op::kWrite, 0, 4096);
  BOOST_TEST(!front_end->ring(0).take().has_value());
  BOOST_TEST(service().remove_scsi_target("guest", {1, 0}).has_value());
  hanging->answer();
  BOOST_TEST(wait_until([&] { return front_end->ring(0).take().has_value(); }));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
