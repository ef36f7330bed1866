// What happens to disks while a guest's queues do not run: it hears of it as soon as they do. Paused and asleep guests
// are told on the connection that they have, and those whose service was restarted on a new one.

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <memory>

#include "initiator/growing_disk.h"
#include "initiator/scsi_events.h"
#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

constexpr std::uint64_t kSmall = 4 << 20;
constexpr std::uint64_t kLarge = 8 << 20;
constexpr std::uint32_t kMissed = 0x80000000;
constexpr std::uint32_t kParamChange = 3;
// Long enough for what must not happen to happen.
constexpr int kWatchedMs = 300;

struct MissedChanges : ServiceFixture {
  FrontEndOptions scsi_options(const std::string& socket_path) const {
    FrontEndOptions options;
    options.socket_path = socket_path;
    options.queues = 4;
    options.features = bit(1) | bit(2);
    options.inflight = true;
    return options;
  }
  static void check_missed(ScsiEvents& events) {
    const auto event = events.next();
    BOOST_REQUIRE(event);
    BOOST_TEST(event->event == kMissed);
  }
  static void check_grown(ScsiEvents& events, unsigned target) {
    const auto event = events.next();
    BOOST_REQUIRE(event);
    BOOST_TEST(event->event == kParamChange);
    BOOST_TEST(unsigned{event->lun[1]} == target);
    BOOST_TEST(event->reason == (0x2au | 0x09u << 8));
  }
  static void check_nothing(ScsiEvents& events) { BOOST_TEST(!events.next(kWatchedMs)); }

  std::shared_ptr<GrowingDisk> disk = std::make_shared<GrowingDisk>(ram(kLarge), kSmall);
};

BOOST_FIXTURE_TEST_SUITE(missed_changes, MissedChanges)

BOOST_DATA_TEST_CASE(a_scsi_guest_that_was_paused_is_told, boost::unit_test::data::make({false, true}), packed) {
  auto options = scsi_options(scsi("g"));
  options.ring.packed = packed;
  add("g", 1, disk);
  add("g", 2, ram());
  FrontEnd front_end(options);
  front_end.start();
  ScsiEvents events(front_end);
  // Its driver has looked for disks by itself.
  check_nothing(events);
  front_end.stop();
  add("g", 3, ram());
  BOOST_REQUIRE(service().remove_scsi_target("g", {2, 0}).has_value());
  disk->grow(kLarge);
  front_end.resume();
  check_missed(events);
  check_grown(events, 1);
  check_nothing(events);
  // And from here on it hears of everything at once.
  add("g", 4, ram());
  const auto event = events.next();
  BOOST_REQUIRE(event);
  BOOST_TEST(event->event == 1u);
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(a_disk_that_grew_and_went_is_not_told_of) {
  scsi("g");
  add("g", 1, disk);
  FrontEnd front_end(scsi_options(scsi("g")));
  front_end.start();
  ScsiEvents events(front_end);
  front_end.stop();
  disk->grow(kLarge);
  BOOST_REQUIRE(service().remove_scsi_target("g", {1, 0}).has_value());
  front_end.resume();
  check_missed(events);
  check_nothing(events);
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(what_waited_for_a_buffer_when_the_queue_stopped_is_told_when_it_starts) {
  scsi("g");
  add("g", 1, disk);
  FrontEnd front_end(scsi_options(scsi("g")));
  front_end.start();
  // No buffer is there.
  add("g", 2, ram());
  disk->grow(kLarge);
  front_end.stop();
  front_end.resume();
  ScsiEvents events(front_end);
  check_missed(events);
  check_grown(events, 1);
  check_nothing(events);
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(a_scsi_guest_whose_front_end_was_away_is_told) {
  scsi("g");
  add("g", 1, disk);
  FrontEnd front_end(scsi_options(scsi("g")));
  front_end.start();
  ScsiEvents events(front_end);
  front_end.disconnect();
  // Until the session has ended its event queue goes on, and tells of a change by an event in the guest's ring.
  BOOST_REQUIRE(wait_until([&] { return service().sessions().front().active_queues == 0; }));
  BOOST_REQUIRE(service().remove_scsi_target("g", {1, 0}).has_value());
  add("g", 2, ram());
  front_end.reconnect();
  check_missed(events);
  check_nothing(events);
  front_end.stop();
}

// What the process before had to tell died with it.
BOOST_AUTO_TEST_CASE(a_service_that_comes_back_tells_its_scsi_guests_to_look) {
  auto after = vhost::VhostService::start(reactors(), {.socket_dir = directory() + "/after", .hold_sockets = true});
  BOOST_REQUIRE(after.has_value());
  const auto path = (*after)->ensure_scsi_controller("g", 2);
  BOOST_REQUIRE(path.has_value());
  BOOST_REQUIRE((*after)->add_scsi_target("g", {7, 0}, {disk, uuid(7), false}).has_value());
  (*after)->listen();
  // Before the front end is back.
  BOOST_REQUIRE((*after)->add_scsi_target("g", {8, 0}, {ram(), uuid(8), false}).has_value());
  FrontEnd front_end(scsi_options(*path));
  front_end.start();
  ScsiEvents events(front_end);
  check_missed(events);
  check_grown(events, 7);
  check_nothing(events);
  front_end.stop();
}

struct BlkGuest : ServiceFixture {
  BlkGuest() {
    options.socket_path = blk("v", disk);
    options.inflight = true;
  }
  // As QEMU does it before its guest starts; and when it is told of a change.
  static void look(FrontEnd& front_end) { front_end.config(0, 60); }
  std::shared_ptr<GrowingDisk> disk = std::make_shared<GrowingDisk>(ram(kLarge), kSmall);
  FrontEndOptions options;
};

BOOST_FIXTURE_TEST_CASE(a_blk_guest_that_was_paused_is_told, BlkGuest) {
  FrontEnd front_end(options);
  front_end.start();
  front_end.wait_backend_message(kWatchedMs);
  look(front_end);
  front_end.stop();
  // QEMU takes no notice of what comes now.
  disk->grow(kLarge);
  BOOST_REQUIRE(front_end.wait_backend_message(20000));
  front_end.resume();
  const auto message = front_end.wait_backend_message(20000);
  BOOST_REQUIRE(message);
  BOOST_TEST(*message == 2u);  // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG
  front_end.stop();
}

BOOST_FIXTURE_TEST_CASE(a_blk_guest_that_knows_its_disk_is_not_told, BlkGuest) {
  FrontEnd front_end(options);
  front_end.start();
  front_end.wait_backend_message(kWatchedMs);
  look(front_end);
  // What the guest itself writes is no news to it: write-through.
  const std::byte off{0};
  front_end.set_config(32, std::span(&off, 1));
  front_end.stop();
  front_end.resume();
  BOOST_TEST(!front_end.wait_backend_message(kWatchedMs));
  front_end.stop();
}

BOOST_FIXTURE_TEST_CASE(a_blk_front_end_that_comes_back_is_told_to_look, BlkGuest) {
  FrontEnd front_end(options);
  front_end.start();
  look(front_end);
  front_end.disconnect();
  disk->grow(kLarge);
  front_end.reconnect();
  const auto message = front_end.wait_backend_message(20000);
  BOOST_REQUIRE(message);
  BOOST_TEST(*message == 2u);
  front_end.stop();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
