// Disks whose device does not open for some time: nobody else waits for it, and whatever ends meanwhile ends well.

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>

#include "bdev/held_opening.h"
#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

using bdev::test::HeldOpening;

constexpr unsigned kReactors = 2;
constexpr std::uint16_t kQueue = 2;
// Of a test that waits for an opening, and of one in which it is given up.
constexpr std::chrono::milliseconds kLong{60'000};
constexpr std::chrono::milliseconds kShort{200};

struct Fixture : ServiceFixture {
  explicit Fixture(std::chrono::milliseconds patience = kLong) : ServiceFixture(kReactors, patience) {
    scsi("guest", 1);
  }
  ~Fixture() { held->held = false; }

  Status add_target() { return service().add_scsi_target("guest", {0, 0}, {held, uuid(0), false}); }
  Status add_blk() {
    const auto path = service().create_blk("late", 1, {held, uuid(1), false});
    return path ? Status{} : fail(path.error());
  }
  // The call goes on once the device opens.
  std::future<Status> begin(std::function<Status()> add) {
    auto adding = std::async(std::launch::async, std::move(add));
    BOOST_REQUIRE(wait_until([&] { return held->begun == kReactors; }));
    return adding;
  }
  static bool waits(const std::future<Status>& adding) {
    return adding.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  }
  std::unique_ptr<FrontEnd> connect(const std::string& name) {
    FrontEndOptions options;
    options.socket_path = directory() + "/" + name + ".sock";
    options.queues = name.starts_with("blk") ? 1 : 3;
    auto front_end = std::make_unique<FrontEnd>(options);
    front_end->start();
    return front_end;
  }
  // Of everybody who is not waited for.
  void others_come_and_go() {
    add("guest", 1, ram());
    BOOST_TEST(service().remove_scsi_target("guest", {1, 0}).has_value());
    another_guest_comes_and_goes();
  }
  // Nothing of the device is left in the service.
  bool released() {
    return wait_until([&] { return held.use_count() == 1; });
  }

  std::shared_ptr<HeldOpening> held = std::make_shared<HeldOpening>(ram());
};

// Whose calls do not wait for long.
struct ImpatientFixture : Fixture {
  ImpatientFixture() : Fixture(kShort) {}
};

ErrorCode code_of(const Status& status) {
  BOOST_REQUIRE(!status.has_value());
  return status.error().code;
}

// A guest's first command hears of the power on.
std::string write_to(FrontEnd& guest, std::uint8_t target) {
  IoSlot slot(guest.ram(), 4096);
  const ScsiDisk disk(target, 0, 512);
  run_io(guest, kQueue, disk, slot, Op::kWrite, 0, 4096);
  return run_io(guest, kQueue, disk, slot, Op::kWrite, 0, 4096);
}

}  // namespace

BOOST_FIXTURE_TEST_CASE(others_come_and_go_while_a_target_is_opened, Fixture) {
  const auto guest = connect("scsi-guest");
  auto adding = begin([this] { return add_target(); });
  others_come_and_go();
  add("guest", 1, ram());
  BOOST_TEST(write_to(*guest, 1) == "");
  // Until it is there on every reactor it is nowhere.
  BOOST_TEST((write_to(*guest, 0).find("response 3") != std::string::npos));
  BOOST_CHECK(code_of(add_target()) == ErrorCode::kBusy);
  BOOST_CHECK(code_of(service().remove_scsi_target("guest", {0, 0})) == ErrorCode::kBusy);
  BOOST_TEST(waits(adding));
  held->held = false;
  BOOST_TEST(adding.get().has_value());
  BOOST_TEST(write_to(*guest, 0) == "");
  BOOST_TEST(service().remove_scsi_target("guest", {0, 0}).has_value());
  BOOST_TEST(released());
}

BOOST_FIXTURE_TEST_CASE(others_come_and_go_while_a_blk_disk_is_opened, Fixture) {
  auto adding = begin([this] { return add_blk(); });
  others_come_and_go();
  BOOST_CHECK(code_of(add_blk()) == ErrorCode::kBusy);
  BOOST_CHECK(code_of(service().remove_blk("late")) == ErrorCode::kBusy);
  BOOST_TEST(waits(adding));
  held->held = false;
  BOOST_TEST(adding.get().has_value());
  auto guest = connect("blk-late");
  IoSlot slot(guest->ram(), 4096);
  BOOST_TEST(run_io(*guest, 0, BlkDisk(), slot, Op::kWrite, 0, 4096) == "");
  guest.reset();
  BOOST_TEST(service().remove_blk("late").has_value());
  BOOST_TEST(released());
}

BOOST_FIXTURE_TEST_CASE(a_session_ends_and_another_begins_while_its_disk_is_opened, Fixture) {
  auto guest = connect("scsi-guest");
  auto adding = begin([this] { return add_target(); });
  guest.reset();
  guest = connect("scsi-guest");
  BOOST_CHECK(code_of(service().remove_scsi_controller("guest")) == ErrorCode::kBusy);
  held->held = false;
  BOOST_TEST(adding.get().has_value());
  BOOST_TEST(write_to(*guest, 0) == "");
}

BOOST_FIXTURE_TEST_CASE(an_opening_that_takes_too_long_is_given_up_and_may_be_asked_for_again, ImpatientFixture) {
  for (const auto& add : {std::function<Status()>([this] { return add_target(); }),
                          std::function<Status()>([this] { return add_blk(); })}) {
    held->held = true;
    BOOST_CHECK(code_of(add()) == ErrorCode::kRetry);
    BOOST_TEST(service().remove_scsi_target("guest", {0, 0}).has_value());
    BOOST_TEST(service().remove_blk("late").has_value());
    // Those that were given up have not ended, and are in nobody's way.
    BOOST_CHECK(code_of(add()) == ErrorCode::kRetry);
    held->held = false;
    BOOST_TEST(released());
    BOOST_TEST(add().has_value());
    BOOST_TEST(service().remove_scsi_target("guest", {0, 0}).has_value());
    BOOST_TEST(service().remove_blk("late").has_value());
    BOOST_TEST(released());
  }
}

BOOST_FIXTURE_TEST_CASE(the_service_ends_before_an_opening_that_was_given_up, ImpatientFixture) {
  BOOST_CHECK(code_of(add_target()) == ErrorCode::kRetry);
  BOOST_CHECK(code_of(add_blk()) == ErrorCode::kRetry);
  end_service();
  BOOST_TEST(held.use_count() > 1);
  held->held = false;
  BOOST_TEST(released());
}

}  // namespace pollux::initiator
