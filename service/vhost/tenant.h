#pragma once
// What the queues of one reactor share, and the part of it that one tenant may hold.
//
// A tenant is a device, a guest's disk or controller: its queues on the reactor have one budget together. A tenant that
// has used it up stalls: its chains stay in their rings until some of its own requests have ended, while the others
// go on. A request takes all that it needs at once, so no tenant waits while it holds a part of it.

#include <sys/uio.h>
#include <x86intrin.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/budget.h"
#include "base/memory.h"
#include "base/units.h"
#include "vhost/signaller.h"
#include "virtio/guest_memory.h"

namespace pollux::vhost {

// The arrays that requests of many pieces need. Each tenant brings those that are its own; the others are made when the
// service starts.
class IovecPool {
 public:
  // A request of more pieces breaks its queue. The segments that devices announce (kMaxSegments), header and status,
  // and room for ranges that cross memory regions.
  static constexpr std::uint32_t kMaxPieces = 256;
  // Room for a list and a second copy of it, which dirty logging needs.
  static constexpr std::uint32_t kArrayPieces = 2 * kMaxPieces;

  explicit IovecPool(std::size_t arrays) : scratch_(kMaxPieces) { grow(arrays); }
  ~IovecPool() { shrink(free_.size()); }
  IovecPool(const IovecPool&) = delete;
  IovecPool& operator=(const IovecPool&) = delete;

  // Not in the I/O path.
  void grow(std::size_t arrays) {
    free_.reserve(total_ + arrays);
    for (; arrays > 0; --arrays, ++total_) free_.push_back(memory::Allocator<iovec>().allocate(kArrayPieces));
  }
  // So many are free.
  void shrink(std::size_t arrays) {
    for (; arrays > 0; --arrays, --total_) {
      memory::release(free_.back());
      free_.pop_back();
    }
  }
  // Where a chain is gathered before it is known how much of it has to be kept.
  virtio::IovecList scratch() { return {scratch_.data(), kMaxPieces, 0}; }

 private:
  friend class Tenant;
  memory::Vector<iovec> scratch_;
  std::vector<iovec*> free_;
  std::size_t total_ = 0;
};

// On the reactor, but for construction and destruction.
struct ReactorStock {
  explicit ReactorStock(std::unique_ptr<Signaller> made) : signaller(std::move(made)) {}

  // 8 KiB each. Only requests of more than a few pieces hold one.
  static constexpr std::size_t kIovecArrays = 256;
  // Bounds the memory that devices take for copies, and how long a queue is behind which others wait.
  static constexpr std::int64_t kBytesInFlight = 256 * kMiB;

  IovecPool iovec_pool{kIovecArrays};
  Commons iovec_arrays{kIovecArrays};
  Commons bytes_in_flight{kBytesInFlight};
  const std::unique_ptr<Signaller> signaller;
  // Which turn of the reactor this is.
  std::uint64_t turn = 1;
  // When a tenant's time was looked at last, or the turn began: the time stamp counter.
  std::uint64_t looked_tsc = 0;
  // The turn before took so long that who has what of this one is to be told apart.
  bool precise = false;

  void begin_turn(std::uint64_t began_tsc) {
    ++turn;
    precise = began_tsc - turn_began_tsc_ >= kLongTurnCycles;
    turn_began_tsc_ = looked_tsc = began_tsc;
  }

 private:
  static constexpr std::uint64_t kLongTurnCycles = 1 << 20;
  std::uint64_t turn_began_tsc_ = 0;
};

// On the reactor.
class Tenant {
 public:
  explicit Tenant(ReactorStock& stock) : stock_(stock) { stock_.iovec_pool.grow(kOwnArrays); }
  ~Tenant() { stock_.iovec_pool.shrink(kOwnArrays); }
  Tenant(const Tenant&) = delete;
  Tenant& operator=(const Tenant&) = delete;

