// Guests whose requests are wrong, too many, or in the way of changes. The classes are those of README.md.

#include <algorithm>
#include <random>

#include "initiator/growing_disk.h"
#include "initiator/hostile_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

using Cdb = std::vector<std::uint8_t>;

// A scsi guest of the bad kind with one disk.
class ScsiGuest {
 public:
  ScsiGuest(HostileFixture& fixture, std::shared_ptr<bdev::Bdev> bdev) : disk(0, 0, 512) {
    FrontEndOptions options = options_for(fixture.scsi("bad", 2));
    options.queues = 4;
    fixture.add("bad", 0, std::move(bdev));
    front_end = std::make_unique<FrontEnd>(options);
    front_end->start();
    slot = std::make_unique<IoSlot>(front_end->ram(), 65536);
    for (int i = 0; i < 8; ++i) {
      if (run({0, 0, 0, 0, 0, 0}).status == 0) return;
    }
    throw std::runtime_error("the disk does not become ready");
  }
  const ScsiResponse& run(const Cdb& cdb, std::uint32_t out_bytes = 0, std::uint32_t in_bytes = 0) {
    run_request(*front_end, 2, disk.command(front_end->ram(), *slot, cdb, out_bytes, in_bytes));
    return ScsiDisk::answer(*slot);
  }
  // The sense key of a command that must not succeed.
  int refused(const Cdb& cdb, std::uint32_t out_bytes = 0, std::uint32_t in_bytes = 0) {
    const ScsiResponse& answer = run(cdb, out_bytes, in_bytes);
    return answer.response == 0 && answer.status == 2 && answer.sense_len >= 8 ? answer.sense[2] & 0xf : -1;
  }
  void put(std::initializer_list<std::uint8_t> bytes) {
    std::memset(slot->data, 0, 64);
    std::transform(bytes.begin(), bytes.end(), slot->data, [](std::uint8_t byte) { return std::byte{byte}; });
  }

  const ScsiDisk disk;
  std::unique_ptr<FrontEnd> front_end;
  std::unique_ptr<IoSlot> slot;
};

constexpr int kIllegalRequest = 5;

BOOST_FIXTURE_TEST_SUITE(hostile_requests, HostileFixture)

// ---- Class 9: ends and changes in the middle of everything.

BOOST_AUTO_TEST_CASE(memory_is_hot_plugged_and_unplugged_under_load) {
  FrontEnd front_end(options_for(socket));
  front_end.start();
  std::atomic<bool> stop{false};
  const BlkDisk disk;
  QueueLoad load(front_end, disk, 0, 0, 1, {.length_bytes = 8 << 20, .queue_depth = 8});
  std::thread worker([&] { load.run(stop); });
  const Fd file(memory_file(1 << 20));
  struct {
    std::uint64_t padding = 0;
    MemoryRegion region{0x40000000, 1 << 20, 0x10000, 0};
  } slot;
  for (int i = 0; i < 50; ++i) {
    front_end.request(VhostUserRequest::kAddMemReg, slot, file.span());
    front_end.request(VhostUserRequest::kRemMemReg, slot);
  }
  for (int i = 0; i < 20; ++i) front_end.set_mem_table();
  stop = true;
  worker.join();
  BOOST_TEST(load.result().errors == 0u);
  BOOST_TEST(load.result().requests > 0u);
  front_end.stop();
}
BOOST_AUTO_TEST_CASE(connections_that_end_with_requests_in_flight_leave_nothing_behind) {
  for (int round = 0; round < 30; ++round) {
    FrontEnd front_end(options_for(socket));
    front_end.start();
    std::vector<std::unique_ptr<IoSlot>> slots;
    for (int i = 0; i < 16; ++i) {
      slots.push_back(std::make_unique<IoSlot>(front_end.ram(), 65536));
      const auto segments = BlkDisk().build(front_end.ram(), *slots.back(), i % 2 ? Op::kRead : Op::kWrite,
                                            65536U * static_cast<unsigned>(i), 65536, 0);
      BOOST_REQUIRE(front_end.ring(0).add(segments, 0));
    }
    front_end.ring(0).show();
    front_end.kick(0);
    front_end.disconnect();
  }
  check_still_served();
}

