#pragma once
// For tests: a pool on a simulated disk, operations on it, and a model that knows what may be there after the power
// went off in the middle of one of them.
//
// Contents are told apart in blocks of 512 bytes by a stamp: a number that a write repeats through the block. The model
// keeps for each block the stamp that must be durable and those written since, any of which a power cut may leave.

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
#include "volume/test_support.h"
#include "volume/volume_bdev.h"

namespace pollux::volume::test {

struct ModelVolume {
  std::string name;
  std::uint64_t size_bytes = 0;
  bool snapshot = false;
  std::optional<Uuid> parent;
  std::vector<std::uint64_t> durable;
  std::vector<std::uint64_t> latest;
  std::map<std::uint32_t, std::set<std::uint64_t>> since;  // written after the last flush
  // An operation on it was under way when the power went off.
  bool may_be_missing = false;
  std::optional<std::uint64_t> other_size;

  bool allows(std::uint32_t block, std::uint64_t stamp) const {
    if (block >= durable.size()) return stamp == 0;
    if (durable[block] == stamp) return true;
    auto found = since.find(block);
    return found != since.end() && found->second.contains(stamp);
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

class CrashHarness {
 public:
  // Volumes have blocks of 512 bytes, whatever the disk has.
  explicit CrashHarness(reactor::Reactor& home, std::uint32_t device_block_bytes = kSectorBytes)
      : home_(home), device_block_bytes_(device_block_bytes) {}
  ~CrashHarness() { drop(); }

  static std::vector<std::byte> formatted(reactor::Reactor& home, std::uint64_t bytes, std::uint32_t cluster_bytes);

  // Opens the pool in this image; the model stays.
  void open(std::vector<std::byte> image, std::uint64_t seed);
  // Lets the store go as it is, as a crash would.
  void drop();
  blob::SimDisk& disk() { return *disk_; }
  reactor::Reactor& home() { return home_; }
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
  // from then on, flushed or not.
  void process_dies() { process_dies_ = true; }

  // Throws when anything in the pool is not as the model allows. Afterwards the model says what is there.
  void verify();
  // Throws unless the checker finds nothing wrong in what the disk holds.
  static void check(reactor::Reactor& home, std::vector<std::byte> image, const std::string& when);

 private:
  struct Opened {
    std::shared_ptr<VolumeBdev> device;
    std::unique_ptr<bdev::Channel> channel;
  };
  template <typename T>
  std::optional<T> run(reactor::Task<Result<T>> task, const char* what);
  bool run(reactor::Task<Status> task, const char* what);
  bool disk_failed() const { return disk_->power_is_off() || disk_->has_failed(); }
  bool opened(const Uuid& id);
  void close_volume(const Uuid& id);
  void barrier();
  void barrier(ModelVolume& volume);
  std::vector<std::uint64_t> read_stamps(const Uuid& id, std::uint64_t bytes);
  reactor::Task<Status> flatten_task(Uuid id);
  reactor::Task<Result<bool>> open_task(Uuid id);
  reactor::Task<Status> close_task(Uuid id);
  // What is written, and what became of it.
  struct Stamped {
    const Write* write;
    std::vector<std::byte> bytes;
    bool answered = false;
  };
  std::vector<Stamped> stamp(const std::vector<Write>& writes);
  void settle(const std::vector<Stamped>& writes);
  reactor::Task<Status> write_one(Stamped* write, std::uint8_t flags);
  reactor::Task<Status> write_task(std::vector<Stamped>* writes, std::uint8_t flags);
  reactor::Task<Status> remove_beside_task(Uuid id, bool* removed, Stamped* write);
  reactor::Task<Status> clear_task(Uuid id, Extent extent, bdev::IoOp op, std::uint8_t flags);
  void settle(const Uuid& id, Extent extent);
  reactor::Task<Status> flush_task(Uuid id, std::uint8_t flags);
  reactor::Task<Status> read_task(Uuid id, std::vector<std::byte>* bytes);
  reactor::Task<Status> drop_task();
  reactor::Task<Status> idle_task();

  reactor::Reactor& home_;
  const std::uint32_t device_block_bytes_;
  std::shared_ptr<blob::SimDisk> disk_;
  std::shared_ptr<KeptLosses> losses_;
  std::unique_ptr<blob::Store> store_;
  std::map<Uuid, Opened> opened_;
  std::map<Uuid, ModelVolume> model_;
  std::uint64_t next_stamp_ = 1;
  bool process_dies_ = false;
};

}  // namespace pollux::volume::test
