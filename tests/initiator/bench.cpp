#include "initiator/bench.h"

#include <x86intrin.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <map>
#include <stdexcept>
#include <thread>

#include "initiator/capacity.h"

namespace pollux::initiator {
namespace {

using Clock = std::chrono::steady_clock;

// VIRTIO 1.2 5.2.3: VIRTIO_BLK_F_FLUSH. A disk with a cache writes through to drivers that do not take it (5.2.5.2),
// and every driver of the field takes it.
constexpr std::uint64_t kBlkFeatures = 1ULL << 9;
// No answer for so long ends the run with an exception.
constexpr auto kStall = std::chrono::seconds(30);
constexpr unsigned kTurnsPerClockRead = 256;

// The counter's rate against the clock, once a process.
double tsc_per_ns() {
  static const double rate = [] {
    const auto begin = Clock::now();
    const std::uint64_t first = __rdtsc();
    while (Clock::now() - begin < std::chrono::milliseconds(20)) {
    }
    const std::uint64_t last = __rdtsc();
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
    return static_cast<double>(last - first) / static_cast<double>(ns);
  }();
  return rate;
}

std::uint64_t swap_bytes(std::uint64_t value) {
  return __builtin_bswap64(value);
}

}  // namespace

BenchGuest::BenchGuest(const BenchGuestOptions& options) : options_(options) {
  FrontEndOptions front{.socket_path = options.socket_path, .ring = options.ring};
  front.queues = static_cast<std::uint16_t>(options.queues + (options.scsi ? 2 : 0));
  const std::uint64_t slot = std::uint64_t{std::max(options.io_bytes, 4096U)} + 8192;
  const std::uint64_t rings =
      std::uint64_t{front.queues} * options.ring.size * (options.ring.indirect ? 136 * 16 + 64 : 64);
  if (!options.scsi) front.features = kBlkFeatures;
  front.ram_bytes = (options.queues * options.depth * slot + rings + (1 << 20) + 4095) / 4096 * 4096;
  front_end_ = std::make_unique<FrontEnd>(front);
  front_end_->start();
  if (options.scsi) {
    const Capacity capacity = scsi_capacity(*front_end_, options.target);
    block_bytes_ = capacity.block_bytes;
    size_bytes_ = capacity.size_bytes;
    disk_ = std::make_unique<ScsiDisk>(static_cast<std::uint8_t>(options.target), 0, block_bytes_);
  } else {
    size_bytes_ = blk_capacity(*front_end_);
    disk_ = std::make_unique<BlkDisk>();
  }
  slots_.resize(options.queues);
  for (auto& queue : slots_) {
    for (unsigned i = 0; i < options.depth; ++i)
      queue.push_back(std::make_unique<Slot>(front_end_->ram(), std::max(options.io_bytes, 4096U)));
  }
}

BenchGuest::~BenchGuest() = default;

// One queue of one guest in one run.
class BenchQueue {
 public:
  BenchQueue(BenchGuest& guest, unsigned queue, const BenchOptions& options, BenchResult& result)
      : guest_(guest),
        options_(options),
        result_(result),
        index_(static_cast<std::uint16_t>(guest.disk_->first_queue() + queue)),
        ring_(guest.front_end_->ring(index_)),
        slots_(guest.slots_[queue]) {
    const std::uint64_t length =
        options.length_bytes == 0 ? guest.size_bytes_ : std::min(options.length_bytes, guest.size_bytes_);
    units_ = length / options.io_bytes;
    if (units_ == 0) throw std::runtime_error("the disk is smaller than a request");
    if (options.depth > guest.options_.depth || options.io_bytes > guest.options_.io_bytes)
      throw std::runtime_error("this guest was not made for that depth or request size");
    if (units_ > UINT32_MAX) throw std::runtime_error("too many places: bound the run's length");
    if (options.once) {
      // A multiplication by an odd number permutes the numbers below a power of two.
      units_ = std::bit_floor(units_);
      left_ = units_ / guest.options_.queues;
      next_ = left_ * queue + options.skip;
      left_ -= std::min(left_, options.skip);
    }
    random_ = options.seed * 0x9e3779b97f4a7c15 + index_ + reinterpret_cast<std::uintptr_t>(&guest);
    if (options.sequential) next_ = units_ / guest.options_.queues * queue;
    for (unsigned i = 0; i < options.depth; ++i) {
      auto& slot = *slots_[i];
      for (const Op op : {Op::kFlush, Op::kRead, Op::kWrite}) {
        const std::uint32_t bytes = op == Op::kFlush ? 0 : options.io_bytes;
        slot.chains[static_cast<unsigned>(op)] = guest.disk_->build(guest.front_end_->ram(), slot.io, op, 0, bytes, 0);
      }
      free_.push_back(i);
    }
    ring_.no_calls();
  }

