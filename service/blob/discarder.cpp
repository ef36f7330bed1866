#include "blob/discarder.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace pollux::blob {

namespace {

// Bounds how long a discard keeps clusters from being given out, and one turn of a device in memory.
constexpr std::uint64_t kMaxRunBytes = 16 * kMiB;
constexpr std::size_t kWordsPerTurn = 16384;
constexpr std::uint64_t kMinPauseUs = 1000;

}  // namespace

void Discarder::note(ClusterNo cluster) {
  if (cluster / 64 >= noted_.size()) noted_.grow(state_.refcounts.free_words());
  if (noted(cluster)) return;
  noted_[cluster / 64] |= 1ULL << (cluster % 64);
  ++noted_count_;
}

void Discarder::unnote(ClusterNo cluster) {
  noted_[cluster / 64] &= ~(1ULL << (cluster % 64));
  --noted_count_;
}

void Discarder::enable(bool enabled) {
  enabled_ = enabled;
  if (!enabled) forget();
}

void Discarder::forget() {
  noted_ = {};
  noted_count_ = 0;
  cursor_ = 0;
  trim_words_ = 0;
  trimming_word_ = false;
}

void Discarder::freed(const std::vector<ClusterNo>& clusters) {
  if (!enabled_ || !device_.supports_unmap()) return;
  for (ClusterNo cluster : clusters) note(cluster);
  if (!running_ && !next_.running()) schedule(pace_.delay_us);
}

void Discarder::trim() {
  if (!device_.supports_unmap()) return;
  noted_.grow(state_.refcounts.free_words());
  trim_words_ = noted_.size();
  if (!running_) schedule(0);
}

void Discarder::stop() {
  stopped_ = true;
  next_.cancel();
}

void Discarder::schedule(std::uint64_t delay_us) {
  if (stopped_ || !has_work()) return;
  if (delay_us == 0) return start();
  next_.start(lane_.reactor(), delay_us);
}

void Discarder::start() {
  if (running_) return;
  next_.cancel();
  running_ = true;
  reactor::spawn(run());
}

std::vector<ClusterNo> Discarder::take_run() {
  const auto limit = static_cast<std::size_t>(kMaxRunBytes >> state_.geometry.cluster_shift);
  std::vector<ClusterNo> run;
  for (std::size_t looked = 0; looked < kWordsPerTurn && has_work(); ++looked) {
    if (cursor_ >= noted_.size()) cursor_ = 0;
    if (trim_words_ != 0 && !trimming_word_) {
      trimming_word_ = true;
      const std::uint64_t added = state_.refcounts.free_word(cursor_) & ~noted_[cursor_];
      noted_[cursor_] |= added;
      noted_count_ += static_cast<std::uint64_t>(std::popcount(added));
    }
    while (noted_[cursor_] != 0) {
      auto cluster = static_cast<ClusterNo>(cursor_ * 64 + static_cast<unsigned>(std::countr_zero(noted_[cursor_])));
      while (run.size() < limit && cluster / 64 < noted_.size() && noted(cluster) &&
             state_.refcounts.is_free(cluster)) {
        unnote(cluster);
        state_.refcounts.hold_free(cluster);
        run.push_back(cluster++);
      }
      if (!run.empty()) return run;
      unnote(cluster);
    }
    ++cursor_;
    if (std::exchange(trimming_word_, false)) --trim_words_;
  }
  return run;
}

reactor::Task<void> Discarder::run() {
  // The caller goes on first.
  co_await lane_.reactor().yield();
  std::uint64_t pause_us = kMinPauseUs;
  while (!stopped_ && has_work()) {
    const auto clusters = take_run();
    const std::uint64_t begin_ns = monotonic_ns();
    if (!clusters.empty()) {
      held_ = true;
      const auto status = co_await lane_.data().discard(clusters.front(), clusters.size());
      state_.refcounts.make_free(clusters);
      held_ = false;
      const std::uint64_t length = std::uint64_t{clusters.size()} << state_.geometry.cluster_shift;
      if (status != bdev::IoStatus::kOk) {
        // The space is free all the same; there is nothing to do again.
        if (!std::exchange(failure_told_, true)) {
          log::warn("{} failed to discard {} bytes at {}: {}", device_.name(), length,
                    state_.geometry.cluster_offset(clusters.front()), bdev::to_string(status));
        }
      } else if (device_.supports_unmap()) {
        discarded_bytes_ += length;
      } else {
        forget();
      }
      on_returned_();
    }
    if (pace_.none()) {
      co_await lane_.reactor().yield();
      continue;
    }
    pause_us = std::max(kMinPauseUs, (monotonic_ns() - begin_ns) / 1000 * pace_.rest);
    break;
  }
  running_ = false;
  schedule(pause_us);
}

}  // namespace pollux::blob
