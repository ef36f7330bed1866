#pragma once
// Load: random or sequential I/O on several queues, measured or verified.
//
// Verified, each I/O-sized unit of the disk carries a pattern of (seed, unit, generation), made anew by every write and
// checked by every read; a unit has at most one request at a time and belongs to one queue. Unit contents before the
// first write of a run are unknown and are not read. Measured only, the data are whatever the buffers hold.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "initiator/disk.h"

namespace pollux::initiator {

struct LoadOptions {
  std::uint64_t seed = 1;
  // The part of the disk to use.
  std::uint64_t offset_bytes = 0;
  std::uint64_t length_bytes = 0;
  std::uint32_t io_bytes = 4096;
  std::uint32_t piece_bytes = 0;
  unsigned queue_depth = 32;
  unsigned read_percent = 50;
  // One flush in so many requests; 0: none.
  unsigned flush_every = 0;
  bool sequential = false;
  bool verify = true;
  // Ends after so many requests a queue, or so long; 0: no such bound.
  std::uint64_t requests = 0;
  double seconds = 0;
  // Sleep for interrupts instead of polling.
  bool use_calls = true;
  // No answer for so long is an error.
  int stall_ms = 60000;
  // Counts the answers, of all queues together, for a watcher on another thread.
  std::atomic<std::uint64_t>* answers = nullptr;
  // Ends the load of all queues, as a bound does, when somebody sets it.
  const std::atomic<bool>* end = nullptr;
};

struct LoadResult {
  std::uint64_t requests = 0;
  std::uint64_t reads = 0;
  std::uint64_t writes = 0;
  double seconds = 0;
  // Of verified reads and of answers; the first few in words.
  std::uint64_t errors = 0;
  std::vector<std::string> what;
  // Sampled, in microseconds: median, 99th, 99.9th percentile and the worst.
  double p50_us = 0, p99_us = 0, p999_us = 0, max_us = 0;
};

// One queue's worker. Runs on its caller's thread.
class QueueLoad {
 public:
  // `share` of `shares`: the units this queue owns.
  QueueLoad(FrontEnd& front_end, const Disk& disk, std::uint16_t queue, unsigned share, unsigned shares,
            const LoadOptions& options);
  ~QueueLoad();

  // Until a bound is met, or `stop` is set; then waits for what is in flight.
  void run(const std::atomic<bool>& stop);
  // Reads back every unit that was ever written and checks it.
  void check_all();
  // With the front end reconnected: the driver's ring goes on, and a kick makes up for one that the dead process took
  // along.
  LoadResult result() const;

 private:
  struct Slot;
  struct Unit {
    std::uint32_t generation = 0;
    bool busy = false;
  };
  bool issue(Slot& slot);
  void finish(Slot& slot);
  void collect(bool block);
  void fill(Slot& slot);
  void check(Slot& slot);
  std::string identify(const Slot& slot, std::size_t first) const;
  void complain(const std::string& text);
  std::uint64_t random();
  std::uint64_t unit_offset(std::uint64_t unit) const;

  FrontEnd& front_end_;
  const Disk& disk_;
  const std::uint16_t queue_;
  const unsigned share_;
  const unsigned shares_;
  const LoadOptions options_;
  std::uint64_t random_state_;
  std::vector<Unit> units_;
  std::uint64_t next_unit_ = 0;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::uint64_t issued_ = 0;
  std::uint64_t last_answer_ns_ = 0;
  std::vector<float> latencies_us_;
  LoadResult result_;
};

// One thread a queue; `queues` of them from the disk's first on.
LoadResult run_load(FrontEnd& front_end, const Disk& disk, unsigned queues, const LoadOptions& options,
                    bool check_at_end = false);

}  // namespace pollux::initiator
