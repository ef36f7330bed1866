#pragma once
// What the tests of this room share: a block device that can be told to fail, wait and grow; and a bench of two
// reactors with a logical unit on it, to which a test sends CDBs and looks at the answers.

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/units.h"
#include "reactor/reactor.h"
#include "scsi/bytes.h"
#include "scsi/logical_unit.h"
#include "scsi/lun_channel.h"
#include "scsi/sense.h"
#include "scsi/target.h"
#include "scsi/task.h"

namespace pollux::scsi::test {

using Bytes = std::vector<std::uint8_t>;
inline constexpr auto kDeadline = std::chrono::seconds(30);

// Set once on one thread, awaited on another, which may destroy it then.
class Signal {
 public:
  void set() {
    std::lock_guard lock(mutex_);
    is_set_ = true;
    changed_.notify_all();
  }
  bool is_set() {
    std::lock_guard lock(mutex_);
    return is_set_;
  }
  bool wait() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kDeadline, [this] { return is_set_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_set_ = false;
};

// A device in memory. Requests complete inside submit() unless `defer` is set: then as a message of the reactor; or
// paused: then when the test resumes it.
class TestBdev : public bdev::Bdev, public std::enable_shared_from_this<TestBdev> {
 public:
  struct Options {
    std::uint64_t size_bytes = 4 * kMiB;
    std::uint32_t block_bytes = 512;
    std::uint32_t optimal_io_bytes = 512;
    bool read_only = false;
    bool supports_unmap = true;
    bool reports_extents = false;  // a block of zeros is not mapped
    bool defer = false;
  };
  struct Seen {
    bdev::IoOp op;
    std::uint64_t offset_bytes;
    std::uint64_t length_bytes;
    std::uint8_t flags;
  };

  explicit TestBdev(Options options) : options_(options), memory_(options.size_bytes) {}

  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override {
    std::lock_guard lock(mutex_);
    return memory_.size();
  }
  std::uint32_t block_bytes() const override { return options_.block_bytes; }
  std::uint32_t optimal_io_bytes() const override { return options_.optimal_io_bytes; }
  bool read_only() const override { return options_.read_only; }
  bool supports_unmap() const override { return options_.supports_unmap; }
  bool reports_extents() const override { return options_.reports_extents; }
  std::uint32_t unmap_granularity_bytes() const override { return options_.supports_unmap ? 4096 : 0; }
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    co_return std::unique_ptr<bdev::Channel>(new Channel(shared_from_this(), reactor));
  }

