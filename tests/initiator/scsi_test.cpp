// virtio-scsi through a real socket: addressing, task management, events (VIRTIO 1.2 5.6). What commands mean is tested
// in service/scsi.

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>
#include <vector>

#include "initiator/scsi_events.h"
#include "initiator/service_fixture.h"

namespace pollux::initiator {
namespace {

constexpr std::uint64_t kHotplug = bit(1);
constexpr std::uint64_t kChange = bit(2);

FrontEndOptions options_for(const std::string& socket, std::uint16_t request_queues = 2) {
  FrontEndOptions options;
  options.socket_path = socket;
  options.queues = static_cast<std::uint16_t>(request_queues + 2);
  options.features = kHotplug | kChange;
  return options;
}

std::string test_unit_ready(FrontEnd& front_end, std::uint8_t target, std::uint16_t lun = 0, std::uint16_t queue = 2) {
  const ScsiDisk disk(target, lun, 512);
  IoSlot slot(front_end.ram(), 0);
  const std::uint8_t cdb[6] = {};
  run_request(front_end, queue, disk.command(front_end.ram(), slot, cdb, 0, 0));
  return disk.verdict(slot);
}

// A new nexus begins with unit attentions (SAM-5 5.14); a driver takes them off.
void settle(FrontEnd& front_end, std::uint8_t target) {
  for (int i = 0; i < 8; ++i) {
    if (test_unit_ready(front_end, target).empty()) return;
  }
  throw std::runtime_error("the target does not become ready");
}

BOOST_FIXTURE_TEST_SUITE(scsi, ServiceFixture)

BOOST_DATA_TEST_CASE(reads_return_what_writes_wrote, boost::unit_test::data::make({false, true}), packed) {
  FrontEndOptions options = options_for(ServiceFixture::scsi("g"));
  add("g", 3, ram());
  options.ring = {.size = 128, .packed = packed, .event_idx = true, .indirect = true};
  FrontEnd front_end(options);
  front_end.start();
  settle(front_end, 3);
  LoadOptions load{
      .seed = 11, .length_bytes = 8 << 20, .piece_bytes = 512, .queue_depth = 16, .flush_every = 50, .requests = 20000};
  const LoadResult result = run_load(front_end, ScsiDisk(3, 0, 512), 2, load, true);
  for (const auto& text : result.what) BOOST_TEST_MESSAGE(text);
  BOOST_TEST(result.errors == 0u);
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(absent_targets_are_bad_targets_and_present_ones_answer) {
  FrontEnd front_end(options_for(ServiceFixture::scsi("g")));
  add("g", 0, ram());
  add("g", 254, ram());
  front_end.start();
  settle(front_end, 0);
  settle(front_end, 254);
  BOOST_TEST(test_unit_ready(front_end, 1) == "virtio-scsi response 3");
  BOOST_TEST(test_unit_ready(front_end, 255) == "virtio-scsi response 3");
  // LOGICAL UNIT NOT SUPPORTED comes from the target, not from the transport.
  BOOST_TEST(test_unit_ready(front_end, 0, 7) == "SCSI status 2, sense key 5 asc 37 ascq 0");
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(addresses_that_no_unit_can_have_are_bad_targets) {
  FrontEnd front_end(options_for(ServiceFixture::scsi("g")));
  add("g", 0, ram());
  front_end.start();
  settle(front_end, 0);
  const ScsiDisk disk(0, 0, 512);
  IoSlot slot(front_end.ram(), 0);
  const std::uint8_t cdb[6] = {};
  const auto with_lun = [&](std::array<std::uint8_t, 8> lun) {
    const auto segments = disk.command(front_end.ram(), slot, cdb, 0, 0);
    std::memcpy(slot.header, lun.data(), lun.size());
    run_request(front_end, 2, segments);
    return disk.verdict(slot);
  };
  BOOST_TEST(with_lun({1, 0, 0x40, 0, 0, 0, 0, 0}) == "");
  BOOST_TEST(with_lun({1, 0, 0, 0, 0, 0, 0, 0}) == "");
  BOOST_TEST(with_lun({0, 0, 0x40, 0, 0, 0, 0, 0}) == "virtio-scsi response 3");
  BOOST_TEST(with_lun({1, 0, 0x80, 0, 0, 0, 0, 0}) == "virtio-scsi response 3");
  BOOST_TEST(with_lun({1, 0, 0x40, 0, 0, 0, 1, 0}) == "virtio-scsi response 3");
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(configuration_space_tells_the_limits) {
  FrontEnd front_end(options_for(ServiceFixture::scsi("g", 2)));
  front_end.start();
  const auto config = front_end.config(0, 36);
  const auto u32 = [&](std::size_t offset) {
    std::uint32_t value;
    std::memcpy(&value, config.data() + offset, sizeof(value));
    return value;
  };
  BOOST_TEST(u32(0) == 2u);     // num_queues
  BOOST_TEST(u32(4) == 126u);   // seg_max
  BOOST_TEST(u32(12) == 128u);  // cmd_per_lun
  BOOST_TEST(u32(16) == 16u);   // event_info_size
  BOOST_TEST(u32(20) == 96u);   // sense_size
  BOOST_TEST(u32(24) == 32u);   // cdb_size
  BOOST_TEST((u32(28) >> 16) == 254u);
  BOOST_TEST(u32(32) == 16383u);
  // Linux writes the sizes that it wants, which are these.
  const std::uint32_t sense = 96, cdb = 32;
  front_end.set_config(20, Wire::bytes_of(sense));
  front_end.set_config(24, Wire::bytes_of(cdb));
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(disks_that_come_and_go_are_announced_and_the_others_go_on) {
  FrontEnd front_end(options_for(ServiceFixture::scsi("g")));
  add("g", 0, ram());
  front_end.start();
  settle(front_end, 0);
  ScsiEvents events(front_end);
  std::atomic<bool> stop{false};
  LoadOptions load{.length_bytes = 8 << 20, .queue_depth = 8};
  const ScsiDisk steady(0, 0, 512);
  QueueLoad background(front_end, steady, 3, 0, 1, load);
  std::thread worker([&] { background.run(stop); });
  for (std::uint8_t target = 1; target <= 20; ++target) {
    add("g", target, ram(1 << 20));
    auto came = events.next();
    BOOST_REQUIRE(came);
    BOOST_TEST(came->event == 1u);
    BOOST_TEST(came->reason == 1u);
    BOOST_TEST(static_cast<unsigned>(came->lun[0]) == 1u);
    BOOST_TEST(came->lun[1] == target);
    BOOST_TEST(static_cast<unsigned>(came->lun[2]) == 0u);
    settle(front_end, target);
    BOOST_TEST(service().remove_scsi_target("g", {target, 0}).has_value());
    auto went = events.next();
    BOOST_REQUIRE(went);
    BOOST_TEST(went->event == 1u);
    BOOST_TEST(went->reason == 2u);
    BOOST_TEST(went->lun[1] == target);
    BOOST_TEST(test_unit_ready(front_end, target) == "virtio-scsi response 3");
  }
  stop = true;
  worker.join();
  const LoadResult result = background.result();
  for (const auto& text : result.what) BOOST_TEST_MESSAGE(text);
  BOOST_TEST(result.errors == 0u);
  BOOST_TEST(result.requests > 0u);
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(a_disk_removed_under_load_ends_its_requests_and_is_let_go) {
  FrontEnd front_end(options_for(ServiceFixture::scsi("g")));
  auto disk = ram();
  std::weak_ptr<bdev::Bdev> watch = disk;
  add("g", 1, std::move(disk));
  front_end.start();
  settle(front_end, 1);
  std::atomic<bool> stop{false};
  LoadOptions load{.length_bytes = 8 << 20, .queue_depth = 32, .verify = false};
  const ScsiDisk target(1, 0, 512);
  QueueLoad first(front_end, target, 2, 0, 2, load), second(front_end, target, 3, 1, 2, load);
  std::thread a([&] { first.run(stop); }), b([&] { second.run(stop); });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (service().sessions().at(0).requests < 1000 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::yield();
  BOOST_TEST(service().remove_scsi_target("g", {1, 0}).has_value());
  // Nothing of it is left in the service when the call returns.
  BOOST_TEST(watch.expired());
  stop = true;
  a.join();
  b.join();
  BOOST_TEST(first.result().requests + second.result().requests > 0u);
  for (const auto& load_result : {first.result(), second.result()}) {
    for (const auto& text : load_result.what) BOOST_TEST((text.find("response 3") != std::string::npos), text);
  }
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(events_beyond_the_lent_buffers_wait_and_none_is_lost_below_the_bound) {
  FrontEnd front_end(options_for(ServiceFixture::scsi("g")));
  front_end.start();
  for (std::uint16_t target = 0; target < 40; ++target) add("g", target, ram(1 << 20));
  ScsiEvents events(front_end, 4);
  std::set<unsigned> seen;
  for (int i = 0; i < 40; ++i) {
    auto event = events.next();
    BOOST_REQUIRE(event);
    BOOST_TEST(event->event == 1u);
    seen.insert(event->lun[1]);
  }
  BOOST_TEST(seen.size() == 40u);
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(more_events_than_the_bound_end_in_events_missed) {
  FrontEnd front_end(options_for(ServiceFixture::scsi("g")));
  front_end.start();
  for (int round = 0; round < 150; ++round) {
    add("g", 9, ram(1 << 20));
    BOOST_REQUIRE(service().remove_scsi_target("g", {9, 0}).has_value());
  }
  ScsiEvents events(front_end, 4);
  auto event = events.next();
  BOOST_REQUIRE(event);
  BOOST_TEST((event->event & 0x80000000) != 0u);
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(task_management_is_answered) {
  FrontEnd front_end(options_for(ServiceFixture::scsi("g")));
  add("g", 2, ram());
  front_end.start();
  settle(front_end, 2);
  struct __attribute__((packed)) Tmf {
    std::uint32_t type = 0;
    std::uint32_t subtype;
    std::uint8_t lun[8];
    std::uint64_t tag;
  };
  std::byte* memory = front_end.ram().allocate(64);
  const auto manage = [&](std::uint32_t subtype, std::uint8_t target, std::uint8_t lun = 0) {
    const Tmf tmf{.subtype = subtype, .lun = {1, target, 0x40, lun}, .tag = 5};
    std::memcpy(memory, &tmf, sizeof(tmf));
    memory[32] = std::byte{kNoAnswer};
    const Segment segments[] = {{front_end.ram().guest_addr(memory), sizeof(tmf), false},
                                {front_end.ram().guest_addr(memory + 32), 1, true}};
    run_request(front_end, kScsiControlQueue, segments);
    return std::to_integer<int>(memory[32]);
  };
  BOOST_TEST(manage(0, 2) == 0);      // ABORT TASK of a task that is not there
  BOOST_TEST(manage(5, 2) == 0);      // LOGICAL UNIT RESET
  BOOST_TEST(manage(6, 2) == 0);      // QUERY TASK: no such task
  BOOST_TEST(manage(2, 2) == 11);     // CLEAR ACA is rejected
  BOOST_TEST(manage(99, 2) == 11);    // no such function
  BOOST_TEST(manage(5, 3) == 3);      // no such target
  BOOST_TEST(manage(5, 2, 1) == 12);  // no such LUN
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(asynchronous_notification_has_nothing_to_offer) {
  FrontEnd front_end(options_for(ServiceFixture::scsi("g")));
  add("g", 2, ram());
  front_end.start();
  struct __attribute__((packed)) An {
    std::uint32_t type;
    std::uint8_t lun[8];
    std::uint32_t events;
  };
  std::byte* memory = front_end.ram().allocate(64);
  for (const std::uint32_t type : {1u, 2u}) {
    const An request{type, {1, 2, 0x40, 0}, 2};
    std::memcpy(memory, &request, sizeof(request));
    std::memset(memory + 32, 0xee, 5);
    const Segment segments[] = {{front_end.ram().guest_addr(memory), sizeof(request), false},
                                {front_end.ram().guest_addr(memory + 32), 5, true}};
    BOOST_TEST(run_request(front_end, kScsiControlQueue, segments) == 5u);
    BOOST_TEST(std::all_of(memory + 32, memory + 37, [](std::byte b) { return b == std::byte{0}; }));
  }
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(adding_the_same_again_succeeds_and_something_else_is_refused) {
  ServiceFixture::scsi("g");
  auto disk = ram();
  const vhost::DiskSpec spec{disk, uuid(9), false};
  BOOST_TEST(service().add_scsi_target("g", {0, 0}, spec).has_value());
  BOOST_TEST(service().add_scsi_target("g", {0, 0}, spec).has_value());
  const auto other = service().add_scsi_target("g", {0, 0}, {ram(), uuid(8), false});
  BOOST_REQUIRE(!other);
  BOOST_TEST((other.error().code == ErrorCode::kExists));
  const auto busy = service().remove_scsi_controller("g");
  BOOST_REQUIRE(!busy);
  BOOST_TEST((busy.error().code == ErrorCode::kBusy));
  BOOST_TEST(service().remove_scsi_target("g", {0, 0}).has_value());
  BOOST_TEST(service().remove_scsi_target("g", {0, 0}).has_value());
  BOOST_TEST(service().remove_scsi_controller("g").has_value());
}

// A guest that comes back while its disks are still being put back would see them gone.
BOOST_AUTO_TEST_CASE(held_sockets_open_when_all_disks_are_there) {
  const std::string held_directory = directory() + "/held";
  auto held = vhost::VhostService::start(reactors(), {.socket_dir = held_directory, .hold_sockets = true});
  BOOST_REQUIRE(held.has_value());
  const std::string socket = (*held)->ensure_scsi_controller("g", 1).value();
  BOOST_REQUIRE((*held)->create_blk("b", 1, {ram(), uuid(1), false}).has_value());
  BOOST_TEST(!std::filesystem::exists(socket));
  BOOST_TEST(!std::filesystem::exists(held_directory + "/blk-b.sock"));
  BOOST_REQUIRE((*held)->add_scsi_target("g", {3, 0}, {ram(), uuid(3), false}).has_value());
  (*held)->listen();
  BOOST_TEST(std::filesystem::exists(held_directory + "/blk-b.sock"));
  FrontEnd front_end(options_for(socket, 1));
  front_end.start();
  BOOST_TEST(test_unit_ready(front_end, 3) == "");
  // What comes later is there at once.
  BOOST_TEST(std::filesystem::exists((*held)->ensure_scsi_controller("h", 1).value()));
}

// The most that a controller holds. REPORT LUNS, INQUIRY and data through each.
BOOST_AUTO_TEST_CASE(a_controller_holds_255_targets) {
  constexpr unsigned kTargets = 255;
  FrontEndOptions options = options_for(ServiceFixture::scsi("g"));
  options.ram_bytes = 64 << 20;
  FrontEnd front_end(options);
  for (std::uint16_t target = 0; target < kTargets; ++target) add("g", target, ram(1 << 20));
  BOOST_TEST(!service().add_scsi_target("g", {kTargets, 0}, {ram(), uuid(7), false}).has_value());
  front_end.start();
  IoSlot slot(front_end.ram(), 4096);
  std::vector<std::unique_ptr<ScsiDisk>> disks;
  std::set<std::string> identities;
  for (unsigned target = 0; target < kTargets; ++target) {
    const auto number = static_cast<std::uint8_t>(target);
    disks.push_back(std::make_unique<ScsiDisk>(number, 0, 512));
    const ScsiDisk& disk = *disks.back();
    const std::uint16_t queue = static_cast<std::uint16_t>(2 + target % 2);
    settle(front_end, number);
    const std::uint8_t report[12] = {0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0};
    run_request(front_end, queue, disk.command(front_end.ram(), slot, report, 0, 256));
    BOOST_REQUIRE(disk.verdict(slot) == "");
    // One LUN, which is 0.
    BOOST_TEST(std::to_integer<int>(slot.data[3]) == 8);
    BOOST_TEST(std::all_of(slot.data + 8, slot.data + 16, [](std::byte b) { return b == std::byte{0}; }));
    const std::uint8_t serial[6] = {0x12, 1, 0x80, 0, 252};
    run_request(front_end, queue, disk.command(front_end.ram(), slot, serial, 0, 252));
    BOOST_REQUIRE(disk.verdict(slot) == "");
    identities.emplace(reinterpret_cast<const char*>(slot.data) + 4, std::to_integer<std::size_t>(slot.data[3]));
    std::fill_n(slot.data, 4096, static_cast<std::byte>(target + 1));
    BOOST_REQUIRE(run_io(front_end, queue, disk, slot, Op::kWrite, 8192, 4096) == "");
  }
  BOOST_TEST(identities.size() == kTargets);
  for (unsigned target = 0; target < kTargets; ++target) {
    std::fill_n(slot.data, 4096, std::byte{0xa5});
    BOOST_REQUIRE(run_io(front_end, static_cast<std::uint16_t>(3 - target % 2), *disks[target], slot, Op::kRead, 8192,
                         4096) == "");
    BOOST_TEST(
        std::all_of(slot.data, slot.data + 4096, [&](std::byte b) { return b == static_cast<std::byte>(target + 1); }));
  }
  front_end.stop();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