  // Takes what is answered; issues what may be. Returns how many were taken.
  unsigned turn(bool issue) {
    unsigned taken = 0;
    const std::uint64_t now = __rdtsc();
    while (const auto done = ring_.take()) {
      finish(static_cast<unsigned>(done->cookie), now);
      ++taken;
    }
    if (issue && !free_.empty() && left_ != 0) refill();
    return taken;
  }
  const BenchGuest& guest() const { return guest_; }
  std::uint64_t requests() const { return requests_; }
  std::size_t in_flight() const { return ring_.in_flight(); }
  bool exhausted() const { return left_ == 0 && ring_.in_flight() == 0; }
  void limit(std::uint64_t requests) { left_ = std::min(left_, requests); }

 private:
  void finish(unsigned number, std::uint64_t now) {
    auto& slot = *slots_[number];
    const bool flush = slot.op == Op::kFlush;
    (flush ? result_.flush_latency : result_.latency).add(now > slot.begun_tsc ? now - slot.begun_tsc : 0);
    const bool good = guest_.options_.scsi
                          ? ScsiDisk::answer(slot.io).response == 0 && ScsiDisk::answer(slot.io).status == 0
                          : slot.io.answer[0] == std::byte{kBlkOk};
    if (!good) [[unlikely]] {
      ++result_.errors;
      if (result_.first_error.empty()) result_.first_error = guest_.disk_->verdict(slot.io);
    }
    ++(flush ? result_.flushes : requests_);
    free_.push_back(number);
  }

  void refill() {
    while (!free_.empty() && left_ != 0) {
      const unsigned number = free_.back();
      free_.pop_back();
      auto& slot = *slots_[number];
      slot.op = next_op();
      if (slot.op == Op::kFlush) {
        aim_flush(slot);
      } else {
        --left_;
        aim(slot, place());
      }
      slot.begun_tsc = __rdtsc();
      if (!ring_.add(slot.chains[static_cast<unsigned>(slot.op)], number))
        throw std::runtime_error("the ring is too small for this queue depth");
    }
    if (ring_.show()) guest_.front_end_->kick(index_);
  }

  Op next_op() {
    if (options_.flush_every != 0 && unflushed_ == options_.flush_every) {
      unflushed_ = 0;
      return Op::kFlush;
    }
    if (options_.read_percent == 100) return Op::kRead;
    if (options_.read_percent != 0 && (random() >> 32) % 100 < options_.read_percent) return Op::kRead;
    ++unflushed_;
    return Op::kWrite;
  }

  std::uint64_t place() {
    if (options_.once) return next_++ * 0x9e3779b1 & (units_ - 1);
    if (options_.sequential) return next_++ % units_;
    return (random() >> 32) * units_ >> 32;
  }

  // The header was laid out by Disk::build(); only where it points, and what is done there, change.
  void aim(BenchGuest::Slot& slot, std::uint64_t unit) {
    const bool write = slot.op == Op::kWrite;
    const std::uint64_t offset = unit * options_.io_bytes;
    if (guest_.options_.scsi) {
      // READ(16), WRITE(16)
      put_cdb(slot, write ? 0x8a : 0x88, offset / guest_.block_bytes_, options_.io_bytes / guest_.block_bytes_);
    } else {
      put_header(slot, write ? kBlkOut : kBlkIn, offset / 512);
    }
  }

  void aim_flush(BenchGuest::Slot& slot) {
    if (guest_.options_.scsi) {
      put_cdb(slot, 0x91, 0, 0);  // SYNCHRONIZE CACHE(16) of the whole medium
    } else {
      put_header(slot, kBlkFlush, 0);
    }
  }

  // READ, WRITE and SYNCHRONIZE CACHE(16) have both fields in the same places (SBC-4).
  static void put_cdb(BenchGuest::Slot& slot, std::uint8_t opcode, std::uint64_t lba, std::uint32_t blocks) {
    auto& command = *reinterpret_cast<ScsiRequestHeader*>(slot.io.header);
    command.cdb[0] = opcode;
    const std::uint64_t lba_be = swap_bytes(lba);
    const std::uint32_t blocks_be = __builtin_bswap32(blocks);
    std::memcpy(command.cdb.data() + 2, &lba_be, sizeof(lba_be));
    std::memcpy(command.cdb.data() + 10, &blocks_be, sizeof(blocks_be));
  }