  // The next request of this kind fails; it changes nothing.
  void fail_next(bdev::IoOp op, bdev::IoStatus status) {
    std::lock_guard lock(mutex_);
    failure_ = {op, status};
  }
  void grow(std::uint64_t size_bytes) {
    {
      std::lock_guard lock(mutex_);
      memory_.resize(size_bytes);
    }
    notify_resized();
  }
  // Requests that come from now on are carried out by resume().
  void pause() {
    std::lock_guard lock(mutex_);
    pausing_ = true;
  }
  std::size_t paused() const {
    std::lock_guard lock(mutex_);
    return paused_requests_.size();
  }
  // Waits until so many are paused.
  void await_paused(std::size_t count) const {
    const auto end = std::chrono::steady_clock::now() + kDeadline;
    while (paused() < count && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    BOOST_REQUIRE_EQUAL(paused(), count);
  }
  void resume() {
    std::vector<std::pair<reactor::Reactor*, bdev::IoRequest*>> requests;
    {
      std::lock_guard lock(mutex_);
      pausing_ = false;
      requests.swap(paused_requests_);
    }
    for (auto [reactor, request] : requests) finish_on(*reactor, *request);
  }
  std::vector<Seen> seen() const {
    std::lock_guard lock(mutex_);
    return seen_;
  }
  void forget_seen() {
    std::lock_guard lock(mutex_);
    seen_.clear();
  }
  void fill(std::uint8_t byte) {
    std::lock_guard lock(mutex_);
    std::fill(memory_.begin(), memory_.end(), byte);
  }
  Bytes peek(std::uint64_t offset_bytes, std::uint64_t length_bytes) const {
    std::lock_guard lock(mutex_);
    return {memory_.begin() + static_cast<std::ptrdiff_t>(offset_bytes),
            memory_.begin() + static_cast<std::ptrdiff_t>(offset_bytes + length_bytes)};
  }
  void poke(std::uint64_t offset_bytes, const Bytes& bytes) {
    std::lock_guard lock(mutex_);
    std::copy(bytes.begin(), bytes.end(), memory_.begin() + static_cast<std::ptrdiff_t>(offset_bytes));
  }

 private:
  class Channel : public bdev::Channel {
   public:
    Channel(std::shared_ptr<TestBdev> bdev, reactor::Reactor& reactor) : bdev_(std::move(bdev)), reactor_(reactor) {}
    void submit(bdev::IoRequest& request) override { bdev_->take(reactor_, request); }

   private:
    std::shared_ptr<TestBdev> bdev_;
    reactor::Reactor& reactor_;
  };

  void take(reactor::Reactor& reactor, bdev::IoRequest& request) {
    {
      std::lock_guard lock(mutex_);
      seen_.push_back({request.op, request.offset_bytes, request.length_bytes, request.flags});
      if (pausing_) {
        paused_requests_.emplace_back(&reactor, &request);
        return;
      }
    }
    if (options_.defer) {
      finish_on(reactor, request);
    } else {
      request.status = execute(request);
      request.complete(request);
    }
  }
  void finish_on(reactor::Reactor& reactor, bdev::IoRequest& request) {
    reactor.post([this, &request] {
      request.status = execute(request);
      request.complete(request);
    });
  }
  bool has_data(std::uint64_t offset_bytes) const {
    const std::uint8_t* at = memory_.data() + offset_bytes;
    return std::any_of(at, at + options_.block_bytes, [](std::uint8_t byte) { return byte != 0; });
  }
  void find_extent(bdev::IoRequest& request) const {
    const bool mapped = has_data(request.offset_bytes);
    std::uint64_t length = options_.block_bytes;
    while (length < request.length_bytes && has_data(request.offset_bytes + length) == mapped) {
      length += options_.block_bytes;
    }
    request.length_bytes = length;
    request.flags = mapped ? bdev::IoRequest::kMapped : 0;
  }
  bdev::IoStatus execute(bdev::IoRequest& request) {
    std::lock_guard lock(mutex_);
    if (failure_ && failure_->first == request.op) {
      const bdev::IoStatus status = failure_->second;
      failure_.reset();
      return status;
    }
    if (request.op == bdev::IoOp::kFlush) return bdev::IoStatus::kOk;
    if (!range_fits(request.offset_bytes, request.length_bytes, memory_.size()) ||
        !is_aligned<std::uint64_t>(request.offset_bytes | request.length_bytes, options_.block_bytes)) {
      return bdev::IoStatus::kInvalid;
    }
    if (request.op == bdev::IoOp::kExtent) {
      if (!options_.reports_extents) return bdev::IoStatus::kInvalid;
      find_extent(request);
      return bdev::IoStatus::kOk;
    }
    std::uint8_t* at = memory_.data() + request.offset_bytes;
    if (request.op == bdev::IoOp::kUnmap || request.op == bdev::IoOp::kWriteZeroes) {
      std::memset(at, 0, request.length_bytes);
      return bdev::IoStatus::kOk;
    }
    std::uint64_t moved = 0;
    for (std::uint16_t i = 0; i < request.iov_count; ++i) {
      const iovec& piece = request.iov[i];
      if (moved + piece.iov_len > request.length_bytes) return bdev::IoStatus::kInvalid;
      if (request.op == bdev::IoOp::kRead) {
        std::memcpy(piece.iov_base, at + moved, piece.iov_len);
      } else {
        std::memcpy(at + moved, piece.iov_base, piece.iov_len);
      }
      moved += piece.iov_len;
    }
    // The contract of IoRequest: the pieces sum up to the length exactly.
    return moved == request.length_bytes ? bdev::IoStatus::kOk : bdev::IoStatus::kInvalid;
  }

  Options options_;
  std::string name_ = "test";
  mutable std::mutex mutex_;
  Bytes memory_;
  std::optional<std::pair<bdev::IoOp, bdev::IoStatus>> failure_;
  bool pausing_ = false;
  std::vector<std::pair<reactor::Reactor*, bdev::IoRequest*>> paused_requests_;
  std::vector<Seen> seen_;
};

// A store in memory that survives the logical unit, as a file does the process.
class TestStore : public ReservationStore {
 public:
  Result<std::string> load(const Uuid&) override { return state; }
  void save(const Uuid&, std::string new_state, Lasts new_lasts, std::function<void(Status)> done) override {
    if (failing) return done(fail(ErrorCode::kIoError, "told to fail"));
    state = std::move(new_state);
    lasts = new_lasts;
    ++saves;
    done({});
  }
  std::string state;
  Lasts lasts = Lasts::kUntilPowerLoss;
  int saves = 0;
  bool failing = false;
};

// The same for settings. Answers come from a thread of its own, in order, and not while the test pauses them.
class TestSettings : public SettingStore {
 public:
  ~TestSettings() override {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
      pausing_ = false;
    }
    changed_.notify_all();
    thread_.join();
  }
  Result<std::string> load(const Uuid&, const std::string& guest) override {
    std::lock_guard lock(mutex_);
    return states_[guest];
  }
  void save(const Uuid&, const std::string& guest, std::string state, Lasts lasts,
            std::function<void(Status)> done) override {
    {
      std::lock_guard lock(mutex_);
      changes_.push_back({guest, std::move(state), lasts, std::move(done)});
    }
    changed_.notify_all();
  }
  void pause(bool pausing) {
    {
      std::lock_guard lock(mutex_);
      pausing_ = pausing;
    }
    changed_.notify_all();
  }
  void fail(bool failing) {
    std::lock_guard lock(mutex_);
    failing_ = failing;
  }
  std::size_t waiting() {
    std::lock_guard lock(mutex_);
    return changes_.size();
  }
  std::string state(const std::string& guest) {
    std::lock_guard lock(mutex_);
    return states_[guest];
  }
  Lasts lasts() {
    std::lock_guard lock(mutex_);
    return lasts_;
  }

