#pragma once
// Virtqueue: the device's side of one virtqueue of either format. SplitQueue and PackedQueue implement it.
//
// One reactor owns a queue. A turn of it is: look() once, pop() up to that many chains, push() whatever has completed
// in any order, then publish() once. Everything in guest memory is fetched once and validated before use. A chain that
// names memory the guest does not have is delivered as faulty, so that its request can be failed; a ring that breaks
// the rules (an index out of range, a loop, a nested table, readable after writable) marks the whole queue broken, and
// nothing more is taken from it.
//
// With an in-flight region (inflight.h) the requests that an earlier process left unfinished come out of pop() first.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "virtio/dirty_log.h"
#include "virtio/guest_memory.h"
#include "virtio/ring_access.h"

namespace pollux::virtio {

class InflightRegion;

// Everything a queue needs to know before it starts.
struct QueueSetup {
  std::uint16_t size = 0;
  bool packed = false;
  bool event_idx = false;
  bool indirect = false;
  // In the front end's virtual addresses; driver area is the available ring, device area the used ring.
  std::uint64_t desc_user_addr = 0;
  std::uint64_t driver_user_addr = 0;
  std::uint64_t device_user_addr = 0;
  // As in vhost-user SET_VRING_BASE.
  std::uint32_t base = 0;
  std::shared_ptr<const GuestMemory> memory;
  // Both absent unless the front end logs writes; the address is where the device area lies for the log.
  std::shared_ptr<DirtyLog> log;
  std::optional<std::uint64_t> device_log_addr;
  // Absent unless negotiated.
  std::shared_ptr<InflightRegion> inflight;
  std::uint16_t index = 0;
};

// One request as the guest described it. Its memory is in the IovecList given to pop(): first `readable` pieces, then
// `writable` ones.
struct Chain {
  // Names the request towards the guest; below the queue's size.
  std::uint16_t id = 0;
  // Ring entries it occupies (packed ring).
  std::uint16_t entries = 1;
  // A piece lies outside of the guest's memory (it is in the list with a null base), or there are too many pieces.
  bool faulty = false;
  std::uint16_t readable = 0;
  std::uint16_t writable = 0;
  std::uint64_t readable_bytes = 0;
  std::uint64_t writable_bytes = 0;
};

// Where to look whether a queue may have something new without asking the queue.
// A request as an in-flight region knows it.
struct Arrival {
  // No other request of the queue has it, before or after; 0: there is no region.
  std::uint64_t number = 0;
  // A process that died had taken it, and may have done it.
  bool again = false;
};

struct Glance {
  // In the guest's memory; as long as the queue lives.
  const std::uint16_t* word = nullptr;
  // There is nothing to pop while the word has this value.
  std::uint16_t quiet = 0;
};

class Virtqueue {
 public:
  // At most so many chains a turn, so that one queue cannot starve the others.
  static constexpr unsigned kMaxBatch = 32;

  // kInvalid: size 0, above kMaxQueueSize or (split) no power of two; a ring that is misaligned or not within one
  // memory region; an in-flight region that does not fit.
  static Result<std::unique_ptr<Virtqueue>> create(QueueSetup setup);
  virtual ~Virtqueue() = default;
  Virtqueue(const Virtqueue&) = delete;
  Virtqueue& operator=(const Virtqueue&) = delete;

  // How many chains can be popped now, at most kMaxBatch.
  virtual unsigned look() = 0;
  virtual Glance glance() const = 0;
  // Only after look() said that there is one. False: the queue is broken.
  virtual bool pop(Chain& chain, IovecList& pieces) = 0;
  // Stages the answer to a popped chain; `written` counts the bytes put into its writable pieces.
  virtual void push(std::uint16_t id, std::uint16_t entries, std::uint32_t written) = 0;
  // Shows all staged answers to the guest. True: it wants an interrupt.
  virtual bool publish() = 0;
  // Asks the guest not to kick. Cheap to repeat.
  virtual void disable_kicks() = 0;
  // Asks for kicks, unless they are on, and looks once more: false when there is something to pop, and then they are
  // off. They must be off before pop() takes anything.
  virtual bool enable_kicks() = 0;
  // As vhost-user GET_VRING_BASE wants it; meaningful when nothing is in flight or to be replayed.
  virtual std::uint32_t base() const = 0;

