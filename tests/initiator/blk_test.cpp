// virtio-blk through a real socket: what a driver relies on (VIRTIO 1.2 5.2).

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <filesystem>

#include "base/log.h"
#include "bdev/deep_stack.h"
#include "initiator/recording_disk.h"
#include "initiator/service_fixture.h"

namespace pollux::initiator {
namespace {

FrontEndOptions options_for(const std::string& socket) {
  FrontEndOptions options;
  options.socket_path = socket;
  return options;
}

struct Variant {
  const char* name;
  RingOptions ring;
  unsigned regions;
  std::uint32_t piece_bytes;
};
std::ostream& operator<<(std::ostream& out, const Variant& variant) {
  return out << variant.name;
}

const Variant kVariants[] = {
    {"split", {.size = 128}, 1, 0},
    {"split, indirect, event index", {.size = 64, .event_idx = true, .indirect = true}, 1, 512},
    {"split, direct chains over two regions", {.size = 256}, 2, 1024},
    {"packed", {.size = 128, .packed = true}, 1, 0},
    {"packed, indirect, event index", {.size = 100, .packed = true, .event_idx = true, .indirect = true}, 2, 512},
    {"packed, direct chains", {.size = 251, .packed = true}, 1, 1024},
};

BOOST_FIXTURE_TEST_SUITE(blk, ServiceFixture)

BOOST_AUTO_TEST_CASE(a_disk_whose_layers_need_more_than_a_request_has_is_refused) {
  BOOST_CHECK_THROW(blk("deep", bdev::test::make_too_deep(ram())), std::exception);
}

BOOST_DATA_TEST_CASE(reads_return_what_writes_wrote_on_every_kind_of_ring, boost::unit_test::data::make(kVariants),
                     variant) {
  FrontEndOptions options = options_for(blk("v", ram()));
  options.ring = variant.ring;
  options.ram_regions = variant.regions;
  FrontEnd front_end(options);
  front_end.start();
  LoadOptions load{.seed = 7,
                   .length_bytes = 8 << 20,
                   .piece_bytes = variant.piece_bytes,
                   .queue_depth = 16,
                   .flush_every = 50,
                   .requests = 20000};
  const LoadResult result = run_load(front_end, BlkDisk(), 2, load, true);
  for (const auto& text : result.what) BOOST_TEST_MESSAGE(text);
  BOOST_TEST(result.errors == 0u);
  BOOST_TEST(result.requests >= 40000u);
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(one_queue_alone_works_as_firmware_uses_it) {
  FrontEndOptions options = options_for(blk("v", ram()));
  FrontEnd front_end(options);
  front_end.start(std::uint16_t{0});
  IoSlot slot(front_end.ram(), 4096);
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kWrite, 0, 4096) == "");
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kFlush, 0, 0) == "");
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(queues_that_are_enabled_before_they_are_described_start_all_the_same) {
  FrontEndOptions options = options_for(blk("v", ram()));
  options.enable_first = true;
  FrontEnd front_end(options);
  front_end.start();
  IoSlot slot(front_end.ram(), 4096);
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kWrite, 0, 4096) == "");
  BOOST_TEST(run_io(front_end, 1, BlkDisk(), slot, Op::kRead, 0, 4096) == "");
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(configuration_space_describes_the_disk) {
  FrontEnd front_end(options_for(blk("v", ram(8 << 20, 4096), 2)));
  front_end.start();
  const auto config = front_end.config(0, 60);
  const auto field = [&]<typename T>(T, std::size_t offset) {
    T value;
    std::memcpy(&value, config.data() + offset, sizeof(value));
    return value;
  };
  BOOST_TEST(field(std::uint64_t{}, 0) == (8u << 20) / 512);  // capacity
  BOOST_TEST(field(std::uint32_t{}, 12) == 126u);             // seg_max
  BOOST_TEST(field(std::uint32_t{}, 20) == 4096u);            // blk_size
  BOOST_TEST(field(std::uint8_t{}, 32) == 1);                 // writeback
  BOOST_TEST(field(std::uint16_t{}, 34) == 2);                // num_queues
  BOOST_TEST(field(std::uint32_t{}, 40) == 1u);               // max_discard_seg
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(the_cache_mode_is_the_guests_to_choose) {
  FrontEnd front_end(options_for(blk("v", ram())));
  front_end.start();
  front_end.set_config(32, std::array{std::byte{0}});
  BOOST_TEST(std::to_integer<int>(front_end.config(32, 1)[0]) == 0);
  front_end.set_config(32, std::array{std::byte{1}});
  BOOST_TEST(std::to_integer<int>(front_end.config(32, 1)[0]) == 1);
  front_end.stop();
}

// VIRTIO 1.2 5.2.6.2: what is answered while writeback is 0, or to a driver that knows of no cache, is stable.
BOOST_AUTO_TEST_CASE(without_a_cache_all_that_a_request_changes_is_durable) {
  constexpr std::uint64_t kFlush = 1ULL << 9, kConfigWce = 1ULL << 11;
  for (const bool knows_the_cache : {true, false}) {
    auto disk = std::make_shared<RecordingDisk>(ram());
    FrontEndOptions options = options_for(blk("v", disk));
    if (knows_the_cache) options.features = kFlush | kConfigWce;
    FrontEnd front_end(options);
    front_end.start();
    IoSlot slot(front_end.ram(), 4096);
    for (const bool writeback : {true, false}) {
      if (knows_the_cache) front_end.set_config(32, std::array{std::byte{writeback}});
      // Turning the cache off flushes what it held.
      BOOST_TEST(disk->take_seen().size() == (knows_the_cache && !writeback ? 1u : 0u));
      for (const Op op : {Op::kWrite, Op::kDiscard, Op::kWriteZeroes}) {
        BOOST_TEST_CONTEXT("operation " << static_cast<int>(op) << ", writeback " << writeback) {
          BOOST_TEST(run_io(front_end, 1, BlkDisk(), slot, op, 65536, 4096) == "");
          const auto seen = disk->take_seen();
          BOOST_REQUIRE(seen.size() == 1u);
          const bool durable = (seen[0].flags & bdev::IoRequest::kFua) != 0;
          BOOST_TEST(durable == !(knows_the_cache && writeback));
        }
      }
    }
    front_end.stop();
    BOOST_TEST(service().remove_blk("v").has_value());
  }
}

BOOST_AUTO_TEST_CASE(discard_and_write_zeroes_leave_zeros) {
  FrontEnd front_end(options_for(blk("v", ram())));
  front_end.start();
  IoSlot slot(front_end.ram(), 4096);
  const BlkDisk disk;
  for (const Op op : {Op::kDiscard, Op::kWriteZeroes}) {
    std::memset(slot.data, 0x5a, 4096);
    BOOST_TEST(run_io(front_end, 0, disk, slot, Op::kWrite, 65536, 4096) == "");
    BOOST_TEST(run_io(front_end, 0, disk, slot, op, 65536, 4096) == "");
    BOOST_TEST(run_io(front_end, 1, disk, slot, Op::kRead, 65536, 4096) == "");
    BOOST_TEST(std::all_of(slot.data, slot.data + 4096, [](std::byte b) { return b == std::byte{0}; }));
  }
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(get_id_is_the_beginning_of_the_uuid) {
  FrontEnd front_end(options_for(blk("v", ram())));
  front_end.start();
  IoSlot slot(front_end.ram(), 4096);
  const BlkHeader header{kBlkGetId, 0, 0};
  std::memcpy(slot.header, &header, sizeof(header));
  const Segment segments[] = {{front_end.ram().guest_addr(slot.header), 16, false},
                              {front_end.ram().guest_addr(slot.data), 20, true},
                              {front_end.ram().guest_addr(slot.answer), 1, true}};
  BOOST_TEST(run_request(front_end, 0, segments) == 21u);
  BOOST_TEST(std::string(reinterpret_cast<const char*>(slot.data), 20) == uuid(1).to_string().substr(0, 20));
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(a_read_only_disk_refuses_writes_and_serves_reads) {
  FrontEnd front_end(options_for(blk("v", ram(), 2, true)));
  front_end.start();
  BOOST_TEST((front_end.offered() & bit(5)) != 0u);
  BOOST_TEST((front_end.offered() & (bit(13) | bit(14))) == 0u);
  IoSlot slot(front_end.ram(), 4096);
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kWrite, 0, 4096) == "virtio-blk status 1");
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kWriteZeroes, 0, 4096) == "virtio-blk status 1");
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kRead, 0, 4096) == "");
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(requests_that_make_no_sense_fail_alone) {
  FrontEnd front_end(options_for(blk("v", ram(16 << 20))));
  front_end.start();
  IoSlot slot(front_end.ram(), 8192);
  const auto run = [&](std::uint32_t type, std::uint64_t sector, std::uint32_t out_bytes, std::uint32_t in_bytes) {
    const BlkHeader header{type, 0, sector};
    std::memcpy(slot.header, &header, sizeof(header));
    slot.answer[0] = std::byte{kNoAnswer};
    std::vector<Segment> segments{{front_end.ram().guest_addr(slot.header), 16, false}};
    if (out_bytes) segments.push_back({front_end.ram().guest_addr(slot.data), out_bytes, false});
    if (in_bytes) segments.push_back({front_end.ram().guest_addr(slot.data), in_bytes, true});
    segments.push_back({front_end.ram().guest_addr(slot.answer), 1, true});
    run_request(front_end, 0, segments);
    return std::to_integer<int>(slot.answer[0]);
  };
  const std::uint64_t end = (16 << 20) / 512;
  BOOST_TEST(run(kBlkIn, end, 0, 512) == kBlkIoError);         // past the end
  BOOST_TEST(run(kBlkIn, end - 1, 0, 1024) == kBlkIoError);    // across the end
  BOOST_TEST(run(kBlkIn, UINT64_MAX, 0, 512) == kBlkIoError);  // sector * 512 overflows
  BOOST_TEST(run(kBlkIn, UINT64_MAX / 512, 0, 512) == kBlkIoError);
  BOOST_TEST(run(kBlkIn, 0, 0, 100) == kBlkIoError);  // no multiple of a sector
  BOOST_TEST(run(kBlkOut, 0, 513, 0) == kBlkIoError);
  BOOST_TEST(run(kBlkOut, end, 512, 0) == kBlkIoError);
  BOOST_TEST(run(77, 0, 0, 512) == kBlkUnsupported);  // no such request
  const auto range = [&](std::uint32_t type, BlkRange segment, std::uint32_t bytes = sizeof(BlkRange)) {
    std::memcpy(slot.data, &segment, sizeof(segment));
    return run(type, 0, bytes, 0);
  };
  BOOST_TEST(range(kBlkDiscard, {end, 8, 0}) == kBlkIoError);
  BOOST_TEST(range(kBlkDiscard, {0, 0xffffffff, 0}) == kBlkIoError);
  BOOST_TEST(range(kBlkDiscard, {0, 8, 1}) == kBlkUnsupported);      // unmap belongs to write zeroes
  BOOST_TEST(range(kBlkWriteZeroes, {0, 8, 2}) == kBlkUnsupported);  // reserved flag
  BOOST_TEST(range(kBlkWriteZeroes, {0, 8, 0}, 32) == kBlkIoError);  // more segments than announced
  BOOST_TEST(range(kBlkWriteZeroes, {0, 8, 0}, 15) == kBlkIoError);  // part of a segment
  BOOST_TEST(range(kBlkWriteZeroes, {0, 8, 1}) == kBlkOk);
  BOOST_TEST(run(kBlkIn, 0, 0, 512) == kBlkOk);
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(headers_and_status_may_be_scattered_over_descriptors) {
  FrontEnd front_end(options_for(blk("v", ram())));
  front_end.start();
  IoSlot slot(front_end.ram(), 4096);
  const BlkHeader header{kBlkIn, 0, 0};
  std::memcpy(slot.header, &header, sizeof(header));
  slot.data[512] = std::byte{kNoAnswer};
  const std::uint64_t head = front_end.ram().guest_addr(slot.header);
  const std::uint64_t data = front_end.ram().guest_addr(slot.data);
  // 16 bytes of header as 3 + 1 + 12; 512 bytes of data and the status byte as 200 + 313.
  const Segment segments[] = {
      {head, 3, false}, {head + 3, 1, false}, {head + 4, 12, false}, {data, 200, true}, {data + 200, 313, true}};
  BOOST_TEST(run_request(front_end, 0, segments) == 513u);
  BOOST_TEST(std::to_integer<int>(slot.data[512]) == kBlkOk);
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(two_connections_in_turn_find_the_same_data) {
  const std::string socket = blk("v", ram());
  for (std::uint8_t round = 0; round < 5; ++round) {
    FrontEnd front_end(options_for(socket));
    front_end.start();
    IoSlot slot(front_end.ram(), 4096);
    if (round > 0) {
      BOOST_TEST(run_io(front_end, 1, BlkDisk(), slot, Op::kRead, 4096, 4096) == "");
      BOOST_TEST(std::to_integer<int>(slot.data[17]) == round - 1);
    }
    std::memset(slot.data, round, 4096);
    BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kWrite, 4096, 4096) == "");
    if (round % 2 == 0) front_end.stop();
  }
}