 private:
  struct Change {
    std::string guest;
    std::string state;
    Lasts lasts;
    std::function<void(Status)> done;
  };
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return ending_ || (!pausing_ && !changes_.empty()); });
      if (changes_.empty()) return;
      Change change = std::move(changes_.front());
      changes_.erase(changes_.begin());
      Status kept;
      if (failing_) {
        kept = pollux::fail(ErrorCode::kIoError, "told to fail");
      } else {
        states_[change.guest] = change.state;
        lasts_ = change.lasts;
      }
      lock.unlock();
      change.done(std::move(kept));
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> states_;
  std::vector<Change> changes_;
  Lasts lasts_ = Lasts::kUntilPowerLoss;
  bool pausing_ = false;
  bool failing_ = false;
  bool ending_ = false;
  std::thread thread_{[this] { run(); }};
};

struct Answer {
  Outcome outcome = Outcome::kCompleted;
  ScsiStatus status = ScsiStatus::kGood;
  Bytes sense;
  Bytes data;  // as much of data_in as was transferred
  std::uint64_t transferred = 0;

  SenseCode code() const {
    if (sense.size() < 8) return {};
    if ((sense[0] & 0x7f) == 0x72) return {static_cast<SenseKey>(sense[1] & 0xf), sense[2], sense[3]};
    return {static_cast<SenseKey>(sense[2] & 0xf), sense[12], sense[13]};
  }
  // Of fixed format sense; -1: none.
  int field_byte() const { return sense.size() >= 18 && (sense[15] & 0x80) ? get_be16(sense.data() + 16) : -1; }
  bool field_in_cdb() const { return sense.size() >= 18 && (sense[15] & 0x40); }
  int field_bit() const { return sense.size() >= 18 && (sense[15] & 0x08) ? sense[15] & 7 : -1; }
  std::optional<std::uint32_t> information() const {
    if (sense.size() < 18 || !(sense[0] & 0x80)) return std::nullopt;
    return get_be32(sense.data() + 3);
  }
};

