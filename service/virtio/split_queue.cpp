#include "virtio/split_queue.h"

#include <bit>

#include "base/units.h"

namespace pollux::virtio {

using namespace protocol;

Result<std::unique_ptr<Virtqueue>> SplitQueue::create(QueueSetup setup) {
  const std::uint16_t size = setup.size;
  if (!std::has_single_bit(size))
    return fail(ErrorCode::kInvalid, "a split queue's size is a power of two, not " + std::to_string(size));
  std::byte* descs = setup.memory->ring_pointer(setup.desc_user_addr, split_desc_bytes(size));
  std::byte* avail = setup.memory->ring_pointer(setup.driver_user_addr, split_avail_bytes(size));
  std::byte* used = setup.memory->ring_pointer(setup.device_user_addr, split_used_bytes(size));
  if (!descs || !avail || !used) return fail(ErrorCode::kInvalid, "a ring lies outside of the guest's memory");
  const auto misaligned = [](const std::byte* pointer, std::uintptr_t alignment) {
    return !is_aligned(reinterpret_cast<std::uintptr_t>(pointer), alignment);
  };
  if (misaligned(descs, 16) || misaligned(avail, 2) || misaligned(used, 4))
    return fail(ErrorCode::kInvalid, "a ring is misaligned");

  std::unique_ptr<SplitQueue> queue(new SplitQueue(std::move(setup)));
  queue->descs_ = reinterpret_cast<const SplitDesc*>(descs);
  queue->avail_ = reinterpret_cast<std::uint16_t*>(avail);
  queue->used_ = reinterpret_cast<std::uint16_t*>(used);
  queue->next_used_ = load_acquire(queue->used_idx());
  queue->next_avail_ = static_cast<std::uint16_t>(queue->setup_.base);
  if (const auto& inflight = queue->setup_.inflight) {
    queue->inflight_.attach(inflight->queue(queue->setup_.index), size);
    auto recovered = queue->inflight_.recover(queue->next_used_, load_acquire(queue->avail_idx()));
    // Whatever was taken is either answered or in flight, so this is how far the ring has come. A front end that has
    // lost its back end does not know: it names used->idx as it found it at that moment, and what was in flight may
    // have been answered since.
    if (recovered.known) {
      queue->next_avail_ = queue->next_used_ + static_cast<std::uint16_t>(recovered.heads.size());
      queue->replay_ = std::move(recovered.heads);
    }
  }
  queue->seen_avail_ = queue->next_avail_;
  return queue;
}

unsigned SplitQueue::look() {
  if (broken()) return 0;
  if (replayed_ < replay_.size()) [[unlikely]] {
    return static_cast<unsigned>(std::min<std::size_t>(replay_.size() - replayed_, kMaxBatch));
  }
  seen_avail_ = load_acquire(avail_idx());
  const std::uint16_t ready = seen_avail_ - next_avail_;
  if (ready == 0) return 0;
  if (ready > setup_.size) {
    break_queue("the available index jumped by more than the queue's size");
    return 0;
  }
  if (setup_.memory->lost()) {
    break_queue("the guest's memory has gone away");
    return 0;
  }
  const unsigned batch = std::min<unsigned>(ready, kMaxBatch);
  if (batch > 1) prefetch_descriptors(batch);
  return batch;
}

// The guest has just written all this on another core, so each first touch of a cache line waits for it to come over.
// Asking for those of a whole batch at once makes the waits overlap.
void SplitQueue::prefetch_descriptors(unsigned ready) const {
  for (unsigned i = 0; i < ready; ++i) {
    const std::uint16_t head = load_once(avail_ring() + ((next_avail_ + i) & mask()));
    // A chain of three, lying side by side, spans two lines at most.
    __builtin_prefetch(descs_ + (head & mask()));
    __builtin_prefetch(descs_ + ((head + 2) & mask()));
  }
}

// The header, or the indirect table, of a request some way down the batch.
inline void SplitQueue::prefetch_request() const {
  constexpr std::uint16_t kAhead = 4;
  if (static_cast<std::uint16_t>(seen_avail_ - next_avail_) <= kAhead) return;
  const std::uint16_t head = load_once(avail_ring() + ((next_avail_ + kAhead) & mask()));
  const std::uint64_t offset = load_once(&descs_[head & mask()].addr) - hot_->guest_addr;
  if (offset < hot_->size_bytes) __builtin_prefetch(hot_->data + offset);
}

bool SplitQueue::pop(Chain& chain, IovecList& pieces) {
  if (replayed_ < replay_.size()) [[unlikely]]
    return gather(replay_[replayed_++], chain, pieces);
  const std::uint16_t head = load_once(avail_ring() + (next_avail_ & mask()));
  ++next_avail_;
  prefetch_request();
  if (!gather_plain(head, chain, pieces) && !gather(head, chain, pieces)) [[unlikely]]
    return false;
  if (inflight_.active()) inflight_.take(head);
  return true;
}

// Calls nothing and keeps what it knows in registers. What it has read of the guest's counts for nothing when it gives
// up.
[[gnu::always_inline]] inline bool SplitQueue::gather_plain(std::uint16_t head, Chain& chain, IovecList& pieces) {
  if (head >= setup_.size) return false;
  SplitDesc desc = load_desc(descs_ + head);
  const SplitDesc* table = descs_;
  std::uint32_t size = setup_.size;
  if (desc.flags & kDescIndirect) {
    const std::byte* const entries = setup_.memory->pointer(desc.addr, desc.len);
    size = desc.len / sizeof(SplitDesc);
    if (!entries || !setup_.indirect || (desc.flags & kDescNext) || ((desc.addr | desc.len) % sizeof(SplitDesc)) != 0 ||
        size == 0 || size > kMaxQueueSize) {
      return false;
    }
    table = reinterpret_cast<const SplitDesc*>(entries);
    desc = load_desc(table);
  }
  const GuestMemory::Range* range = hot_;
  iovec* next = pieces.items;
  iovec* const end = next + pieces.capacity;
  std::uint64_t bytes = 0;
  std::uint16_t write = 0;
  const auto end_readable = [&] {
    chain.readable = static_cast<std::uint16_t>(next - pieces.items);
    chain.readable_bytes = bytes;
  };
  // Each descriptor becomes a piece, so that a loop comes to the end of their list.
  while (true) {
    if ((desc.flags & (kDescWrite | kDescIndirect)) != write) {
      if (write != 0 || (desc.flags & kDescIndirect)) return false;
      write = kDescWrite;
      end_readable();
    }
    // Unsigned: an address below the region wraps to something larger than its size, and so does a length of 0.
    std::uint64_t offset = desc.addr - range->guest_addr;
    if (offset >= range->size_bytes) [[unlikely]] {
      range = setup_.memory->find(desc.addr);
      if (!range) return false;
      offset = desc.addr - range->guest_addr;
    }
    if (next == end || std::uint64_t{desc.len} - 1 >= range->size_bytes - offset) return false;
    *next++ = iovec{range->data + offset, desc.len};
    bytes += desc.len;
    if (!(desc.flags & kDescNext)) break;
    if (desc.next >= size) return false;
    desc = load_desc(table + desc.next);
  }
  if (write == 0) end_readable();
  if (bytes > UINT32_MAX) return false;
  hot_ = range;
  pieces.count = static_cast<std::uint32_t>(next - pieces.items);
  chain.id = head;
  chain.entries = 1;
  chain.faulty = false;
  chain.writable = static_cast<std::uint16_t>(pieces.count - chain.readable);
  chain.writable_bytes = bytes - chain.readable_bytes;
  return true;
}

[[gnu::noinline]] bool SplitQueue::gather(std::uint16_t head, Chain& chain, IovecList& pieces) {
  const char* wrong = head < setup_.size ? gather_from(head, chain, pieces) : "a descriptor index out of range";
  if (wrong) {
    break_queue(wrong);
    return false;
  }
  chain.id = head;
  chain.entries = 1;
  return true;
}

const char* SplitQueue::gather_from(std::uint16_t head, Chain& chain, IovecList& pieces) {
  ChainBuilder builder(*setup_.memory, hot_, chain, pieces);
  // What the chain goes through: the ring's own table, or that of an indirect descriptor.
  Table table{.descs = descs_, .count = setup_.size};
  std::uint32_t index = head;
  // A chain cannot be longer than the table it lies in: one that goes on has a loop.
  for (std::uint32_t left = table.count; left > 0; --left) {
    const SplitDesc desc = load_desc(table.descs + index);
    if (desc.flags & kDescIndirect) {
      // Not told by where the table is: a guest may name the ring's own as an indirect one.
      if (table.indirect) return "an indirect table within an indirect table";
      table = indirect_table(desc);
      if (table.wrong) return table.wrong;
      index = 0;
      left = table.count + 1;
      continue;
    }
    if (const char* wrong = builder.add(desc.addr, desc.len, desc.flags)) return wrong;
    if (!(desc.flags & kDescNext)) return builder.finish();
    if (desc.next >= table.count) return "a descriptor index out of range";
    index = desc.next;
  }
  return "a loop of descriptors";
}

SplitQueue::Table SplitQueue::indirect_table(const SplitDesc& desc) const {
  if (!setup_.indirect) return {.wrong = "an indirect descriptor that was not negotiated"};
  // 2.7.5.3.1: the two are exclusive.
  if (desc.flags & kDescNext) return {.wrong = "an indirect descriptor with a successor"};
  const std::uint32_t count = desc.len / sizeof(SplitDesc);
  if (desc.len % sizeof(SplitDesc) != 0 || count == 0 || count > kMaxQueueSize)
    return {.wrong = "an indirect table of impossible length"};
  if (desc.addr % alignof(SplitDesc) != 0) return {.wrong = "a misaligned indirect table"};
  const std::byte* entries = setup_.memory->pointer(desc.addr, desc.len);
  if (!entries) return {.wrong = "an indirect table outside of the guest's memory"};
  return {.descs = reinterpret_cast<const SplitDesc*>(entries), .count = count, .indirect = true};
}

void SplitQueue::push(std::uint16_t id, std::uint16_t /*entries*/, std::uint32_t written) {
  const std::uint16_t slot = next_used_ & mask();
  UsedElem* elem = used_ring() + slot;
  store_relaxed(&elem->id, std::uint32_t{id});
  store_relaxed(&elem->len, written);
  ++next_used_;
  ++staged_;
  if (logging()) [[unlikely]]
    log_device_area(4 + sizeof(UsedElem) * std::uint64_t{slot}, sizeof(UsedElem));
  if (inflight_.active()) inflight_.stage(id);
}

bool SplitQueue::publish() {
  if (staged_ == 0) return false;
  const auto published = static_cast<std::uint16_t>(next_used_ - staged_);
  staged_ = 0;
  store_release(used_idx(), next_used_);
  log_device_area(2, 2);
  if (inflight_.active()) inflight_.commit(next_used_);
  // The guest turns interrupts on and then looks at used->idx; we store it and then look whether they are on (2.7.7.2).
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!setup_.event_idx) return !(load_once(avail_flags()) & kAvailNoInterrupt);
  const std::uint16_t event = load_once(used_event());
  return static_cast<std::uint16_t>(next_used_ - event - 1) < static_cast<std::uint16_t>(next_used_ - published);
}

void SplitQueue::disable_kicks() {
  if (kicks_off_) return;
  kicks_off_ = true;
  // With EVENT_IDX a stale avail_event does it: the guest kicks again only when its index wraps round to it.
  if (!setup_.event_idx) {
    store_relaxed(used_flags(), kUsedNoNotify);
    log_device_area(0, 2);
  }
}

bool SplitQueue::enable_kicks() {
  if (broken()) return true;
  if (replayed_ < replay_.size()) return false;
  // Kicks that have been on all the time were asked for at this very place: nothing was taken since.
  if (kicks_off_) {
    if (setup_.event_idx) {
      store_relaxed(avail_event(), next_avail_);
      log_device_area(4 + sizeof(UsedElem) * std::uint64_t{setup_.size}, 2);
    } else {
      store_relaxed(used_flags(), std::uint16_t{0});
      log_device_area(0, 2);
    }
    kicks_off_ = false;
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  if (load_acquire(avail_idx()) == next_avail_) return true;
  disable_kicks();
  return false;
}

}  // namespace pollux::virtio
