#pragma once
// Discarder: gives the space of freed clusters back to the device: a file gets holes, an SSD is told with TRIM.
//
// Freed clusters are noted when they are free for good: the record that freed them is durable and no I/O of before is
// under way. Some time later, so that neighbours that were freed one by one go together, they are discarded in the
// background in runs. While a run is discarded its clusters are out of the free map, so no discard can reach a cluster
// that was given out again; one that was given out first is skipped. A discard is a hint: what a crash leaves
// undiscarded stays so until it is freed again or trim() is called. Clusters of metadata, the journal and the counts
// are never free, and so never discarded.
//
// It takes at most a tenth of the time, because a file system may hold up other I/O to the file meanwhile. Home reactor
// only.

#include <cstdint>
#include <functional>
#include <vector>

#include "bdev/bdev.h"
#include "blob/lanes.h"
#include "blob/state.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::blob {

class Discarder {
 public:
  struct Pace {
    // Between the first cluster that is freed and the first discard.
    std::uint64_t delay_us = 1'000'000;
    // Rest after a discard, as a multiple of what it took. With neither, for tests, there is no waiting at all.
    std::uint64_t rest = 9;

    bool none() const { return delay_us == 0 && rest == 0; }
  };

  // on_returned: clusters that were out of the free map are back.
  Discarder(State& state, Lane& lane, bdev::Bdev& device, Pace pace, bool enabled, std::function<void()> on_returned)
      : state_(state),
        lane_(lane),
        device_(device),
        pace_(pace),
        enabled_(enabled),
        on_returned_(std::move(on_returned)),
        next_([this] { start(); }) {}
  ~Discarder() { next_.cancel(); }

  // Whether freed() notes anything. What is noted when it is switched off is forgotten.
  void enable(bool enabled);
  bool enabled() const { return enabled_; }
  // These have just become free.
  void freed(const std::vector<ClusterNo>& clusters);
  // Goes through the whole pool once and discards all that is free, enabled or not.
  void trim();
  // How many clusters of the pool trim() has still to look at.
  std::uint64_t left_to_trim() const { return std::uint64_t{trim_words_} * 64; }
  // Whatever is noted, and a trim under way.
  void forget();
  // Starts nothing more.
  void stop();

  // Clusters noted, at most: some may have been given out again.
  std::uint64_t noted() const { return noted_count_; }
  // Clusters are out of the free map and will be back soon.
  bool holds_clusters() const { return held_; }
  // A discard is under way, or is due now.
  bool running() const { return running_; }
  std::uint64_t discarded_bytes() const { return discarded_bytes_; }

 private:
  bool has_work() const { return noted_count_ != 0 || trim_words_ != 0; }
  void schedule(std::uint64_t delay_us);
  void start();
  reactor::Task<void> run();
  // Takes the next run of clusters that are noted and free out of the free map, and forgets what it passes. Empty: none
  // were found in as far as one turn looks.
  std::vector<ClusterNo> take_run();
  bool noted(ClusterNo cluster) const { return ((noted_[cluster / 64] >> (cluster % 64)) & 1) != 0; }
  void note(ClusterNo cluster);
  void unnote(ClusterNo cluster);

  State& state_;
  Lane& lane_;
  bdev::Bdev& device_;
  const Pace pace_;
  bool enabled_;
  const std::function<void()> on_returned_;
  reactor::Timer next_;
  GrowingArray<std::uint64_t> noted_;
  std::uint64_t noted_count_ = 0;
  std::size_t cursor_ = 0;  // word of noted_ where the search goes on
  // Words of the free map that a trim has not yet noted whole.
  std::size_t trim_words_ = 0;
  bool trimming_word_ = false;  // the word at the cursor has been noted whole
  bool running_ = false;
  bool stopped_ = false;
  bool held_ = false;
  bool failure_told_ = false;
  std::uint64_t discarded_bytes_ = 0;
};

}  // namespace pollux::blob