// A command to send, and where its data lies. Guest memory in pieces of odd sizes, as guests have it.
struct Request {
  Bytes cdb;
  Bytes data_out;
  std::size_t data_in_bytes = 0;
  TaskAttribute attribute = TaskAttribute::kSimple;
  std::uint64_t tag = 0;
  std::uint8_t cdb_length = 0;  // 0: of cdb
  std::size_t piece_bytes = 1000;
  CommandArrival arrival = {};
};

// One command in flight.
class Pending {
 public:
  explicit Pending(Request request) : request_(std::move(request)), data_in_(request_.data_in_bytes, 0xee) {
    split(request_.data_out, out_);
    split(data_in_, in_);
    task_.tag = request_.tag;
    task_.attribute = request_.attribute;
    std::copy_n(request_.cdb.begin(), std::min(request_.cdb.size(), task_.cdb.size()), task_.cdb.begin());
    task_.cdb_length = request_.cdb_length != 0 ? request_.cdb_length : static_cast<std::uint8_t>(request_.cdb.size());
    task_.data_out = out_.data();
    task_.data_out_count = static_cast<std::uint32_t>(out_.size());
    task_.data_out_bytes = request_.data_out.size();
    task_.data_in = in_.data();
    task_.data_in_count = static_cast<std::uint32_t>(in_.size());
    task_.data_in_bytes = data_in_.size();
    task_.owner = this;
    task_.arrival = [](const Task& task) { return static_cast<const OwnedTask&>(task).owner->request_.arrival; };
    task_.complete = [](Task& task) { static_cast<OwnedTask&>(task).owner->done_.set(); };
  }
  Pending(const Pending&) = delete;

  Task& task() { return task_; }
  bool done() { return done_.is_set(); }
  // Waits for the answer.
  Answer answer() {
    BOOST_REQUIRE(done_.wait());
    Answer answer{task_.outcome, task_.status, {}, {}, task_.transferred_bytes};
    answer.sense.assign(task_.sense.begin(), task_.sense.begin() + task_.sense_length);
    if (!data_in_.empty() && task_.transferred_bytes <= data_in_.size()) {
      answer.data.assign(data_in_.begin(), data_in_.begin() + static_cast<std::ptrdiff_t>(task_.transferred_bytes));
      if (task_.status == ScsiStatus::kGood) {
        // Nothing was written past what was said to be.
        for (std::size_t i = task_.transferred_bytes; i < data_in_.size(); ++i) BOOST_REQUIRE_EQUAL(data_in_[i], 0xee);
      }
    }
    return answer;
  }

 private:
  void split(Bytes& bytes, std::vector<iovec>& out) const {
    for (std::size_t at = 0; at < bytes.size(); at += request_.piece_bytes) {
      out.push_back({bytes.data() + at, std::min(request_.piece_bytes, bytes.size() - at)});
    }
  }

  struct OwnedTask : Task {
    Pending* owner = nullptr;
  };
  OwnedTask task_;
  Request request_;
  Bytes data_in_;
  std::vector<iovec> out_;
  std::vector<iovec> in_;
  Signal done_;
};

struct BenchOptions {
  TestBdev::Options bdev{};
  std::shared_ptr<ReservationStore> store;
  std::shared_ptr<SettingStore> settings;
  // One nexus an entry; each has a channel on both reactors.
  std::vector<NexusOptions> guests = {{.initiator = "guest-a", .announce_power_on = false},
                                      {.initiator = "guest-b", .announce_power_on = false}};
};

