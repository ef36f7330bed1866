// A command that a service did and died before it could say so: the front end's in-flight region names it, and the
// successor gets it again (vhost-user, Inflight I/O tracking).

#include <sys/mman.h>

#include <array>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

constexpr std::uint16_t kQueue = 2;
constexpr std::uint16_t kRingSize = 128;
constexpr std::uint8_t kGood = 0x00;
constexpr std::uint8_t kReservationConflict = 0x18;

// Lives on as a file does; answers from a thread of its own.
class MemoryReservations final : public vhost::ReservationStore {
 public:
  Result<std::string> load(const Uuid& /*volume*/) override {
    std::lock_guard lock(mutex_);
    return state_;
  }
  void save(const Uuid& /*volume*/, std::string state, bool /*over_power_loss*/,
            std::function<void(Status)> done) override {
    std::thread([this, state = std::move(state), done = std::move(done)] {
      {
        std::lock_guard lock(mutex_);
        state_ = state;
      }
      done({});
    }).detach();
  }

 private:
  std::mutex mutex_;
  std::string state_;
};

// The region's part of one split queue, as the vhost-user specification lays it out.
class Region {
 public:
  explicit Region(int fd) {
    address_ = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (address_ == MAP_FAILED) throw std::runtime_error("mmap");
  }
  ~Region() { ::munmap(address_, kBytes); }
  // As if the answer that was shown last had not been.
  void take_back_last_answer() {
    std::byte* part = static_cast<std::byte*>(address_) + kPartBytes * kQueue;
    std::uint16_t last_batch_head = 0, used_idx = 0;
    std::memcpy(&last_batch_head, part + 12, sizeof(last_batch_head));
    std::memcpy(&used_idx, part + 14, sizeof(used_idx));
    --used_idx;
    std::memcpy(part + 14, &used_idx, sizeof(used_idx));
    *(part + 16 + 16 * last_batch_head) = std::byte{1};
  }

 private:
  static constexpr std::size_t kPartBytes = (16 + 16 * kRingSize + 63) / 64 * 64;
  static constexpr std::size_t kBytes = kPartBytes * (kQueue + 1);
  void* address_;
};

class Fixture {
 public:
  Fixture() {
    restart();
    FrontEndOptions options;
    options.socket_path = socket_;
    options.queues = kQueue + 1;
    options.ring.size = kRingSize;
    options.inflight = true;
    front_end_ = std::make_unique<FrontEnd>(options);
    front_end_->start();
    slot_ = std::make_unique<IoSlot>(front_end_->ram(), 4096);
    run({0x00, 0, 0, 0, 0, 0}, 0);  // hears of the power on
  }

  void stop() {
    front_end_->disconnect();
    service_.reset();
  }
  void restart() {
    auto started = vhost::VhostService::start(
        fixture_.reactors(), {.socket_dir = fixture_.directory() + "/once", .reservations = reservations_});
    if (!started) throw std::runtime_error(started.error().message);
    service_ = std::move(*started);
    socket_ = service_->ensure_scsi_controller("guest", 1).value();
    BOOST_REQUIRE(service_->add_scsi_target("guest", {0, 0}, {disk_, ServiceFixture::uuid(9), false}));
  }
  // The status; data_out is in the slot.
  std::uint8_t run(std::vector<std::uint8_t> cdb, std::uint32_t out_bytes, std::uint32_t in_bytes = 0) {
    run_request(*front_end_, kQueue, target_.command(front_end_->ram(), *slot_, cdb, out_bytes, in_bytes));
    return ScsiDisk::answer(*slot_).status;
  }
  std::vector<std::uint8_t> reserve_out(std::uint8_t action, std::uint64_t key, std::uint64_t new_key) {
    std::memset(slot_->data, 0, 24);
    for (unsigned i = 0; i < 8; ++i) {
      slot_->data[i] = static_cast<std::byte>(key >> (56 - 8 * i));
      slot_->data[8 + i] = static_cast<std::byte>(new_key >> (56 - 8 * i));
    }
    return {0x5f, action, 0, 0, 0, 0, 0, 0, 24, 0};
  }
  // Has the command done, and everything but the command's effects taken back.
  void do_and_forget(const std::vector<std::uint8_t>& cdb) {
    DriverRing& ring = front_end_->ring(kQueue);
    auto* used_idx = reinterpret_cast<std::uint16_t*>(ring.addresses(kQueue).used_user_addr) + 1;
    const std::uint16_t before = __atomic_load_n(used_idx, __ATOMIC_ACQUIRE);
    BOOST_REQUIRE(ring.add(target_.command(front_end_->ram(), *slot_, cdb, 24, 0), 1));
    ring.show();
    front_end_->kick(kQueue);
    BOOST_REQUIRE(wait_until([&] { return __atomic_load_n(used_idx, __ATOMIC_ACQUIRE) != before; }));
    BOOST_REQUIRE(ScsiDisk::answer(*slot_).status == kGood);
    stop();
    Region(front_end_->inflight_fd()).take_back_last_answer();
    __atomic_store_n(used_idx, before, __ATOMIC_RELEASE);
    std::memset(slot_->answer, 0xff, sizeof(ScsiResponse));
  }
  // The status of the command that is handed in again.
  std::uint8_t after_restart() {
    restart();
    front_end_->reconnect();
    BOOST_REQUIRE(wait_until([&] { return front_end_->ring(kQueue).take().has_value(); }));
    return ScsiDisk::answer(*slot_).status;
  }

 protected:
  ServiceFixture fixture_;
  std::shared_ptr<bdev::Bdev> disk_ = ServiceFixture::ram();
  std::shared_ptr<MemoryReservations> reservations_ = std::make_shared<MemoryReservations>();
  std::unique_ptr<vhost::VhostService> service_;
  std::string socket_;
  const ScsiDisk target_{0, 0, 512};
  std::unique_ptr<FrontEnd> front_end_;
  std::unique_ptr<IoSlot> slot_;
};

BOOST_FIXTURE_TEST_SUITE(once, Fixture)

BOOST_AUTO_TEST_CASE(a_registration_that_was_done_before_the_service_died_is_not_done_again) {
  do_and_forget(reserve_out(0, 0, 0xabc));
  BOOST_TEST(after_restart() == kGood);
  // It is in effect: only the key tells this guest from one that has not registered.
  BOOST_TEST(run(reserve_out(0, 0, 0xdef), 24) == kReservationConflict);
  do_and_forget(reserve_out(0, 0xabc, 0xdef));
  BOOST_TEST(after_restart() == kGood);
  do_and_forget(reserve_out(3, 0xdef, 0));  // CLEAR
  BOOST_TEST(after_restart() == kGood);
  BOOST_TEST(run(reserve_out(0, 0, 0xabc), 24) == kGood);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
