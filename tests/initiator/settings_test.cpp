// The cache mode of virtio-blk disks (VIRTIO 1.2 5.2.5, 5.2.6.2): whose choice it is, and that it outlives the service.

#include <boost/test/unit_test.hpp>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "initiator/service_fixture.h"

namespace pollux::initiator {
namespace {

constexpr std::uint64_t kFlushFeature = 1ULL << 9;
constexpr std::uint64_t kConfigWceFeature = 1ULL << 11;
constexpr std::uint32_t kWritebackField = 32;

// Answers at once and remembers what it was asked for.
class RecordingDisk final : public bdev::Bdev {
 public:
  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return 16 << 20; }
  std::uint32_t block_bytes() const override { return 512; }
  bdev::Opening open_channel(reactor::Reactor& /*reactor*/) override {
    co_return std::make_unique<RecordingChannel>(*this);
  }
  // Those since the last look.
  std::vector<std::pair<bdev::IoOp, std::uint8_t>> take_seen() {
    std::lock_guard lock(mutex_);
    return std::exchange(seen_, {});
  }

 private:
  struct RecordingChannel final : bdev::Channel {
    explicit RecordingChannel(RecordingDisk& recorder) : disk(recorder) {}
    void submit(bdev::IoRequest& request) override {
      {
        std::lock_guard lock(disk.mutex_);
        disk.seen_.emplace_back(request.op, request.flags);
      }
      request.status = bdev::IoStatus::kOk;
      request.complete(request);
    }
    RecordingDisk& disk;
  };

  const std::string name_ = "recording";
  std::mutex mutex_;
  std::vector<std::pair<bdev::IoOp, std::uint8_t>> seen_;
};

// Lives on as a file does; answers from a thread of its own.
class MemorySettings final : public vhost::SettingStore {
 public:
  Result<std::string> load(const Uuid& volume, const std::string& guest) override {
    std::lock_guard lock(mutex_);
    return states_[volume.to_string() + guest];
  }
  void save(const Uuid& volume, const std::string& guest, std::string state, bool /*over_power_loss*/,
            std::function<void(Status)> done) override {
    std::thread([this, key = volume.to_string() + guest, state = std::move(state), done = std::move(done)] {
      {
        std::lock_guard lock(mutex_);
        if (!failing_) states_[key] = state;
      }
      done(failing_ ? fail(ErrorCode::kIoError, "told to fail") : Status{});
    }).detach();
  }
  std::atomic<bool> failing_{false};

 private:
  std::mutex mutex_;
  std::map<std::string, std::string> states_;
};

// A service that can be replaced, as by a restart, over what lasts.
class Fixture {
 public:
  Fixture() { restart(); }
  ~Fixture() { service_.reset(); }

  void restart() {
    service_.reset();
    auto started = vhost::VhostService::start(
        fixture_.reactors(), {.socket_dir = fixture_.directory() + "/settings", .settings = settings_});
    if (!started) throw std::runtime_error(started.error().message);
    service_ = std::move(*started);
    socket_ = service_->create_blk("disk", 1, {disk_, ServiceFixture::uuid(9), false, "guest"}).value();
  }
  std::unique_ptr<FrontEnd> guest(std::uint64_t features) {
    FrontEndOptions options;
    options.socket_path = socket_;
    options.queues = 1;
    options.features = features;
    auto front_end = std::make_unique<FrontEnd>(options);
    front_end->start();
    return front_end;
  }
  static int writeback(FrontEnd& guest) { return std::to_integer<int>(guest.config(kWritebackField, 1)[0]); }
  static void set_writeback(FrontEnd& guest, bool on) {
    guest.set_config(kWritebackField, std::array{on ? std::byte{1} : std::byte{0}});
  }
  // Whether the guest's writes, and its write zeroes, are durable by themselves.
  bool durable(FrontEnd& guest) {
    IoSlot slot(guest.ram(), 4096);
    disk_->take_seen();
    BOOST_TEST(run_io(guest, 0, BlkDisk(), slot, Op::kWrite, 0, 4096) == "");
    BOOST_TEST(run_io(guest, 0, BlkDisk(), slot, Op::kWriteZeroes, 0, 4096) == "");
    const auto seen = disk_->take_seen();
    BOOST_REQUIRE_EQUAL(seen.size(), 2U);
    BOOST_TEST(((seen[0].second ^ seen[1].second) & bdev::IoRequest::kFua) == 0);
    return (seen[0].second & bdev::IoRequest::kFua) != 0;
  }

