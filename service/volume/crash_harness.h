#pragma once
// For tests: a pool on a simulated disk, operations on it, and a model that knows what may be there after the power
// went off in the middle of one of them.
//
// The pool's home is the first of the reactors. Each time a volume is opened, its channel is on any of them, so that what
// is written comes from the home itself and from elsewhere. The seed decides which; with a stepper it decides as well in
// which order the reactors have their turns, and the whole run is replayed by it.
//
// Contents are told apart in blocks of 512 bytes by a stamp: a number that a write repeats through the block. The model
// keeps for each block the stamp that must be durable and those written since, any of which a power cut may leave; and
// the stamp that was answered last and those under way, any of which a kill of the process may leave.

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "blob/checker.h"
#include "blob/loss_log.h"
#include "blob/sim_bdev.h"
#include "blob/store.h"
#include "reactor/stepper.h"
#include "volume/test_support.h"
#include "volume/volume_bdev.h"

namespace pollux::volume::test {

struct ModelVolume {
  std::string name;
  std::uint64_t size_bytes = 0;
  bool snapshot = false;
  std::optional<Uuid> parent;
  using Stamps = std::map<std::uint32_t, std::set<std::uint64_t>>;
  std::vector<std::uint64_t> durable;
  Stamps since;  // written after the last flush
  std::vector<std::uint64_t> answered;
  Stamps under_way;
  std::vector<std::uint64_t> latest;
  // An operation on it was under way when the power went off.
  bool may_be_missing = false;
  std::optional<std::uint64_t> other_size;

  static bool allows(const std::vector<std::uint64_t>& sure, const Stamps& possible, std::uint32_t block,
                     std::uint64_t stamp) {
    if (block >= sure.size()) return stamp == 0;
    if (sure[block] == stamp) return true;
    auto found = possible.find(block);
    return found != possible.end() && found->second.contains(stamp);
  }
  void begin(std::uint32_t block, std::uint64_t stamp) {
    since[block].insert(stamp);
    under_way[block].insert(stamp);
    latest[block] = stamp;
  }
  void answer(std::uint32_t block) {
    answered[block] = latest[block];
    under_way.erase(block);
  }
  void flush(std::uint32_t block) {
    durable[block] = latest[block];
    since.erase(block);
    answer(block);
  }
  void answer_all() {
    answered = latest;
    under_way.clear();
  }
  void flush_all() {
    durable = latest;
    since.clear();
    answer_all();
  }
};

// What stores have to tell, kept beside them as long as the test runs.
class KeptLosses final : public blob::LossLog {
 public:
  void owe(std::vector<Uuid> volumes) override {
    std::lock_guard lock(mutex_);
    owed_.insert(volumes.begin(), volumes.end());
  }
  void told(const Uuid& volume) override {
    std::lock_guard lock(mutex_);
    owed_.erase(volume);
  }
  bool owed(const Uuid& volume) const {
    std::lock_guard lock(mutex_);
    return owed_.contains(volume);
  }

 private:
  mutable std::mutex mutex_;
  std::set<Uuid> owed_;
};

// Reactors of which the first is the pools' home: a stepper, or a group for what takes time or has threads of its own.
class Reactors {
 public:
  Reactors(reactor::Stepper& stepper) : stepper_(&stepper) { add(stepper); }
  Reactors(reactor::ReactorGroup& group) { add(group); }

  reactor::Reactor& home() const { return *all_.front(); }
  std::size_t size() const { return all_.size(); }
  reactor::Reactor& at(std::size_t index) const { return *all_.at(index); }
  // Runs a task, which begins at home, to its end.
  template <typename T>
  Result<T> call(reactor::Task<Result<T>> task) const {
    return stepper_ != nullptr ? stepper_->call(home(), std::move(task)) : reactor::call(home(), std::move(task));
  }

 private:
  template <typename From>
  void add(From& from) {
    for (std::size_t i = 0; i < from.size(); ++i) all_.push_back(&from.at(i));
  }

  reactor::Stepper* stepper_ = nullptr;
  std::vector<reactor::Reactor*> all_;
};

class CrashHarness {
 public:
  // Volumes have blocks of 512 bytes, whatever the disk has.
  explicit CrashHarness(Reactors reactors, std::uint32_t device_block_bytes = kSectorBytes)
      : reactors_(std::move(reactors)), home_(reactors_.home()), device_block_bytes_(device_block_bytes) {}
  // Pools that are opened from here on have no memory that outlives the process.
  void without_queue() { has_queue_ = false; }
  ~CrashHarness() { drop(); }

  static std::vector<std::byte> formatted(const Reactors& reactors, std::uint64_t bytes, std::uint32_t cluster_bytes);

  // Opens the pool in this image; the model stays. After process_dies() what was in memory that outlives a process is
  // there as well, as image_after_kill() found it.
  void open(std::vector<std::byte> image, std::uint64_t seed);
  // What the disk holds when the process is killed now, or was when the disk failed.
  std::vector<std::byte> image_after_kill(std::uint64_t seed);
  // Lets the store go as it is, as a crash would.
  void drop();
  blob::SimDisk& disk() { return *disk_; }
  reactor::Reactor& home() { return home_; }
  template <typename T>
  Result<T> call(reactor::Task<Result<T>> task) {
    return reactors_.call(std::move(task));
  }
  blob::Store& store() { return *store_; }
  // Stores that are opened from here on tell what those before them have left to tell.
  KeptLosses& keep_losses() {
    if (!losses_) losses_ = std::make_shared<KeptLosses>();
    return *losses_;
  }
  std::map<Uuid, ModelVolume>& model() { return model_; }

