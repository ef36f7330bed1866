#pragma once
// Bench: load for measuring. One thread drives any number of guests, each with a vhost-user connection of its own, and
// spends as little as it can on a request, so that the service is what is measured: requests are laid out in guest
// memory beforehand, answers are checked by their status alone, every request is timed with the processor's counter.
// load.h is for loads that check data.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "initiator/disk.h"
#include "initiator/histogram.h"

namespace pollux::initiator {

struct BenchGuestOptions {
  std::string socket_path;
  bool scsi = true;
  // Scsi target; LUN 0 of it.
  unsigned target = 0;
  unsigned queues = 1;
  // The largest that runs may ask for.
  unsigned depth = 128;
  std::uint32_t io_bytes = 4096;
  RingOptions ring{.size = 512};
};

struct BenchOptions {
  double seconds = 1;
  unsigned depth = 32;  // of each queue
  unsigned read_percent = 100;
  std::uint32_t io_bytes = 4096;
  bool sequential = false;
  // Every place once, in a scattered order, instead of at random for ever; ends early when all are done.
  bool once = false;
  // With `once`: so many places of that order were done by earlier runs. For guests with one queue.
  std::uint64_t skip = 0;
  // Each queue flushes when it has begun so many writes since its last flush; 0: never.
  unsigned flush_every = 0;
  // Of all queues together; 0: no bound.
  std::uint64_t requests = 0;
  // Pause between an answer and the next request, asleep; for depth 1.
  std::uint64_t gap_us = 0;
  // The part of the disk from its start; 0: all of it.
  std::uint64_t length_bytes = 0;
  // Give the core to whatever else wants it while no answer is there: the kernel's threads that end writes and flushes
  // may need it.
  bool yield = false;
  std::uint64_t seed = 1;
};

struct BenchResult {
  // Reads and writes; what is said of latency is of these alone.
  std::uint64_t requests = 0;
  std::uint64_t flushes = 0;
  // Reads and writes of the guest that had the fewest, over the mean of all guests.
  double worst_share = 1;
  std::uint64_t errors = 0;
  std::string first_error;
  double seconds = 0;
  std::uint64_t tsc_cycles = 0;
  double cycles_per_ns = 1;
  // In cycles of the counter.
  Histogram latency;
  Histogram flush_latency;
};

// A connection and its queues. Throws std::runtime_error when the peer refuses something.
class BenchGuest {
 public:
  explicit BenchGuest(const BenchGuestOptions& options);
  ~BenchGuest();
  BenchGuest(const BenchGuest&) = delete;
  BenchGuest& operator=(const BenchGuest&) = delete;
  std::uint64_t size_bytes() const { return size_bytes_; }

 private:
  friend class BenchRun;
  friend class BenchQueue;
  struct Slot {
    explicit Slot(GuestRam& ram, std::uint32_t bytes) : io(ram, bytes) {}
    IoSlot io;
    std::uint64_t begun_tsc = 0;
    // What it is used for now.
    Op op = Op::kRead;
    // Chains for the current run, by Op: reads, writes, flushes.
    std::vector<Segment> chains[3];
  };
  BenchGuestOptions options_;
  std::unique_ptr<FrontEnd> front_end_;
  std::unique_ptr<Disk> disk_;
  std::uint32_t block_bytes_ = 512;
  std::uint64_t size_bytes_ = 0;
  // By queue.
  std::vector<std::vector<std::unique_ptr<Slot>>> slots_;
};

// Loads all guests at once from this thread until the time or the requests are over and everything is answered.
BenchResult run_bench(const std::vector<BenchGuest*>& guests, const BenchOptions& options);

}  // namespace pollux::initiator