 protected:
  // Reactors and a folder; its own service has nothing to do.
  ServiceFixture fixture_;
  std::shared_ptr<RecordingDisk> disk_ = std::make_shared<RecordingDisk>();
  std::shared_ptr<MemorySettings> settings_ = std::make_shared<MemorySettings>();
  std::unique_ptr<vhost::VhostService> service_;
  std::string socket_;
};

constexpr std::uint64_t kBoth = kFlushFeature | kConfigWceFeature;

BOOST_FIXTURE_TEST_SUITE(settings, Fixture)

BOOST_AUTO_TEST_CASE(a_guests_cache_mode_outlives_the_service) {
  {
    auto front_end = guest(kBoth);
    BOOST_TEST(writeback(*front_end) == 1);
    BOOST_TEST(!durable(*front_end));
    set_writeback(*front_end, false);
    // What the cache held is durable before the guest is told that there is none.
    const auto seen = disk_->take_seen();
    BOOST_REQUIRE_EQUAL(seen.size(), 1U);
    BOOST_TEST((seen[0].first == bdev::IoOp::kFlush));
    front_end->stop();
  }
  for (int round = 0; round < 2; ++round) {
    restart();
    auto front_end = guest(kBoth);
    BOOST_TEST(writeback(*front_end) == 0);
    BOOST_TEST(durable(*front_end));
    front_end->stop();
  }
  {
    auto front_end = guest(kBoth);
    set_writeback(*front_end, true);
    front_end->stop();
  }
  restart();
  auto front_end = guest(kBoth);
  BOOST_TEST(writeback(*front_end) == 1);
  BOOST_TEST(!durable(*front_end));
  front_end->stop();
}

// VIRTIO 1.2 5.2.5.2.
BOOST_AUTO_TEST_CASE(a_driver_that_cannot_flush_starts_with_write_through) {
  {
    auto front_end = guest(kBoth);
    set_writeback(*front_end, true);
    front_end->stop();
  }
  {
    auto front_end = guest(kConfigWceFeature);
    BOOST_TEST(writeback(*front_end) == 0);
    BOOST_TEST(durable(*front_end));
    set_writeback(*front_end, true);
    BOOST_TEST(writeback(*front_end) == 1);
    BOOST_TEST(!durable(*front_end));
    front_end->stop();
  }
  restart();
  {
    auto front_end = guest(kConfigWceFeature);
    BOOST_TEST(writeback(*front_end) == 1);
    front_end->stop();
  }
  // Neither feature: there is no choice, and no cache.
  auto front_end = guest(0);
  BOOST_TEST(durable(*front_end));
  front_end->stop();
}

BOOST_AUTO_TEST_CASE(a_cache_mode_that_cannot_be_kept_is_refused_and_stays_as_it_was) {
  auto front_end = guest(kBoth);
  settings_->failing_ = true;
  BOOST_CHECK_THROW(set_writeback(*front_end, false), std::runtime_error);
  BOOST_TEST(writeback(*front_end) == 1);
  BOOST_TEST(!durable(*front_end));
  settings_->failing_ = false;
  set_writeback(*front_end, false);
  settings_->failing_ = true;
  BOOST_CHECK_THROW(set_writeback(*front_end, true), std::runtime_error);
  BOOST_TEST(writeback(*front_end) == 0);
  BOOST_TEST(durable(*front_end));
  front_end->stop();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