  // What its queues begin in one turn, one queue's batch and one request of any size aside.
  static constexpr unsigned kRequestsPerTurn = 128;
  static constexpr std::uint64_t kBytesPerTurn = 512 * kKiB;
  // 1 to 2 ms, which is many times what as many requests usually take.
  static constexpr std::uint64_t kCyclesPerTurn = 1 << 22;
  static constexpr unsigned kRequestsPerLook = 8;

  // Whether one more request may begin, whatever it needs.
  bool open() const { return arrays_.open() && bytes_.open(); }
  // Once a request, after open().
  iovec* take_array() {
    arrays_.take(1);
    iovec* array = stock_.iovec_pool.free_.back();
    stock_.iovec_pool.free_.pop_back();
    return array;
  }
  void give_array(iovec* array) {
    stock_.iovec_pool.free_.push_back(array);
    arrays_.give(1);
  }
  void take_bytes(std::uint32_t bytes) { bytes_.take(bytes); }
  void give_bytes(std::uint32_t bytes) { bytes_.give(bytes); }

  // A queue is about to begin requests: what its tenant has begun counts from here on if this is a new turn.
  void enter_turn() {
    if (begun_turn_ == stock_.turn) return;
    begun_turn_ = stock_.turn;
    begun_requests_ = 0;
    begun_bytes_ = 0;
    begun_cycles_ = 0;
    // What others took of the turn is not its own.
    if (stock_.precise) [[unlikely]]
      stock_.looked_tsc = __rdtsc();
  }
  // After each kRequestsPerLook of a batch: whether the tenant has had its time of this turn. Requests that are slow at
  // their begin (memory that the kernel has yet to give) are few a turn.
  bool over_time() {
    const std::uint64_t now_tsc = __rdtsc();
    begun_cycles_ += now_tsc - stock_.looked_tsc;
    stock_.looked_tsc = now_tsc;
    return begun_cycles_ >= kCyclesPerTurn;
  }
  // One of its queues has begun so much in this turn. Once all of them have begun as much as they may, they have turns one
  // after the other, until one of them leaves something of its turn to the others.
  void begun(unsigned requests, std::uint64_t bytes) {
    const unsigned before = begun_requests_;
    begun_requests_ += requests;
    begun_bytes_ += bytes;
    const bool look = (before ^ begun_requests_) >= kRequestsPerLook || stock_.precise;
    if (begun_requests_ >= kRequestsPerTurn || begun_bytes_ >= kBytesPerTurn || (look && over_time())) [[unlikely]]
      spend_turn();
  }
  void spend_turn() {
    stock_.looked_tsc = __rdtsc();
    spent_turn_ = stock_.turn;
    takes_turns_ = true;
  }
  bool takes_turns() const { return takes_turns_; }
  // While takes_turns(): whether this queue, which has something to begin, may. Once in each of its polls.
  bool has_turn(const void* queue) {
    if (spent_turn_ == stock_.turn) {
      if (!next_) next_ = queue;
      return false;
    }
    // One that does not come in its turn has lost it.
    const bool others = next_ && next_ != queue && stock_.turn == spent_turn_ + 1;
    if (others) return false;
    next_ = nullptr;
    takes_turns_ = false;
    return true;
  }

  // Of the queues that serve it.
  unsigned queues = 0;

 private:
  static constexpr std::int64_t kOwnArrays = 2;
  static constexpr std::int64_t kOwnBytes = 4 * kMiB;

  ReactorStock& stock_;
  std::uint64_t begun_turn_ = 0;
  std::uint64_t begun_bytes_ = 0;
  std::uint64_t begun_cycles_ = 0;
  unsigned begun_requests_ = 0;
  bool takes_turns_ = false;
  std::uint64_t spent_turn_ = 0;
  // The queue that came first when the turn was spent. Never dereferenced.
  const void* next_ = nullptr;
  Budget arrays_{stock_.iovec_arrays, kOwnArrays};
  Budget bytes_{stock_.bytes_in_flight, kOwnBytes};
};

}  // namespace pollux::vhost