  static void put_header(BenchGuest::Slot& slot, std::uint32_t type, std::uint64_t sector) {
    auto& header = *reinterpret_cast<BlkHeader*>(slot.io.header);
    header.type = type;
    header.sector = sector;
  }

  std::uint64_t random() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }

  BenchGuest& guest_;
  const BenchOptions& options_;
  BenchResult& result_;
  const std::uint16_t index_;
  DriverRing& ring_;
  std::vector<std::unique_ptr<BenchGuest::Slot>>& slots_;
  std::vector<unsigned> free_;
  std::uint64_t units_ = 0;
  std::uint64_t next_ = 0;
  std::uint64_t requests_ = 0;
  unsigned unflushed_ = 0;
  std::uint64_t left_ = UINT64_MAX;
  std::uint64_t random_ = 1;
};

class BenchRun {
 public:
  BenchRun(const std::vector<BenchGuest*>& guests, const BenchOptions& options, BenchResult& result)
      : options_(options), result_(result) {
    for (BenchGuest* guest : guests) {
      for (unsigned i = 0; i < guest->options_.queues; ++i)
        queues_.push_back(std::make_unique<BenchQueue>(*guest, i, options, result));
    }
    if (options.requests != 0) {
      for (auto& queue : queues_) queue->limit(std::max<std::uint64_t>(1, options.requests / queues_.size()));
    }
  }

  void run() {
    tsc_per_ns();
    const auto begin = Clock::now();
    const std::uint64_t begin_tsc = __rdtsc();
    if (options_.gap_us == 0) {
      run_closed(begin);
    } else {
      run_with_gaps(begin);
    }
    result_.tsc_cycles = __rdtsc() - begin_tsc;
    result_.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    sum_up();
  }

 private:
  bool over(Clock::time_point begin) const {
    return std::chrono::duration<double>(Clock::now() - begin).count() >= options_.seconds;
  }

  void turn(bool issue) {
    unsigned taken = 0;
    for (auto& queue : queues_) taken += queue->turn(issue);
    if (taken == 0 && options_.yield) std::this_thread::yield();
  }

  void run_closed(Clock::time_point begin) {
    bool done = false;
    std::uint64_t turns = 0;
    while (!done) {
      turn(true);
      if (++turns % kTurnsPerClockRead != 0) continue;
      watch(begin);
      done = over(begin) || std::all_of(queues_.begin(), queues_.end(), [](auto& queue) { return queue->exhausted(); });
    }
    drain();
  }

  void run_with_gaps(Clock::time_point begin) {
    while (!over(begin) && !queues_.front()->exhausted()) {
      std::this_thread::sleep_for(std::chrono::microseconds(options_.gap_us));
      turn(true);
      drain();
    }
  }

  void drain() {
    const auto begin = Clock::now();
    while (std::any_of(queues_.begin(), queues_.end(), [](auto& queue) { return queue->in_flight() != 0; })) {
      turn(false);
      if (Clock::now() - begin > kStall) throw std::runtime_error("requests were not answered within 30 s");
    }
  }

  void sum_up() {
    std::map<const BenchGuest*, std::uint64_t> guests;
    for (const auto& queue : queues_) guests[&queue->guest()] += queue->requests();
    std::uint64_t worst = UINT64_MAX;
    for (const auto& [guest, requests] : guests) {
      result_.requests += requests;
      worst = std::min(worst, requests);
    }
    if (result_.requests == 0) return;
    result_.worst_share =
        static_cast<double>(worst) * static_cast<double>(guests.size()) / static_cast<double>(result_.requests);
  }

  void watch(Clock::time_point begin) {
    const std::uint64_t answers = result_.latency.total() + result_.flush_latency.total();
    if (answers != last_answers_) {
      last_answers_ = answers;
      last_answer_ = Clock::now();
    } else if (Clock::now() - std::max(last_answer_, begin) > kStall) {
      throw std::runtime_error("requests were not answered within 30 s");
    }
  }

  const BenchOptions& options_;
  BenchResult& result_;
  std::vector<std::unique_ptr<BenchQueue>> queues_;
  std::uint64_t last_answers_ = 0;
  Clock::time_point last_answer_{};
};

BenchResult run_bench(const std::vector<BenchGuest*>& guests, const BenchOptions& options) {
  BenchResult result;
  BenchRun(guests, options, result).run();
  result.cycles_per_ns = tsc_per_ns();
  return result;
}

}  // namespace pollux::initiator