  // Of a request between pop() and push().
  virtual Arrival arrival(std::uint16_t id) const = 0;
  // Requests of an earlier process are still to come out of pop(): they are in flight as much as those that have.
  bool replaying() const { return replayed_ < replay_.size() && !broken(); }
  bool broken() const { return broken_ != nullptr; }
  // Why; a static text.
  const char* broken_reason() const { return broken_; }
  std::uint16_t size() const { return setup_.size; }
  std::uint16_t index() const { return setup_.index; }
  bool logging() const { return setup_.log != nullptr; }
  const GuestMemory& memory() const { return *setup_.memory; }
  // Marks what the device wrote. Call before publish(), only when logging().
  void log_writes(const iovec* pieces, std::size_t count);
  bool has_staged() const { return staged_ != 0; }
  void break_queue(const char* reason) {
    if (!broken_) broken_ = reason;
  }

 protected:
  explicit Virtqueue(QueueSetup setup) : setup_(std::move(setup)), hot_(&setup_.memory->first()) {}
  void log_device_area(std::uint64_t offset, std::uint64_t length) {
    if (setup_.log && setup_.device_log_addr) setup_.log->mark(*setup_.device_log_addr + offset, length);
  }
  // The same for a part of the ring that has no log address of its own.
  void log_ring(const void* part, std::uint64_t length) {
    if (!setup_.log || !setup_.device_log_addr) return;
    if (const auto addr = setup_.memory->guest_addr(part)) setup_.log->mark(*addr, length);
  }

  QueueSetup setup_;
  // The region in which the last descriptor lay: the next is nearly always there too.
  const GuestMemory::Range* hot_;
  unsigned staged_ = 0;
  // What a dead process left; taken from the front before the ring is looked at.
  std::vector<std::uint16_t> replay_;
  std::size_t replayed_ = 0;

 private:
  const char* broken_ = nullptr;
};

// Gathers the descriptors of one chain; shared by both formats.
class ChainBuilder {
 public:
  // `hot`: the region that the queue's last descriptor lay in, kept up.
  ChainBuilder(const GuestMemory& memory, const GuestMemory::Range*& hot, Chain& chain, IovecList& pieces)
      : memory_(memory), hot_(hot), chain_(chain), pieces_(pieces), next_(pieces.items) {
    chain_.faulty = false;
  }

  // nullptr, or why the queue is broken.
  const char* add(std::uint64_t addr, std::uint32_t len, std::uint16_t flags) {
    const std::uint16_t write = flags & protocol::kDescWrite;
    if (write != write_) {
      // VIRTIO 1.2 2.7.4.2: what the device writes comes after all that it reads.
      if (write == 0) return "a readable descriptor after a writable one";
      if (len != 0) end_readable();
    }
    bytes_ += len;
    std::byte* const whole = len != 0 ? hot_->pointer(addr, len) : nullptr;
    if (!whole) [[unlikely]]
      return add_pieces(addr, len);
    if (next_ == end()) return kTooManyPieces;
    *next_++ = iovec{whole, len};
    return nullptr;
  }
  // The chain is whole: says what it is, but for its id and entries. nullptr, or why the queue is broken.
  const char* finish() {
    if (write_ == 0) end_readable();
    pieces_.count = static_cast<std::uint32_t>(next_ - pieces_.items);
    chain_.writable = static_cast<std::uint16_t>(pieces_.count - chain_.readable);
    chain_.writable_bytes = bytes_ - chain_.readable_bytes;
    // 2.7.5: a chain describes at most 2^32 bytes.
    return bytes_ > UINT32_MAX ? "a chain of more than 4 GiB" : nullptr;
  }

 private:
  static constexpr const char* kTooManyPieces = "more pieces than a request may have";
  // What is empty, or lies in another region than the one before, in none or in several.
  const char* add_pieces(std::uint64_t addr, std::uint32_t len);

  iovec* end() const { return pieces_.items + pieces_.capacity; }
  void end_readable() {
    write_ = protocol::kDescWrite;
    chain_.readable = static_cast<std::uint16_t>(next_ - pieces_.items);
    chain_.readable_bytes = bytes_;
  }

  const GuestMemory& memory_;
  const GuestMemory::Range*& hot_;
  Chain& chain_;
  IovecList& pieces_;
  iovec* next_;
  // At most 2^42: tables have no more than 1024 entries.
  std::uint64_t bytes_ = 0;
  // Of the descriptors now: 0, then kDescWrite.
  std::uint16_t write_ = 0;
};

}  // namespace pollux::virtio
