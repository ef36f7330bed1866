#pragma once
// Two guests on one reactor: one that behaves and sends requests at a steady pace, and one that the test makes misbehave.
// What is asked is which part of its rate the first keeps.
//
// Both guests' threads and the reactor share the machine with whatever else runs on it. So the pace is far below what
// the service can do, windows with and without the bad guest alternate, and the best of some pairs counts: a reactor
// that somebody blocks or keeps busy answers next to nothing in every one of them.

#include <algorithm>
#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "initiator/service_fixture.h"

namespace pollux::initiator {

class Neighbours : public ServiceFixture {
 public:
  Neighbours() : ServiceFixture(/*reactors=*/1), good_(options_of_good(blk("good", ram(), 1))) {
    good_.start();
    for (unsigned i = 0; i < kDepth; ++i) slots_.push_back({IoSlot(good_.ram(), kLargeBytes), i % 2 == 1});
    thread_ = std::thread([this] { run(); });
  }
  ~Neighbours() {
    stop_ = true;
    thread_.join();
    BOOST_TEST(bad_answers_.load() == 0u);
  }

  // `begin` makes the bad guest misbehave, `end` makes it stop and waits until it has.
  double part_kept(const std::function<void()>& begin, const std::function<void()>& end) {
    double best = 0;
    for (unsigned pair = 0; pair < kPairs && best < kEnough; ++pair) {
      const double alone = rate();
      begin();
      const double beside = rate();
      end();
      best = std::max(best, beside / std::max(alone, 1.0));
    }
    BOOST_TEST_MESSAGE("the good guest keeps " << best << " of its rate");
    return best;
  }
  // What a neighbour has to keep.
  static constexpr double kEnough = 0.9;

 private:
  static constexpr auto kTick = std::chrono::milliseconds(1);
  static constexpr std::uint64_t kRequestsPerTick = 4;
  static constexpr unsigned kDepth = 32;
  static constexpr unsigned kPairs = 6;
  static constexpr auto kWindow = std::chrono::milliseconds(250);
  // Every second request has more pieces than one keeps in its own slot.
  static constexpr std::uint32_t kSmallBytes = 4096;
  static constexpr std::uint32_t kLargeBytes = 64 << 10;

  struct Slot {
    IoSlot io;
    bool large;
    bool busy = false;
  };

  static FrontEndOptions options_of_good(const std::string& socket) {
    FrontEndOptions options;
    options.socket_path = socket;
    options.queues = 1;
    options.ring = {.size = 128, .indirect = true};
    return options;
  }

  double rate() const {
    const std::uint64_t before = answers_;
    const auto begun = std::chrono::steady_clock::now();
    std::this_thread::sleep_for(kWindow);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
    return static_cast<double>(answers_ - before) / took.count();
  }

  void run() {
    using Clock = std::chrono::steady_clock;
    auto next_tick = Clock::now();
    std::uint64_t round = 0;
    while (!stop_) {
      collect();
      std::uint64_t sent = 0;
      for (Slot& slot : slots_) {
        if (sent == kRequestsPerTick) break;
        if (slot.busy) continue;
        send(slot, round++);
        ++sent;
      }
      if (sent != 0 && good_.ring(0).show()) good_.kick(0);
      next_tick = std::max(next_tick + kTick, Clock::now());
      std::this_thread::sleep_until(next_tick);
    }
    const auto deadline = Clock::now() + std::chrono::seconds(30);
    while (good_.ring(0).in_flight() != 0 && Clock::now() < deadline) {
      collect();
      std::this_thread::sleep_for(kTick);
    }
    if (good_.ring(0).in_flight() != 0) ++bad_answers_;
  }

  void send(Slot& slot, std::uint64_t round) {
    const std::uint32_t bytes = slot.large ? kLargeBytes : kSmallBytes;
    const std::uint64_t offset = round % 128 * kLargeBytes;
    const auto segments = disk_.build(good_.ram(), slot.io, Op::kRead, offset, bytes, kSmallBytes);
    slot.busy = good_.ring(0).add(segments, reinterpret_cast<std::uint64_t>(&slot));
  }

  void collect() {
    while (const auto done = good_.ring(0).take()) {
      Slot& slot = *reinterpret_cast<Slot*>(done->cookie);
      slot.busy = false;
      if (!disk_.verdict(slot.io).empty()) ++bad_answers_;
      ++answers_;
    }
  }

  FrontEnd good_;
  const BlkDisk disk_;
  std::vector<Slot> slots_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> answers_{0};
  // Errors, and requests that were never answered.
  std::atomic<std::uint64_t> bad_answers_{0};
};

}  // namespace pollux::initiator
