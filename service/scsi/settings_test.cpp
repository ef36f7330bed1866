// What guests set on a logical unit, over restarts of the service: a bench that ends and another on the same store.

#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

constexpr std::uint8_t kReserve6 = 0x16;
constexpr std::uint8_t kRelease6 = 0x17;

struct Parameters {
  bool write_cache = true;
  bool descriptor_sense = false;
  bool write_protect = false;

  bool operator==(const Parameters&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Parameters& parameters) {
  return out << "WCE " << parameters.write_cache << " D_SENSE " << parameters.descriptor_sense << " SWP "
             << parameters.write_protect;
}

Request select(const Parameters& parameters) {
  Bytes list(4 + 20 + 12);
  list[4] = 0x08;
  list[5] = 18;
  list[6] = parameters.write_cache ? 4 : 0;
  list[24] = 0x0a;
  list[25] = 10;
  list[26] = parameters.descriptor_sense ? 4 : 0;
  list[27] = 0x10;
  list[28] = parameters.write_protect ? 8 : 0;
  list[32] = 0xff;
  list[33] = 0xff;
  return {.cdb = cdb6(0x15, 0x10, 0, 0, static_cast<std::uint8_t>(list.size())), .data_out = list};
}

Parameters read_back(Bench& bench, std::size_t guest = 0) {
  const Answer caching = bench.run({.cdb = cdb6(0x1a, 0x08, 0x08, 0, 255), .data_in_bytes = 255}, {guest, 0});
  const Answer control = bench.run({.cdb = cdb6(0x1a, 0x08, 0x0a, 0, 255), .data_in_bytes = 255}, {guest, 0});
  BOOST_REQUIRE(caching.data.size() > 6);
  BOOST_REQUIRE(control.data.size() > 8);
  return {(caching.data[6] & 4) != 0, (control.data[6] & 4) != 0, (control.data[8] & 8) != 0};
}

Request simple(std::uint8_t opcode) {
  return {.cdb = cdb6(opcode, 0, 0, 0, 0)};
}
Request write_a_block() {
  return {.cdb = {0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, .data_out = Bytes(512, 0x5a)};
}

std::shared_ptr<TestSettings> settings() {
  return std::make_shared<TestSettings>();
}

void await_waiting(TestSettings& store, std::size_t count) {
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while (store.waiting() < count && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  BOOST_REQUIRE_EQUAL(store.waiting(), count);
}

}  // namespace

BOOST_AUTO_TEST_CASE(mode_parameters_are_as_they_were_after_a_restart) {
  const auto store = settings();
  const Parameters chosen{.write_cache = false, .descriptor_sense = true};
  {
    Bench bench({.settings = store});
    check_good(bench.run(select(chosen)), 36);
  }
  Bench bench({.settings = store});
  BOOST_TEST(read_back(bench) == chosen);
  BOOST_TEST(read_back(bench, 1) == chosen);
  // Nobody is told: to the guests nothing has happened.
  check_good(bench.run(simple(0x00), {1, 1}), 0);
  check_good(bench.run(write_a_block()), 512);
  BOOST_REQUIRE_EQUAL(bench.bdev->seen().size(), 1U);
  BOOST_TEST(bench.bdev->seen()[0].flags == bdev::IoRequest::kFua);
}

BOOST_AUTO_TEST_CASE(software_write_protection_holds_after_a_restart_and_can_be_taken_off) {
  const auto store = settings();
  {
    Bench bench({.settings = store});
    check_good(bench.run(select({.write_protect = true})), 36);
  }
  {
    Bench bench({.settings = store});
    check_sense(bench.run(write_a_block()), sense::kWriteProtected);
    check_good(bench.run(select({})), 36);
  }
  // The defaults are nothing to keep.
  BOOST_TEST(store->state("") == "");
  Bench bench({.settings = store});
  check_good(bench.run(write_a_block()), 512);
}

BOOST_AUTO_TEST_CASE(mode_select_is_answered_when_it_is_durable) {
  const auto store = settings();
  Bench bench({.settings = store});
  store->pause(true);
  auto first = bench.start(select({.write_cache = false}));
  await_waiting(*store, 1);
  // Asks for the same, and must not be told that it is done before it is.
  auto second = bench.start(select({.write_cache = false}), {0, 1});
  await_waiting(*store, 2);
  // The reactor goes on meanwhile, and writes are durable already.
  check_good(bench.run(write_a_block()), 512);
  BOOST_TEST(bench.bdev->seen().back().flags == bdev::IoRequest::kFua);
  BOOST_TEST(!first->done());
  BOOST_TEST(!second->done());
  store->pause(false);
  check_good(first->answer(), 36);
  check_good(second->answer(), 36);
  BOOST_TEST(store->state("") != "");
}

BOOST_AUTO_TEST_CASE(mode_parameters_that_cannot_be_kept_are_not_changed) {
  const auto store = settings();
  Bench bench({.settings = store});
  const Parameters kept{.descriptor_sense = true};
  check_good(bench.run(select(kept)), 36);
  check_sense(bench.run(simple(0x00), {1, 0}), to_sense(UnitAttention::kModeParametersChanged));
  store->fail(true);
  const Answer refused = bench.run(select({.write_cache = false, .write_protect = true}));
  check_sense(refused, sense::kInternalTargetFailure);
  check_sense(bench.run(simple(0x00)), to_sense(UnitAttention::kModeParametersChanged));
  check_sense(bench.run(simple(0x00), {1, 0}), to_sense(UnitAttention::kModeParametersChanged));
  BOOST_TEST(read_back(bench) == kept);
  check_good(bench.run(write_a_block()), 512);
  BOOST_TEST(bench.bdev->seen().back().flags == 0);
}

BOOST_AUTO_TEST_CASE(a_cache_that_is_turned_off_is_flushed_first) {
  const auto store = settings();
  Bench bench({.settings = store});
  check_good(bench.run(write_a_block()), 512);
  bench.bdev->forget_seen();
  check_good(bench.run(select({.write_cache = false})), 36);
  BOOST_REQUIRE_EQUAL(bench.bdev->seen().size(), 1U);
  BOOST_TEST((bench.bdev->seen()[0].op == bdev::IoOp::kFlush));
  // It is not the flush by which the guest's programs learn of lost writes.
  BOOST_TEST(bench.bdev->seen()[0].flags == bdev::IoRequest::kAside);
  bench.bdev->forget_seen();
  check_good(bench.run(select({.write_cache = false, .descriptor_sense = true})), 36);
  check_good(bench.run(select({})), 36);
  BOOST_TEST(bench.bdev->seen().empty());
}

BOOST_AUTO_TEST_CASE(a_reset_brings_the_defaults_back_for_good) {
  const auto store = settings();
  {
    Bench bench({.settings = store});
    check_good(bench.run(select({.write_cache = false, .write_protect = true})), 36);
    check_good(bench.run(simple(kReserve6)), 0);
    BOOST_TEST(store->state("guest-a") != "");
    store->pause(true);
    auto reset = bench.start_managing(TaskFunction::kLogicalUnitReset, {1, 0});
    await_waiting(*store, 2);
    BOOST_TEST(!reset->done.is_set());
    store->pause(false);
    BOOST_TEST((reset->wait() == TaskFunctionResponse::kComplete));
  }
  BOOST_TEST(store->state("") == "");
  BOOST_TEST(store->state("guest-a") == "");
  Bench bench({.settings = store});
  BOOST_TEST(read_back(bench, 1) == Parameters{});
}

BOOST_AUTO_TEST_CASE(the_reservation_of_reserve_holds_after_a_restart) {
  const auto store = settings();
  {
    Bench bench({.settings = store});
    check_good(bench.run(simple(kReserve6)), 0);
    BOOST_TEST((store->lasts() == SettingStore::Lasts::kUntilPowerLoss));
  }
  {
    Bench bench({.settings = store});
    check_status(bench.run(write_a_block(), {1, 0}), ScsiStatus::kReservationConflict);
    check_status(bench.run(simple(kReserve6), {1, 0}), ScsiStatus::kReservationConflict);
    check_good(bench.run(write_a_block()), 512);
    check_good(bench.run(simple(kRelease6)), 0);
  }
  Bench bench({.settings = store});
  check_good(bench.run(write_a_block(), {1, 0}), 512);
}

BOOST_AUTO_TEST_CASE(a_reservation_of_reserve_that_cannot_be_kept_is_none) {
  const auto store = settings();
  Bench bench({.settings = store});
  store->fail(true);
  check_sense(bench.run(simple(kReserve6)), sense::kInternalTargetFailure);
  check_good(bench.run(write_a_block(), {1, 0}), 512);
}

BOOST_AUTO_TEST_CASE(settings_that_cannot_be_read_keep_the_unit_from_being_made) {
  for (const char* state : {"something else", "pollux-mode-pages-1 wce 2 d_sense 0 swp 0", "pollux-mode-pages-1 wce"}) {
    struct Odd : TestSettings {
      Result<std::string> load(const Uuid&, const std::string&) override { return std::string(text); }
      const char* text = "";
    };
    const auto store = std::make_shared<Odd>();
    store->text = state;
    const auto unit = LogicalUnit::make(
        {.bdev = std::make_shared<TestBdev>(TestBdev::Options{}), .uuid = Uuid::random(), .settings = store});
    BOOST_REQUIRE(!unit);
    BOOST_TEST((unit.error().code == ErrorCode::kCorrupt));
  }
}