BOOST_AUTO_TEST_CASE(removing_a_device_disconnects_its_front_end) {
  FrontEnd front_end(options_for(blk("v", ram())));
  front_end.start();
  BOOST_TEST(service().sessions().at(0).active_queues == 2u);
  BOOST_TEST(service().remove_blk("v").has_value());
  BOOST_TEST(front_end.wire().closed_by_peer());
  BOOST_TEST(service().sessions().empty());
  BOOST_TEST(service().remove_blk("v").has_value());
}

BOOST_AUTO_TEST_CASE(a_request_in_several_steps_is_one_operation_to_limits) {
  const auto disk = std::make_shared<RecordingDisk>(ram());
  FrontEndOptions options = options_for(blk("v", disk));
  options.ring.indirect = true;
  FrontEnd front_end(options);
  front_end.start();
  constexpr std::uint32_t kBytes = 8 << 20;
  IoSlot slot(front_end.ram(), kBytes);
  for (const auto& [op, kind] : {std::pair{Op::kWrite, bdev::IoOp::kWrite}, std::pair{Op::kRead, bdev::IoOp::kRead}}) {
    for (unsigned round = 0; round < 2; ++round) {
      disk->take_seen();
      BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, op, 0, kBytes, 1 << 20) == "");
      unsigned steps = 0;
      unsigned operations = 0;
      for (const auto& seen : disk->take_seen()) {
        if (seen.op != kind) continue;
        ++steps;
        if ((seen.flags & bdev::IoRequest::kContinues) == 0) ++operations;
      }
      BOOST_TEST(steps == 4u);
      BOOST_TEST(operations == 1u);
    }
  }
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(a_socket_that_cannot_be_opened_at_the_start_is_tried_again) {
  const std::string held = directory() + "/held";
  auto started = vhost::VhostService::start(reactors(), {.socket_dir = held, .hold_sockets = true});
  BOOST_REQUIRE(started.has_value());
  auto& other = **started;
  const auto socket = other.create_blk("v", 2, {ram(), uuid(1), false});
  BOOST_REQUIRE(socket.has_value());
  // A directory in its place cannot be unlinked.
  std::filesystem::create_directory(*socket);
  BOOST_REQUIRE(log::init("critical", "").has_value());
  other.listen();
  BOOST_REQUIRE(log::init("error", "").has_value());
  BOOST_REQUIRE(std::filesystem::is_directory(*socket));
  std::filesystem::remove(*socket);
  FrontEnd front_end(options_for(*socket));
  front_end.start();
  IoSlot slot(front_end.ram(), 4096);
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kRead, 0, 4096) == "");
  front_end.stop();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