class Bench {
 public:
  explicit Bench(BenchOptions options = {}) {
    reactors = reactor::ReactorGroup::start({{.id = 0}, {.id = 1}}).value();
    bdev = std::make_shared<TestBdev>(options.bdev);
    unit = LogicalUnit::make({.bdev = bdev, .uuid = uuid, .reservations = options.store, .settings = options.settings})
               .value();
    for (const NexusOptions& guest : options.guests) add_guest(guest);
  }
  ~Bench() {
    for (auto& guest : guests) {
      for (std::size_t i = 0; i < guest.channels.size(); ++i) {
        on_reactor(i, [&] { guest.channels[i].reset(); });
      }
    }
    guests.clear();
    unit.reset();
    reactors->stop();
  }

  void add_guest(const NexusOptions& options) {
    Guest guest{unit->join(options).value(), {}};
    for (std::size_t i = 0; i < reactors->size(); ++i) {
      guest.channels.push_back(make_channel(*guest.nexus, i));
    }
    guests.push_back(std::move(guest));
  }
  std::unique_ptr<LunChannel> make_channel(Nexus& nexus, std::size_t index) {
    reactor::Reactor& reactor = reactors->at(index);
    auto device = reactor::call(reactor, bdev::open_channel(bdev, reactor)).value();
    std::unique_ptr<LunChannel> channel;
    on_reactor(index, [&] { channel = nexus.make_channel(reactor, std::move(device)); });
    return channel;
  }

  template <typename Fn>
  void on_reactor(std::size_t index, Fn fn) {
    Signal done;
    reactors->at(index).post([&] {
      fn();
      done.set();
    });
    // Not within the macro: its bookkeeping must not run while `fn` may check something too.
    const bool in_time = done.wait();
    BOOST_REQUIRE(in_time);
  }

  struct Where {
    std::size_t guest = 0;
    std::size_t reactor = 0;
  };
  std::unique_ptr<Pending> start(Request request, Where where) {
    auto pending = std::make_unique<Pending>(std::move(request));
    LunChannel* channel = guests.at(where.guest).channels.at(where.reactor).get();
    on_reactor(where.reactor, [&] { channel->submit(pending->task()); });
    return pending;
  }
  std::unique_ptr<Pending> start(Request request) { return start(std::move(request), Where{}); }
  Answer run(Request request, Where where) { return start(std::move(request), where)->answer(); }
  Answer run(Request request) { return run(std::move(request), Where{}); }

  // A task management function under way.
  struct Managing : TaskManagement {
    Signal done;
    TaskFunctionResponse wait() {
      BOOST_REQUIRE(done.wait());
      return response;
    }
  };
  std::unique_ptr<Managing> start_managing(TaskFunction function, Where where, std::uint64_t tag = 0) {
    auto managing = std::make_unique<Managing>();
    managing->function = function;
    managing->tag = tag;
    managing->complete = [](TaskManagement& request) { static_cast<Managing&>(request).done.set(); };
    on_reactor(where.reactor, [&] { guests.at(where.guest).nexus->manage(*managing); });
    return managing;
  }
  TaskFunctionResponse manage(TaskFunction function, Where where, std::uint64_t tag = 0) {
    return start_managing(function, where, tag)->wait();
  }
  // Whatever was posted between reactors before this has been done after it.
  void settle() {
    for (std::size_t round = 0; round < 4; ++round) on_reactor(round % reactors->size(), [] {});
  }

  struct Guest {
    std::shared_ptr<Nexus> nexus;
    std::vector<std::unique_ptr<LunChannel>> channels;
  };
  Uuid uuid = Uuid::parse("00112233-4455-6677-8899-aabbccddeeff").value();
  std::unique_ptr<reactor::ReactorGroup> reactors;
  std::shared_ptr<TestBdev> bdev;
  std::shared_ptr<LogicalUnit> unit;
  std::vector<Guest> guests;
};

