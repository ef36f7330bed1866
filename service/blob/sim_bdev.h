#pragma once
// SimDisk: a device for tests that fails the way devices may, and no worse.
//
// The fault contract:
//  - Sectors, which are of the size of its blocks, are written whole or not at all; nothing else is atomic.
//  - A write is in a volatile cache until a flush that began after the write completed, or its own FUA, has completed.
//  - Requests take effect and complete in any order, drawn from the seed.
//  - A power cut keeps, of each sector, what was durable or any one version written since, drawn from the seed
//    independently of all other sectors: writes are lost, torn and reordered. It can be set to happen at the Nth write;
//    that write is then under way: nobody is told that it completed.
//  - What is unmapped reads as random bytes afterwards.
//  - The Nth operation can be made to fail, and some after it, with nothing done. A flush that fails loses what it was to
//    make durable: the next one succeeds without it, and reads show what was there before.
//  - A request takes no time, or as long as a test says.
// Everything is replayed by the seed when one reactor uses the disk, or those of a reactor::Stepper.

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <unordered_map>
#include <vector>

#include "base/units.h"
#include "bdev/bdev.h"

namespace pollux::blob {

class SimDisk {
 public:
  explicit SimDisk(std::uint64_t size_bytes, std::uint32_t block_bytes = kSectorBytes);
  // A disk with these contents, all durable.
  explicit SimDisk(std::vector<std::byte> image, std::uint32_t block_bytes = kSectorBytes);

  std::uint64_t size_bytes() const { return durable_.size(); }
  std::uint32_t block_bytes() const { return block_bytes_; }

  // The power goes off at the nth write from now (0: the next one). After that every operation fails.
  void cut_power_at_write(std::uint64_t nth);
  // Called at that instant, within the operation.
  void set_on_cut(std::function<void()> on_cut) { on_cut_ = std::move(on_cut); }
  // The nth operation from now, of any kind, answers kIoError.
  void fail_operation(std::uint64_t nth) { fail_operations(nth, 1); }
  // The same for `count` operations.
  void fail_operations(std::uint64_t nth, std::uint64_t count);
  // From now on what this returns is the answer, if it is not kOk, with nothing done. nullptr: as before.
  void set_fault(std::function<bdev::IoStatus(const bdev::IoRequest&)> fault);
  // How long each request takes, in microseconds. Before the disk is in use.
  void set_delay(std::function<std::uint64_t(const bdev::IoRequest&)> delay_us) { delay_us_ = std::move(delay_us); }
  bool power_is_off() const;
  // The failure ordered by fail_operation() has happened.
  bool has_failed() const;
  // Some of those failures are still to come.
  bool is_failing() const;
  std::uint64_t writes() const;
  std::uint64_t operations() const;
  std::uint64_t flushes() const;
  std::uint64_t discards() const;

  // What the disk holds when the power comes back after a cut now.
  std::vector<std::byte> image_after_power_cut(std::uint64_t seed) const;
  // What the disk holds when the process was killed instead, in the middle of that write: all that was written before,
  // and of that write any of its sectors.
  std::vector<std::byte> image_after_kill(std::uint64_t seed) const;
  // What reads see now.
  std::vector<std::byte> image() const;
  // Bit rot, for tests: flips a bit of the durable contents.
  void rot(std::uint64_t byte, unsigned bit);

 private:
  friend class SimChannel;
  struct Version {
    std::uint64_t write;  // the number of the write it came with
    std::vector<std::byte> bytes;
  };
  // `writes_before`: how many writes had completed when the request was submitted; all that a flush answers for.
  bdev::IoStatus perform(bdev::IoRequest& request, std::uint64_t writes_before);
  bdev::IoStatus ordered_failure(const bdev::IoRequest& request);
  void flush(std::uint64_t writes_before);
  void write_sectors(const bdev::IoRequest& request);
  void keep(std::uint64_t sector, const std::byte* bytes, bool durable);

  const std::uint32_t block_bytes_;
  mutable std::mutex mutex_;
  std::vector<std::byte> durable_;
  // Sectors written since they were last durable: every version, oldest first.
  std::unordered_map<std::uint64_t, std::vector<Version>> cached_;
  std::uint64_t writes_ = 0;
  std::uint64_t operations_ = 0;
  std::uint64_t flushes_ = 0;
  std::uint64_t discards_ = 0;
  std::minstd_rand garbage_{1};
  std::uint64_t cut_at_ = UINT64_MAX;
  std::uint64_t fail_at_ = UINT64_MAX;
  std::uint64_t fail_end_ = UINT64_MAX;
  std::function<bdev::IoStatus(const bdev::IoRequest&)> fault_;
  bool off_ = false;
  std::function<void()> on_cut_;
  std::function<std::uint64_t(const bdev::IoRequest&)> delay_us_;
};

// The disk as a device; several may show one disk. Requests complete from the reactor's loop, in an order that the seed
// draws.
std::shared_ptr<bdev::Bdev> make_sim_bdev(std::shared_ptr<SimDisk> disk, std::uint64_t seed);

}  // namespace pollux::blob