BOOST_AUTO_TEST_CASE(removal_reset_and_growth_at_once_lose_no_request_and_leave_a_disk) {
  constexpr std::uint64_t kSmall = 4 << 20;
  auto disk = std::make_shared<GrowingDisk>(ram(64 << 20), kSmall);
  ScsiGuest guest(*this, disk);
  std::atomic<bool> stop{false};
  std::thread changes([&] {
    for (std::uint64_t i = 1; i <= 40; ++i) {
      disk->grow(kSmall + i * 65536);
      BOOST_TEST(service().remove_scsi_target("bad", {0, 0}).has_value());
      add("bad", 0, disk);
    }
    stop = true;
  });
  // LOGICAL UNIT RESET on the control queue (VIRTIO 1.2 5.6.6.2), reads on a request queue: each is answered.
  std::byte* reset = guest.front_end->ram().allocate(64);
  const std::uint32_t words[2] = {0, 5};
  std::memcpy(reset, words, sizeof(words));
  reset[8] = std::byte{1};
  reset[10] = std::byte{0x40};
  const Segment segments[] = {{guest.front_end->ram().guest_addr(reset), 24, false},
                              {guest.front_end->ram().guest_addr(reset + 32), 1, true}};
  int answers = 0;
  while (!stop) {
    run_request(*guest.front_end, 0, segments);
    guest.run({0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}, 0, 4096);
    ++answers;
  }
  changes.join();
  BOOST_TEST(answers > 0);
  BOOST_TEST(wait_until([&] { return guest.run({0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}, 0, 4096).status == 0; }));
  guest.front_end->stop();
}

// ---- Class 10: lengths in CDBs and parameter lists.

