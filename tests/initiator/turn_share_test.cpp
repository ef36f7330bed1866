// What one guest begins in one turn of a reactor, however many queues it has: the others on the reactor wait that long.

#include <algorithm>
#include <atomic>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <latch>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"
#include "protocol/virtio_scsi.h"

namespace pollux::initiator {
namespace {

// Zeros that are read at once, after so much work as a test says; counts what a turn of the reactor brings.
class TurnCountingDisk final : public bdev::Bdev {
 public:
  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return 16 << 20; }
  std::uint32_t block_bytes() const override { return 512; }
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    co_return std::make_unique<CountingChannel>(*this, reactor);
  }

  std::atomic<std::uint64_t> work_us{0};
  std::atomic<std::uint64_t> requests{0};
  // Of the turns that have ended.
  std::atomic<std::uint64_t> most_requests{0};
  std::atomic<std::uint64_t> most_bytes{0};

 private:
  class CountingChannel final : public bdev::Channel, public reactor::Poller {
   public:
    CountingChannel(TurnCountingDisk& disk, reactor::Reactor& reactor) : disk_(disk), reactor_(reactor) {
      reactor_.add_poller(*this);
    }
    ~CountingChannel() override { reactor_.remove_poller(*this); }
    void submit(bdev::IoRequest& request) override {
      ++requests_;
      ++disk_.requests;
      bytes_ += request.length_bytes;
      for (const std::uint64_t end_ns = monotonic_ns() + disk_.work_us * 1000; monotonic_ns() < end_ns;) {
      }
      for (std::uint16_t i = 0; i < request.iov_count; ++i)
        std::memset(request.iov[i].iov_base, 0, request.iov[i].iov_len);
      request.status = bdev::IoStatus::kOk;
      request.complete(request);
    }
    // Once a turn.
    unsigned poll() override {
      disk_.most_requests = std::max(disk_.most_requests.load(), requests_);
      disk_.most_bytes = std::max(disk_.most_bytes.load(), bytes_);
      requests_ = bytes_ = 0;
      return 0;
    }
    bool arm() override { return true; }

   private:
    TurnCountingDisk& disk_;
    reactor::Reactor& reactor_;
    std::uint64_t requests_ = 0;
    std::uint64_t bytes_ = 0;
  };
  const std::string name_ = "counting";
};

constexpr std::uint16_t kQueues = 64;
// architecture.md, "Time is shared by turns".
constexpr std::uint64_t kBatch = 32;
constexpr std::uint64_t kRequestsPerTurn = 128;
constexpr std::uint64_t kBytesPerTurn = 512 << 10;

struct Fixture : ServiceFixture {
  Fixture() : ServiceFixture(1) {}

  // Each queue has `depth` reads of so many bytes when the reactor comes to look.
  void read_at_once(bool packed, unsigned depth, std::uint32_t bytes) {
    FrontEndOptions options;
    options.socket_path = blk("guest", disk, kQueues);
    options.queues = kQueues;
    options.ring = {.size = 128, .packed = packed, .indirect = true};
    options.ram_bytes = 64 << 20;
    FrontEnd guest(options);
    guest.start();
    std::latch shown(1);
    std::atomic<bool> held = false;
    reactors().main().post([&] {
      held = true;
      shown.wait();
    });
    BOOST_REQUIRE(wait_until([&] { return held.load(); }));
    // All into the same memory.
    const IoSlot data(guest.ram(), bytes);
    std::vector<IoSlot> slots;
    for (std::uint16_t queue = 0; queue < kQueues; ++queue) {
      for (unsigned i = 0; i < depth; ++i) {
        IoSlot& slot = slots.emplace_back(guest.ram(), 0);
        slot.data = data.data;
        BOOST_REQUIRE(guest.ring(queue).add(BlkDisk().build(guest.ram(), slot, Op::kRead, 0, bytes, 0), 1));
      }
      guest.ring(queue).show();
      guest.kick(queue);
    }
    shown.count_down();
    unsigned answers = 0;
    BOOST_TEST(wait_until([&] {
      for (std::uint16_t queue = 0; queue < kQueues; ++queue) {
        while (guest.ring(queue).take()) ++answers;
      }
      return answers == kQueues * depth;
    }));
    for (const IoSlot& slot : slots) BOOST_TEST(BlkDisk().verdict(slot) == "");
  }