  // Each returns false when the disk failed during it (or before): the power went off, or a failure was ordered. A
  // failure for any other reason throws.
  bool create(const Uuid& id, std::uint64_t bytes);
  bool fork(const Uuid& source, const Uuid& id, bool snapshot);
  bool remove(const Uuid& id);
  bool resize(const Uuid& id, std::uint64_t bytes);
  bool revert(const Uuid& id, const Uuid& snapshot);
  // To its end.
  bool flatten(const Uuid& id);
  struct Extent {
    std::uint64_t offset;
    std::uint64_t length;
  };
  // All at once; the extents must not overlap.
  bool write(const Uuid& id, const std::vector<Extent>& extents, bool fua = false);
  struct Write {
    Uuid id;
    Extent extent;
    // Begins when the disk has done so many operations since the begin of all, or nothing more happens.
    unsigned after_operations = 0;
    unsigned after_turns = 0;  // of the reactor, on top
  };
  // The same to several volumes.
  bool write(const std::vector<Write>& writes, bool fua = false);
  // A write while another volume goes.
  bool remove_beside(const Uuid& id, const Write& write);
  bool unmap(const Uuid& id, Extent extent) { return clear(id, extent, bdev::IoOp::kUnmap); }
  // kUnmap or kWriteZeroes: the range reads as zeros afterwards.
  bool clear(const Uuid& id, Extent extent, bdev::IoOp op, std::uint8_t flags = 0);
  bool flush(const Uuid& id, std::uint8_t flags = 0);
  bool checkpoint();
  // Takes what the device has more than the pool uses.
  bool grow();
  bool wait_until_idle();

  // From now on the disk fails because the process dies, which it does not notice itself: what was answered is there
  // when the pool is opened next, flushed or not.
  void process_dies();

  // Throws when anything in the pool is not as the model allows. Afterwards the model says what is there.
  void verify();
  // Throws unless the checker finds nothing wrong in what the disk holds.
  static void check(const Reactors& reactors, std::vector<std::byte> image, const std::string& when);

 private:
  struct Opened {
    // The channel's.
    reactor::Reactor* lane = nullptr;
    std::shared_ptr<VolumeBdev> device;
    std::unique_ptr<bdev::Channel> channel;
  };
  template <typename T>
  std::optional<T> run(reactor::Task<Result<T>> task, const char* what);
  bool run(reactor::Task<Status> task, const char* what);
  // What happens after a kill did not happen: nobody was answered.
  bool dead() const { return process_dies_ && disk_->power_is_off(); }
  bool disk_failed() const { return disk_->power_is_off() || disk_->has_failed(); }
  bool opened(const Uuid& id);
  void close_volume(const Uuid& id);
  void flush_model();
  std::vector<std::uint64_t> read_stamps(const Uuid& id, std::uint64_t bytes);
  reactor::Task<Status> flatten_task(Uuid id);
  reactor::Task<Result<bool>> open_task(Uuid id);
  reactor::Task<void> close_channel(Opened& opened);
  reactor::Task<Status> close_task(Uuid id);
  // One operation of the volume's channel, on its reactor; then back home.
  template <typename Operation>
  reactor::Task<bdev::IoStatus> on_lane(Uuid id, Operation operation);
  // What is written, and what became of it.
  struct Stamped {
    const Write* write;
    std::vector<std::byte> bytes;
    bool answered = false;
  };
  std::vector<Stamped> stamp(const std::vector<Write>& writes);
  void settle(const std::vector<Stamped>& writes, bool fua);
  reactor::Task<Status> write_one(Stamped* write, std::uint8_t flags);
  reactor::Task<Status> write_task(std::vector<Stamped>* writes, std::uint8_t flags);
  reactor::Task<Status> remove_beside_task(Uuid id, bool* removed, Stamped* write);
  reactor::Task<Status> clear_task(Uuid id, Extent extent, bdev::IoOp op, std::uint8_t flags);
  void settle(const Uuid& id, Extent extent, bool fua);
  void verify_contents(const std::string& name, ModelVolume& volume, const std::vector<std::uint64_t>& stamps) const;
  reactor::Task<Status> flush_task(Uuid id, std::uint8_t flags);
  reactor::Task<Status> read_task(Uuid id, std::vector<std::byte>* bytes);
  reactor::Task<Status> drop_task();
  reactor::Task<Status> idle_task();
  reactor::Task<Result<std::vector<std::byte>>> kill_task(std::uint64_t seed);
  void keep_memory();

  // Drawn from the seed of open().
  reactor::Reactor& any_reactor() { return reactors_.at(random_() % reactors_.size()); }

  const Reactors reactors_;
  std::mt19937_64 random_;
  reactor::Reactor& home_;
  const std::uint32_t device_block_bytes_;
  std::shared_ptr<blob::SimDisk> disk_;
  std::shared_ptr<KeptLosses> losses_;
  std::unique_ptr<blob::Store> store_;
  std::map<Uuid, Opened> opened_;
  std::map<Uuid, ModelVolume> model_;
  std::uint64_t next_stamp_ = 1;
  bool has_queue_ = true;
  bool process_dies_ = false;
  // That the process was killed, not the power cut, is why the pool that is open was opened.
  bool after_kill_ = false;
  // Of the journal's queue: what the store works on, and a copy of the instant of a kill.
  std::shared_ptr<blob::AlignedBuffer> memory_;
  std::vector<std::byte> kept_;
};

}  // namespace pollux::volume::test