BOOST_AUTO_TEST_CASE(allocation_lengths_are_kept_to) {
  ScsiGuest guest(*this, ram());
  const std::vector<Cdb> cdbs = {
      {0x12, 0, 0, 0, 0, 0},     // INQUIRY
      {0x12, 1, 0x83, 0, 0, 0},  // VPD pages
      {0x12, 1, 0xb0, 0, 0, 0},
      {0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},                 // REPORT LUNS
      {0x1a, 0, 0x3f, 0, 0, 0},                                // MODE SENSE
      {0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},  // READ CAPACITY (16)
      {0x5e, 0, 0, 0, 0, 0, 0, 0, 0, 0},                       // PERSISTENT RESERVE IN
      {0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},              // REPORT SUPPORTED OPERATION CODES
  };
  constexpr std::size_t kRoom = 4096;
  for (const Cdb& wanted : cdbs) {
    // Where the allocation length's last byte is, by the length of the CDB.
    const std::size_t at = wanted.size() == 6 ? 4 : wanted.size() == 10 ? 8 : wanted.size() == 12 ? 9 : 13;
    for (const std::uint32_t length : {0u, 1u, 7u, 255u}) {
      Cdb cdb = wanted;
      cdb[at] = static_cast<std::uint8_t>(length);
      std::memset(guest.slot->data, 0x5a, kRoom);
      BOOST_TEST(guest.run(cdb, 0, kRoom).response == 0);
      const bool kept = std::all_of(guest.slot->data + length, guest.slot->data + kRoom,
                                    [](std::byte byte) { return byte == std::byte{0x5a}; });
      BOOST_TEST(kept, "opcode " << int{cdb[0]} << " with allocation length " << length);
    }
  }
  guest.front_end->stop();
}
BOOST_AUTO_TEST_CASE(counts_in_parameter_lists_are_not_believed) {
  ScsiGuest guest(*this, ram());
  // UNMAP whose descriptors go on past the list.
  guest.put({0xff, 0xfe, 0xff, 0xf0});
  BOOST_TEST(guest.refused({0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, 24) == kIllegalRequest);
  // Of a block past the end, and of more blocks than there are numbers.
  guest.put({0, 22, 0, 16, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff});
  BOOST_TEST(guest.refused({0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, 24) == kIllegalRequest);
  // PERSISTENT RESERVE OUT and MODE SELECT with lists that are too short or too long.
  for (const std::uint8_t length : {0, 1, 23, 25}) {
    BOOST_TEST(guest.refused({0x5f, 0, 0, 0, 0, 0, 0, 0, length, 0}, length) == kIllegalRequest);
  }
  guest.put({0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0x0a, 0xff});
  BOOST_TEST(guest.refused({0x15, 0x10, 0, 0, 14, 0}, 14) == kIllegalRequest);
  // EXTENDED COPY with more targets than fit.
  guest.put({0, 0, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff});
  BOOST_TEST(guest.refused({0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0}, 16) == kIllegalRequest);
  guest.front_end->stop();
}
BOOST_AUTO_TEST_CASE(any_cdb_with_any_data_is_answered) {
  ScsiGuest guest(*this, ram());
  const unsigned seed = std::random_device{}();
  BOOST_TEST_MESSAGE("seed " << seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 3000; ++i) {
    Cdb cdb(32);
    for (auto& byte : cdb) byte = static_cast<std::uint8_t>(random() % 3 ? random() % 4 : random());
    cdb[0] = static_cast<std::uint8_t>(random());
    for (int k = 0; k < 64; ++k) guest.slot->data[k] = static_cast<std::byte>(random());
    guest.run(cdb, random() % 2 ? static_cast<std::uint32_t>(random() % 8192) : 0,
              random() % 2 ? static_cast<std::uint32_t>(random() % 8192) : 0);
  }
  guest.front_end->stop();
}

// ---- Class 11: blk requests.

BOOST_AUTO_TEST_CASE(sectors_that_overflow_or_lie_past_the_end_fail_the_request) {
  for (const std::uint64_t sector :
       {std::uint64_t{16 << 20} / 512, UINT64_MAX, UINT64_MAX / 512, UINT64_MAX / 512 + 1}) {
    fail_request(
        *this,
        [sector](RawRing& ring) {
          const BlkHeader header{kBlkIn, 0, sector};
          std::memcpy(ring.data, &header, sizeof(header));
        },
        kBlkIoError);
  }
}
BOOST_AUTO_TEST_CASE(discards_of_more_segments_or_with_unknown_flags_fail_the_request) {
  struct {
    std::uint32_t type;
    std::uint32_t bytes;
    BlkRange range;
    int status;
  } const wrong[] = {
      {kBlkDiscard, 32, {0, 8, 0}, kBlkIoError},
      {kBlkDiscard, 15, {0, 8, 0}, kBlkIoError},
      {kBlkDiscard, 16, {UINT64_MAX / 512, 8, 0}, kBlkIoError},
      {kBlkDiscard, 16, {0, 0xffffffff, 0}, kBlkIoError},
      {kBlkDiscard, 16, {0, 8, 1}, kBlkUnsupported},
      {kBlkWriteZeroes, 16, {0, 8, 0x80000000}, kBlkUnsupported},
      {kBlkWriteZeroes, 65536, {0, 8, 0}, kBlkIoError},
  };
  for (const auto& request : wrong) {
    fail_request(
        *this,
        [&request](RawRing& ring) {
          const BlkHeader header{request.type, 0, 0};
          std::memcpy(ring.data, &header, sizeof(header));
          std::memcpy(ring.data + 512, &request.range, sizeof(request.range));
          ring.descs()[1].len = request.bytes;
          ring.descs()[1].flags = kDescNext;
        },
        request.status);
  }
}
BOOST_AUTO_TEST_CASE(a_read_only_disk_is_not_written_whatever_the_request) {
  auto disk = ram();
  FrontEnd front_end(options_for(blk("locked", disk, 2, /*read_only=*/true)));
  front_end.start();
  IoSlot slot(front_end.ram(), 4096);
  std::memset(slot.data, 0x77, 4096);
  for (const Op op : {Op::kWrite, Op::kDiscard, Op::kWriteZeroes}) {
    BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, op, 0, 4096) != "");
  }
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kRead, 0, 4096) == "");
  BOOST_TEST(std::all_of(slot.data, slot.data + 4096, [](std::byte byte) { return byte == std::byte{0}; }));
  front_end.stop();
}

// ---- Class 12: one queue that starves the others.

BOOST_AUTO_TEST_CASE(a_guest_that_never_lets_up_leaves_the_others_their_turn) {
  FrontEndOptions options = options_for(socket);
  options.ring.size = 1024;
  FrontEnd front_end(options);
  front_end.start();
  std::atomic<bool> stop{false};
  const BlkDisk disk;
  std::vector<std::unique_ptr<QueueLoad>> loads;
  std::vector<std::thread> threads;
  // Deep enough that the queue is never empty, on every reactor.
  for (std::uint16_t i = 0; i < 2; ++i) {
    loads.push_back(std::make_unique<QueueLoad>(
        front_end, disk, i, i, 2,
        LoadOptions{
            .length_bytes = 8 << 20, .queue_depth = 300, .read_percent = 100, .verify = false, .use_calls = false}));
    threads.emplace_back([&stop, load = loads.back().get()] { load->run(stop); });
  }
  const std::uint64_t before = requests_of(good_socket);
  BOOST_TEST(wait_until([&] { return requests_of(good_socket) > before + 500; }));
  stop = true;
  for (auto& thread : threads) thread.join();
  front_end.stop();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
