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
void SplitQueue::prefetch_request() const {
  constexpr std::uint16_t kAhead = 4;
  if (static_cast<std::uint16_t>(seen_avail_ - next_avail_) <= kAhead) return;
  const std::uint16_t head = load_once(avail_ring() + ((next_avail_ + kAhead) & mask()));
  if (const std::byte* header = setup_.memory->pointer(load_once(&descs_[head & mask()].addr), 1))
    __builtin_prefetch(header);
}

bool SplitQueue::pop(Chain& chain, IovecList& pieces) {
  const bool again = replayed_ < replay_.size();
  const std::uint16_t head = again ? replay_[replayed_++] : load_once(avail_ring() + (next_avail_ & mask()));
  if (!again) {
    ++next_avail_;
    prefetch_request();
  }
  const char* wrong = head < setup_.size ? gather(head, chain, pieces) : "a descriptor index out of range";
  if (wrong) {
    break_queue(wrong);
    return false;
  }
  chain.id = head;
  if (inflight_.active() && !again) inflight_.take(head);
  return true;
}

const char* SplitQueue::gather(std::uint16_t head, Chain& chain, IovecList& pieces) const {
  ChainBuilder builder(*setup_.memory, chain, pieces);
  std::uint16_t index = head;
  // A chain cannot be longer than the table it lies in: one that goes on has a loop.
  for (std::uint32_t steps = 0; steps < setup_.size; ++steps) {
    const SplitDesc desc = load_desc(descs_ + index);
    if (desc.flags & kDescIndirect) {
      if (!setup_.indirect) return "an indirect descriptor that was not negotiated";
      // 2.7.5.3.1: the two are exclusive.
      if (desc.flags & kDescNext) return "an indirect descriptor with a successor";
      return gather_indirect(desc, builder);
    }
    if (const char* wrong = builder.add(desc.addr, desc.len, desc.flags & kDescWrite)) return wrong;
    if (!(desc.flags & kDescNext)) return nullptr;
    if (desc.next >= setup_.size) return "a descriptor index out of range";
    index = desc.next;
  }
  return "a loop of descriptors";
}

const char* SplitQueue::gather_indirect(const SplitDesc& table, ChainBuilder& builder) const {
  const std::uint32_t count = table.len / sizeof(SplitDesc);
  if (table.len % sizeof(SplitDesc) != 0 || count == 0 || count > kMaxQueueSize)
    return "an indirect table of impossible length";
  if (table.addr % alignof(SplitDesc) != 0) return "a misaligned indirect table";
  const std::byte* entries = setup_.memory->pointer(table.addr, table.len);
  if (!entries) return "an indirect table outside of the guest's memory";
  const auto* descs = reinterpret_cast<const SplitDesc*>(entries);
  std::uint32_t index = 0;
  for (std::uint32_t steps = 0; steps < count; ++steps) {
    const SplitDesc desc = load_desc(descs + index);
    if (desc.flags & kDescIndirect) return "an indirect table within an indirect table";
    if (const char* wrong = builder.add(desc.addr, desc.len, desc.flags & kDescWrite)) return wrong;
    if (!(desc.flags & kDescNext)) return nullptr;
    if (desc.next >= count) return "a descriptor index out of range";
    index = desc.next;
  }
  return "a loop of descriptors";
}

void SplitQueue::push(std::uint16_t id, std::uint16_t /*entries*/, std::uint32_t written) {
  const std::uint16_t slot = next_used_ & mask();
  UsedElem* elem = used_ring() + slot;
  store_relaxed(&elem->id, std::uint32_t{id});
  store_relaxed(&elem->len, written);
  log_device_area(4 + sizeof(UsedElem) * std::uint64_t{slot}, sizeof(UsedElem));
  ++next_used_;
  ++staged_;
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
