#pragma once
// Guests on one reactor: some that behave and send requests at a steady pace, and one that the test makes misbehave.
// What is asked is which part of their rate the first keep.
//
// The guests' threads and the reactor share the machine with whatever else runs on it. So the pace is far below what
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

// A guest that behaves, on a thread of its own from construction on.
class GoodGuest {
 public:
  struct Request {
    Op op = Op::kRead;
    std::uint64_t offset_bytes = 0;
    std::uint32_t bytes = 0;
  };
  struct Habits {
    std::string name;  // for messages
    // The nth request.
    std::function<Request(std::uint64_t n)> next;
    std::uint64_t requests_per_tick = 1;
    unsigned depth = 1;
    std::chrono::microseconds tick = std::chrono::milliseconds(1);
  };

  GoodGuest(const std::string& socket, Habits habits) : habits_(std::move(habits)), front_end_(options(socket)) {
    front_end_.start();
    for (unsigned i = 0; i < habits_.depth; ++i) slots_.push_back({IoSlot(front_end_.ram(), kLargestBytes)});
    thread_ = std::thread([this] { run(); });
  }
  ~GoodGuest() {
    stop_ = true;
    thread_.join();
    BOOST_TEST(bad_answers_.load() == 0u, habits_.name << ": " << bad_answers_.load() << " requests failed");
  }
  GoodGuest(const GoodGuest&) = delete;
  GoodGuest& operator=(const GoodGuest&) = delete;

  const std::string& name() const { return habits_.name; }
  std::uint64_t answers() const { return answers_; }

  static constexpr std::uint32_t kLargestBytes = 64 << 10;

 private:
  static constexpr std::uint32_t kPieceBytes = 4096;

  struct Slot {
    IoSlot io;
    bool busy = false;
  };

  static FrontEndOptions options(const std::string& socket) {
    FrontEndOptions options;
    options.socket_path = socket;
    options.queues = 1;
    options.ring = {.size = 128, .indirect = true};
    options.features = bit(kBlkFeatureFlush);
    return options;
  }

  void run() {
    using Clock = std::chrono::steady_clock;
    auto next_tick = Clock::now();
    std::uint64_t n = 0;
    while (!stop_) {
      collect();
      std::uint64_t sent = 0;
      for (Slot& slot : slots_) {
        if (sent == habits_.requests_per_tick) break;
        if (slot.busy) continue;
        send(slot, n++);
        ++sent;
      }
      if (sent != 0 && front_end_.ring(0).show()) front_end_.kick(0);
      next_tick = std::max(next_tick + habits_.tick, Clock::now());
      std::this_thread::sleep_until(next_tick);
    }
    const auto deadline = Clock::now() + std::chrono::seconds(30);
    while (front_end_.ring(0).in_flight() != 0 && Clock::now() < deadline) {
      collect();
      std::this_thread::sleep_for(habits_.tick);
    }
    if (front_end_.ring(0).in_flight() != 0) ++bad_answers_;
  }

  void send(Slot& slot, std::uint64_t n) {
    const Request request = habits_.next(n);
    const auto segments =
        disk_.build(front_end_.ram(), slot.io, request.op, request.offset_bytes, request.bytes, kPieceBytes);
    slot.busy = front_end_.ring(0).add(segments, reinterpret_cast<std::uint64_t>(&slot));
  }

  void collect() {
    while (const auto done = front_end_.ring(0).take()) {
      Slot& slot = *reinterpret_cast<Slot*>(done->cookie);
      slot.busy = false;
      if (!disk_.verdict(slot.io).empty()) ++bad_answers_;
      ++answers_;
    }
  }

  const Habits habits_;
  FrontEnd front_end_;
  const BlkDisk disk_;
  std::vector<Slot> slots_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> answers_{0};
  // Errors, and requests that were never answered.
  std::atomic<std::uint64_t> bad_answers_{0};
};

// What a neighbour has to keep.
inline constexpr double kEnough = 0.9;

using GoodGuests = std::vector<std::unique_ptr<GoodGuest>>;

// Which part of its rate each of them keeps. `begin` makes the bad guest misbehave, `end` makes it stop and waits until
// it has.
inline std::vector<double> parts_kept(const GoodGuests& guests, const std::function<void()>& begin,
                                      const std::function<void()>& end) {
  constexpr unsigned kPairs = 6;
  constexpr auto kWindow = std::chrono::milliseconds(250);
  const auto rates = [&] {
    std::vector<double> each;
    for (const auto& guest : guests) each.push_back(-static_cast<double>(guest->answers()));
    const auto begun = std::chrono::steady_clock::now();
    std::this_thread::sleep_for(kWindow);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
    for (std::size_t i = 0; i < guests.size(); ++i) {
      each[i] = (each[i] + static_cast<double>(guests[i]->answers())) / took.count();
    }
    return each;
  };
  std::vector<double> best(guests.size());
  for (unsigned pair = 0; pair < kPairs && std::ranges::min(best) < kEnough; ++pair) {
    const std::vector<double> alone = rates();
    begin();
    const std::vector<double> beside = rates();
    end();
    for (std::size_t i = 0; i < guests.size(); ++i) best[i] = std::max(best[i], beside[i] / std::max(alone[i], 1.0));
  }
  for (std::size_t i = 0; i < guests.size(); ++i) {
    BOOST_TEST_MESSAGE(guests[i]->name() << ": the good guest keeps " << best[i] << " of its rate");
  }
  return best;
}

// One good guest, which reads a disk in memory.
class Neighbours : public ServiceFixture {
 public:
  Neighbours() : ServiceFixture(/*reactors=*/1) {
    good_.push_back(std::make_unique<GoodGuest>(
        blk("good", ram(), 1),
        GoodGuest::Habits{.name = "reads", .next = read_of, .requests_per_tick = 4, .depth = 32}));
  }

  double part_kept(const std::function<void()>& begin, const std::function<void()>& end) {
    return parts_kept(good_, begin, end).front();
  }

 private:
  // Every second request has more pieces than one keeps in its own slot.
  static GoodGuest::Request read_of(std::uint64_t n) {
    constexpr std::uint32_t kLargeBytes = GoodGuest::kLargestBytes;
    return {.op = Op::kRead, .offset_bytes = n % 128 * kLargeBytes, .bytes = n % 2 == 1 ? kLargeBytes : 4096};
  }

  GoodGuests good_;
};

}  // namespace pollux::initiator