  std::shared_ptr<TurnCountingDisk> disk = std::make_shared<TurnCountingDisk>();
};

const auto kRings = boost::unit_test::data::make({false, true});

BOOST_FIXTURE_TEST_SUITE(turn_share, Fixture)

BOOST_DATA_TEST_CASE(small_requests_of_all_queues, kRings, packed) {
  read_at_once(packed, 64, 512);
  BOOST_TEST_MESSAGE("at most " << disk->most_requests << " requests in a turn");
  BOOST_TEST(disk->most_requests >= kRequestsPerTurn);
  BOOST_TEST(disk->most_requests < kRequestsPerTurn + kBatch);
}

BOOST_DATA_TEST_CASE(bytes_of_all_queues, kRings, packed) {
  constexpr std::uint64_t kBytes = 128 << 10;
  read_at_once(packed, 3, kBytes);
  BOOST_TEST_MESSAGE("at most " << (disk->most_bytes >> 10) << " KiB in a turn");
  BOOST_TEST(disk->most_bytes >= kBytesPerTurn);
  // One queue's batch more, which the next queue began before.
  BOOST_TEST(disk->most_bytes < kBytesPerTurn + 3 * kBytes);
}

// What ends requests that take too long must not wait for them: all queues spend their guest's turns for a second or two.
BOOST_AUTO_TEST_CASE(task_management_has_its_turn_beside_busy_queues) {
  constexpr unsigned kDepth = 64;
  const ScsiDisk target(0, 0, 512);
  FrontEndOptions options;
  options.socket_path = scsi("guest", kQueues);
  options.queues = kQueues + 2;
  options.ring = {.size = 128, .packed = false, .indirect = true};
  options.ram_bytes = 64 << 20;
  add("guest", 0, disk);
  FrontEnd guest(options);
  guest.start();
  IoSlot first(guest.ram(), 0);
  const std::uint8_t test_unit_ready[6] = {};
  run_request(guest, target.first_queue(), target.command(guest.ram(), first, test_unit_ready, 0, 0));
  disk->work_us = 300;
  const IoSlot data(guest.ram(), 512);
  std::vector<IoSlot> slots;
  for (std::uint16_t queue = 2; queue < options.queues; ++queue) {
    for (unsigned i = 0; i < kDepth; ++i) {
      IoSlot& slot = slots.emplace_back(guest.ram(), 0);
      slot.data = data.data;
      BOOST_REQUIRE(guest.ring(queue).add(target.build(guest.ram(), slot, Op::kRead, 0, 512, 0), 1));
    }
    guest.ring(queue).show();
    guest.kick(queue);
  }
  BOOST_REQUIRE(wait_until([&] { return disk->requests >= kDepth; }));
  IoSlot query(guest.ram(), 4096);
  constexpr std::uint32_t kQueryTaskSet = 7;
  const struct __attribute__((packed)) {
    std::uint32_t type = protocol::kScsiControlTmf;
    protocol::ScsiTmfRequest request{.subtype = kQueryTaskSet, .lun = {1, 0, 0x40, 0}, .id = 0};
  } tmf;
  std::memcpy(query.data, &tmf, sizeof(tmf));
  const Segment segments[] = {{guest.ram().guest_addr(query.data), sizeof(tmf), false},
                              {guest.ram().guest_addr(query.data) + sizeof(tmf), 1, true}};
  const std::uint64_t before = disk->requests;
  run_request(guest, 0, segments);
  const std::uint64_t meanwhile = disk->requests - before;
  BOOST_TEST_MESSAGE(meanwhile << " requests of " << kQueues * kDepth << " were served before the answer");
  BOOST_TEST(before < kQueues * kDepth / 2);
  BOOST_TEST(meanwhile < kQueues * kDepth / 4);
  disk->work_us = 0;
  BOOST_TEST(wait_until([&] {
    bool all = true;
    for (std::uint16_t queue = 2; queue < options.queues; ++queue) {
      while (guest.ring(queue).take()) {
      }
      all = all && guest.ring(queue).in_flight() == 0;
    }
    return all;
  }));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