// ---- CDBs. ----
inline Bytes cdb6(std::uint8_t opcode, std::uint8_t b1 = 0, std::uint8_t b2 = 0, std::uint8_t b3 = 0,
                  std::uint8_t b4 = 0) {
  return {opcode, b1, b2, b3, b4, 0};
}
struct RangeCdb {
  std::uint8_t opcode;
  std::uint64_t lba = 0;
  std::uint32_t blocks = 0;
  std::uint8_t flags = 0;  // byte 1
};
// The 6, 10, 12 or 16-byte form, as the opcode's group says.
inline Bytes range_cdb(const RangeCdb& range) {
  Bytes cdb;
  switch (range.opcode >> 5) {
    case 0:
      cdb = cdb6(range.opcode, static_cast<std::uint8_t>(range.flags | range.lba >> 16),
                 static_cast<std::uint8_t>(range.lba >> 8), static_cast<std::uint8_t>(range.lba),
                 static_cast<std::uint8_t>(range.blocks));
      return cdb;
    case 4:
      cdb.resize(16);
      put_be64(cdb.data() + 2, range.lba);
      put_be32(cdb.data() + 10, range.blocks);
      break;
    case 5:
      cdb.resize(12);
      put_be32(cdb.data() + 2, static_cast<std::uint32_t>(range.lba));
      put_be32(cdb.data() + 6, range.blocks);
      break;
    default:
      cdb.resize(10);
      put_be32(cdb.data() + 2, static_cast<std::uint32_t>(range.lba));
      put_be16(cdb.data() + 7, static_cast<std::uint16_t>(range.blocks));
      break;
  }
  cdb[0] = range.opcode;
  cdb[1] = range.flags;
  return cdb;
}

inline Bytes pattern(std::size_t bytes, std::uint8_t seed) {
  Bytes data(bytes);
  for (std::size_t i = 0; i < bytes; ++i) data[i] = static_cast<std::uint8_t>(seed + i * 7 + (i >> 9));
  return data;
}

inline void check_good(const Answer& answer, std::uint64_t transferred) {
  BOOST_TEST((answer.outcome == Outcome::kCompleted));
  BOOST_TEST(static_cast<int>(answer.status) == 0);
  BOOST_TEST(answer.sense.empty());
  BOOST_TEST(answer.transferred == transferred);
}
inline void check_sense(const Answer& answer, const SenseCode& code) {
  BOOST_TEST(static_cast<int>(answer.status) == static_cast<int>(ScsiStatus::kCheckCondition));
  BOOST_TEST(static_cast<int>(answer.code().key) == static_cast<int>(code.key));
  BOOST_TEST(static_cast<int>(answer.code().asc) == static_cast<int>(code.asc));
  BOOST_TEST(static_cast<int>(answer.code().ascq) == static_cast<int>(code.ascq));
  BOOST_TEST(answer.transferred == 0u);
}
// INVALID FIELD IN CDB at this byte, and bit unless that is -1.
inline void check_invalid_cdb(const Answer& answer, int byte, int bit = -1) {
  check_sense(answer, sense::kInvalidFieldInCdb);
  BOOST_TEST(answer.field_in_cdb());
  BOOST_TEST(answer.field_byte() == byte);
  BOOST_TEST(answer.field_bit() == bit);
}
inline void check_invalid_parameter(const Answer& answer, int byte, int bit = -1) {
  check_sense(answer, sense::kInvalidFieldInParameters);
  BOOST_TEST(!answer.field_in_cdb());
  BOOST_TEST(answer.field_byte() == byte);
  BOOST_TEST(answer.field_bit() == bit);
}
inline void check_status(const Answer& answer, ScsiStatus status) {
  BOOST_TEST(static_cast<int>(answer.status) == static_cast<int>(status));
  BOOST_TEST(answer.sense.empty());
}

}  // namespace pollux::scsi::test
