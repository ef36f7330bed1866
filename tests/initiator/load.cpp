#include "initiator/load.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

namespace pollux::initiator {
namespace {

// In benchmark runs every 64th answer is timed to keep the clock out of the way.
constexpr std::uint64_t kLatencySample = 64;
constexpr std::size_t kMaxComplaints = 8;
constexpr unsigned kSpinsBeforeSleep = 200;

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::uint64_t pattern_base(std::uint64_t seed, std::uint64_t offset, std::uint32_t generation) {
  return mix(mix(seed) ^ offset ^ (std::uint64_t{generation} << 48) ^ generation);
}

constexpr std::uint64_t kPatternStep = 0x9e3779b97f4a7c15;
constexpr std::uint64_t kNotRead = 0xa5a5a5a5a5a5a5a5;

}  // namespace

struct QueueLoad::Slot {
  Slot(GuestRam& ram, std::uint32_t bytes) : io(ram, bytes) {}
  IoSlot io;
  Op op = Op::kRead;
  std::uint64_t unit = 0;
  std::uint32_t generation = 0;
  std::uint64_t begun_ns = 0;
  bool busy = false;
};

QueueLoad::QueueLoad(FrontEnd& front_end, const Disk& disk, std::uint16_t queue, unsigned share, unsigned shares,
                     const LoadOptions& options)
    : front_end_(front_end),
      disk_(disk),
      queue_(queue),
      share_(share),
      shares_(shares),
      options_(options),
      random_state_(mix(options.seed * 1000003 + queue)),
      units_(options.length_bytes / options.io_bytes / shares) {
  if (units_.size() <= options.queue_depth) throw std::runtime_error("the disk is too small for this queue depth");
  // The slots of all queues come out of one memory, so they are made before threads are.
  for (unsigned i = 0; i < options.queue_depth; ++i) {
    slots_.push_back(std::make_unique<Slot>(front_end.ram(), std::max(options.io_bytes, 4096U)));
  }
}

QueueLoad::~QueueLoad() = default;

std::uint64_t QueueLoad::random() {
  return random_state_ = mix(random_state_);
}

std::uint64_t QueueLoad::unit_offset(std::uint64_t unit) const {
  return options_.offset_bytes + (unit * shares_ + share_) * options_.io_bytes;
}

void QueueLoad::complain(const std::string& text) {
  ++result_.errors;
  if (result_.what.size() < kMaxComplaints) result_.what.push_back("queue " + std::to_string(queue_) + ": " + text);
}

void QueueLoad::fill(Slot& slot) {
  const std::uint64_t base = pattern_base(options_.seed, unit_offset(slot.unit), slot.generation);
  auto* words = reinterpret_cast<std::uint64_t*>(slot.io.data);
  for (std::size_t i = 0; i < options_.io_bytes / 8; ++i) words[i] = base + i * kPatternStep;
}

void QueueLoad::check(Slot& slot) {
  const std::uint64_t base = pattern_base(options_.seed, unit_offset(slot.unit), slot.generation);
  const auto* words = reinterpret_cast<const std::uint64_t*>(slot.io.data);
  for (std::size_t i = 0; i < options_.io_bytes / 8; ++i) {
    if (words[i] == base + i * kPatternStep) continue;
    complain("wrong data at byte " + std::to_string(unit_offset(slot.unit) + i * 8) + ": generation " +
             std::to_string(slot.generation) + " was written, read was " + identify(slot, i));
    return;
  }
}

// What the words from the `first` on are, as far as they are of one kind.
std::string QueueLoad::identify(const Slot& slot, std::size_t first) const {
  const auto* words = reinterpret_cast<const std::uint64_t*>(slot.io.data);
  const std::size_t count = options_.io_bytes / 8;
  const auto run_of = [&](auto expected) {
    std::size_t end = first;
    while (end < count && words[end] == expected(end)) ++end;
    return end - first;
  };
  const auto said = [&](const std::string& kind, std::size_t run) {
    return kind + " in " + std::to_string(run * 8) + " bytes of " + std::to_string((count - first) * 8);
  };
  if (const std::size_t run = run_of([](std::size_t) { return std::uint64_t{0}; })) return said("zeros", run);
  if (const std::size_t run = run_of([](std::size_t) { return kNotRead; })) return said("nothing", run);
  for (std::uint64_t unit = 0; unit < units_.size(); ++unit) {
    // One more than is known was written by a request that is under way.
    for (std::uint32_t generation = 1; generation <= units_[unit].generation + 1; ++generation) {
      const std::uint64_t base = pattern_base(options_.seed, unit_offset(unit), generation);
      const std::size_t run = run_of([&](std::size_t i) { return base + i * kPatternStep; });
      if (run == 0) continue;
      const std::string where = unit == slot.unit ? "" : " of byte " + std::to_string(unit_offset(unit));
      return said("generation " + std::to_string(generation) + where, run);
    }
  }
  return "not from here";
}

bool QueueLoad::issue(Slot& slot) {
  if (options_.flush_every != 0 && random() % options_.flush_every == 0) {
    slot.op = Op::kFlush;
  } else {
    slot.unit = options_.sequential ? next_unit_++ % units_.size() : random() % units_.size();
    while (units_[slot.unit].busy) slot.unit = (slot.unit + 1) % units_.size();
    Unit& unit = units_[slot.unit];
    const bool read = random() % 100 < options_.read_percent && (unit.generation != 0 || !options_.verify);
    slot.op = read ? Op::kRead : Op::kWrite;
    unit.busy = true;
    slot.generation = read ? unit.generation : unit.generation + 1;
    if (options_.verify) {
      if (read) {
        std::memset(slot.io.data, kNotRead & 0xff, options_.io_bytes);
      } else {
        fill(slot);
      }
    }
  }
  const std::uint32_t bytes = slot.op == Op::kFlush ? 0 : options_.io_bytes;
  const auto segments =
      disk_.build(front_end_.ram(), slot.io, slot.op, unit_offset(slot.unit), bytes, options_.piece_bytes);
  const auto cookie = reinterpret_cast<std::uint64_t>(&slot);
  if (!front_end_.ring(queue_).add(segments, cookie))
    throw std::runtime_error("the ring is too small for this queue depth");
  slot.busy = true;
  slot.begun_ns = options_.verify || issued_ % kLatencySample == 0 ? now_ns() : 0;
  ++issued_;
  return true;
}

void QueueLoad::finish(Slot& slot) {
  slot.busy = false;
  last_answer_ns_ = 0;
  ++result_.requests;
  if (options_.answers) options_.answers->fetch_add(1, std::memory_order_relaxed);
  if (slot.begun_ns != 0) latencies_us_.push_back(static_cast<float>(now_ns() - slot.begun_ns) / 1000);
  const std::string verdict = disk_.verdict(slot.io);
  if (slot.op == Op::kFlush) {
    if (!verdict.empty()) complain("flush: " + verdict);
    return;
  }
  Unit& unit = units_[slot.unit];
  unit.busy = false;
  if (!verdict.empty()) {
    complain((slot.op == Op::kRead ? "read of " : "write of ") + std::to_string(unit_offset(slot.unit)) + ": " +
             verdict);
    return;
  }
  if (slot.op == Op::kRead) {
    ++result_.reads;
    if (options_.verify) check(slot);
  } else {
    ++result_.writes;
    unit.generation = slot.generation;
  }
}

void QueueLoad::collect(bool block) {
  DriverRing& ring = front_end_.ring(queue_);
  unsigned spins = 0;
  while (true) {
    unsigned taken = 0;
    while (auto done = ring.take()) {
      finish(*reinterpret_cast<Slot*>(done->cookie));
      ++taken;
    }
    if (taken != 0 || !block || ring.in_flight() == 0) return;
    if (++spins < kSpinsBeforeSleep || !options_.use_calls) {
      if (spins % 1024 == 0) std::this_thread::yield();
      if (spins % 65536 != 0) continue;
    }
    if (last_answer_ns_ == 0) last_answer_ns_ = now_ns();
    if (now_ns() - last_answer_ns_ > static_cast<std::uint64_t>(options_.stall_ms) * 1000000) {
      throw std::runtime_error("queue " + std::to_string(queue_) + " has stalled with " +
                               std::to_string(ring.in_flight()) + " requests in flight");
    }
    if (options_.use_calls) {
      if (ring.want_call()) front_end_.wait_call(queue_, 100);
      ring.no_calls();
    }
  }
}

void QueueLoad::run(const std::atomic<bool>& stop) {
  DriverRing& ring = front_end_.ring(queue_);
  ring.no_calls();
  const std::uint64_t begin = now_ns();
  const std::uint64_t end = options_.seconds > 0 ? begin + static_cast<std::uint64_t>(options_.seconds * 1e9) : 0;
  const std::uint64_t limit = options_.requests == 0 ? UINT64_MAX : issued_ + options_.requests;
  std::uint64_t turns = 0;
  while (!stop.load(std::memory_order_relaxed)) {
    if (options_.end && options_.end->load(std::memory_order_relaxed)) break;
    if (end != 0 && ++turns % 64 == 0 && now_ns() > end) break;
    unsigned added = 0;
    for (auto& slot : slots_) {
      if (!slot->busy && issued_ < limit) added += issue(*slot);
    }
    if (ring.show()) front_end_.kick(queue_);
    if (added == 0 && ring.in_flight() == 0) break;
    collect(true);
  }
  while (ring.in_flight() != 0) collect(true);
  result_.seconds += static_cast<double>(now_ns() - begin) / 1e9;
}

void QueueLoad::check_all() {
  DriverRing& ring = front_end_.ring(queue_);
  std::uint64_t unit = 0;
  while (unit < units_.size() || ring.in_flight() != 0) {
    for (auto& slot : slots_) {
      while (unit < units_.size() && units_[unit].generation == 0) ++unit;
      if (slot->busy || unit == units_.size()) continue;
      slot->op = Op::kRead;
      slot->unit = unit++;
      slot->generation = units_[slot->unit].generation;
      std::memset(slot->io.data, kNotRead & 0xff, options_.io_bytes);
      const auto segments = disk_.build(front_end_.ram(), slot->io, Op::kRead, unit_offset(slot->unit),
                                        options_.io_bytes, options_.piece_bytes);
      if (!ring.add(segments, reinterpret_cast<std::uint64_t>(slot.get())))
        throw std::runtime_error("the ring is too small for this queue depth");
      slot->busy = true;
      slot->begun_ns = 0;
    }
    if (ring.show()) front_end_.kick(queue_);
    collect(true);
  }
}

LoadResult QueueLoad::result() const {
  LoadResult result = result_;
  std::vector<float> sorted = latencies_us_;
  std::sort(sorted.begin(), sorted.end());
  if (!sorted.empty()) {
    const auto at = [&](double part) {
      return sorted[std::min(sorted.size() - 1, static_cast<std::size_t>(part * static_cast<double>(sorted.size())))];
    };
    result.p50_us = at(0.5);
    result.p99_us = at(0.99);
    result.p999_us = at(0.999);
    result.max_us = sorted.back();
  }
  return result;
}

LoadResult run_load(FrontEnd& front_end, const Disk& disk, unsigned queues, const LoadOptions& options,
                    bool check_at_end) {
  std::vector<std::unique_ptr<QueueLoad>> loads;
  for (unsigned i = 0; i < queues; ++i) {
    loads.push_back(std::make_unique<QueueLoad>(front_end, disk, static_cast<std::uint16_t>(disk.first_queue() + i), i,
                                                queues, options));
  }
  std::atomic<bool> stop{false};
  std::vector<std::string> failures(queues);
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < queues; ++i) {
    threads.emplace_back([&, i] {
      try {
        loads[i]->run(stop);
        if (check_at_end) loads[i]->check_all();
      } catch (const std::exception& error) {
        failures[i] = error.what();
        stop = true;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  LoadResult total;
  for (unsigned i = 0; i < queues; ++i) {
    const LoadResult part = loads[i]->result();
    total.requests += part.requests;
    total.reads += part.reads;
    total.writes += part.writes;
    total.errors += part.errors;
    total.seconds = std::max(total.seconds, part.seconds);
    total.p50_us = std::max(total.p50_us, part.p50_us);
    total.p99_us = std::max(total.p99_us, part.p99_us);
    total.p999_us = std::max(total.p999_us, part.p999_us);
    total.max_us = std::max(total.max_us, part.max_us);
    total.what.insert(total.what.end(), part.what.begin(), part.what.end());
    if (!failures[i].empty()) {
      ++total.errors;
      total.what.push_back(failures[i]);
    }
  }
  return total;
}

}  // namespace pollux::initiator
