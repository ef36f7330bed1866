#include "virtio/packed_queue.h"

#include "base/units.h"

namespace pollux::virtio {

using namespace protocol;

Result<std::unique_ptr<Virtqueue>> PackedQueue::create(QueueSetup setup) {
  const std::uint16_t size = setup.size;
  std::byte* descs = setup.memory->ring_pointer(setup.desc_user_addr, sizeof(PackedDesc) * std::uint64_t{size});
  std::byte* driver = setup.memory->ring_pointer(setup.driver_user_addr, sizeof(PackedEvent));
  std::byte* device = setup.memory->ring_pointer(setup.device_user_addr, sizeof(PackedEvent));
  if (!descs || !driver || !device) return fail(ErrorCode::kInvalid, "a ring lies outside of the guest's memory");
  const auto misaligned = [](const std::byte* pointer, std::uintptr_t alignment) {
    return !is_aligned(reinterpret_cast<std::uintptr_t>(pointer), alignment);
  };
  if (misaligned(descs, 16) || misaligned(driver, 4) || misaligned(device, 4))
    return fail(ErrorCode::kInvalid, "a ring is misaligned");

  std::unique_ptr<PackedQueue> queue(new PackedQueue(std::move(setup)));
  queue->descs_ = reinterpret_cast<PackedDesc*>(descs);
  queue->driver_event_ = reinterpret_cast<PackedEvent*>(driver);
  queue->device_event_ = reinterpret_cast<PackedEvent*>(device);
  std::uint32_t base = queue->setup_.base;
  // Front ends that know nothing of wrap counters (Linux's virtio_uml) start a new ring with 0. Where the counters
  // really are 0 at position 0, the first pass over the ring has left USED set in its first entry.
  if (base == 0 && !(load_acquire(&queue->descs_[0].flags) & kDescUsed)) base = 0x80008000;
  queue->avail_ = {static_cast<std::uint16_t>(base & 0x7fff), (base & 0x8000) != 0};
  queue->used_ = {static_cast<std::uint16_t>(base >> 16 & 0x7fff), (base >> 31) != 0};
  if (const auto& inflight = queue->setup_.inflight) {
    queue->inflight_.attach(inflight->queue(queue->setup_.index), size);
    auto recovered = queue->inflight_.recover(queue->descs_, queue->used_.index, queue->used_.wrap);
    if (recovered.known) {
      queue->used_ = {recovered.used_idx, recovered.used_wrap};
      queue->replay_ = std::move(recovered.heads);
      queue->hide_unshown(recovered.entries);
      queue->avail_ = queue->used_;
      queue->avail_.advance(recovered.entries, size);
    }
  }
  if (queue->avail_.index >= size || queue->used_.index >= size) {
    return fail(ErrorCode::kInvalid, "a ring position past the end of the ring");
  }
  queue->batch_start_ = queue->used_;
  return queue;
}

// A process that died before it showed a batch has left answers in the ring behind the batch's first entry. The driver
// would take them as soon as it gets there, before their requests have been done again.
void PackedQueue::hide_unshown(std::uint16_t entries) {
  PackedCursor cursor = used_;
  for (std::uint16_t i = 0; i < entries && cursor.index < setup_.size; ++i) {
    std::uint16_t* flags = &descs_[cursor.index].flags;
    if (((load_once(flags) & kDescUsed) != 0) == cursor.wrap)
      store_relaxed(flags, static_cast<std::uint16_t>(cursor.wrap ? kDescAvail : kDescUsed));
    cursor.advance(1, setup_.size);
  }
}

std::uint32_t PackedQueue::base() const {
  const auto encode = [](const PackedCursor& cursor) {
    return std::uint32_t{cursor.index} | (cursor.wrap ? 0x8000U : 0U);
  };
  return encode(avail_) | encode(used_) << 16;
}

bool PackedQueue::available() const {
  return available(load_acquire(&descs_[avail_.index].flags));
}

bool PackedQueue::available(std::uint16_t flags) const {
  // 2.8.1: available when AVAIL is our wrap counter and USED is not.
  return ((flags & kDescAvail) != 0) == avail_.wrap && ((flags & kDescUsed) != 0) != avail_.wrap;
}

unsigned PackedQueue::look() {
  if (broken()) return 0;
  if (replayed_ < replay_.size()) [[unlikely]] {
    return static_cast<unsigned>(std::min<std::size_t>(replay_.size() - replayed_, kMaxBatch));
  }
  if (!available()) return 0;
  if (setup_.memory->lost()) {
    break_queue("the guest's memory has gone away");
    return 0;
  }
  // How many follow is known only by walking them: one at a time.
  return 1;
}

Glance PackedQueue::glance() const {
  const std::uint16_t* flags = &descs_[avail_.index].flags;
  const std::uint16_t now = load_once(flags);
  // A value that says "available" is never quiet.
  return {flags, static_cast<std::uint16_t>(available(now) ? ~now : now)};
}

bool PackedQueue::pop(Chain& chain, IovecList& pieces) {
  const bool again = replayed_ < replay_.size();
  const char* wrong = again ? gather_again(replay_[replayed_++], chain, pieces) : gather(chain, pieces);
  if (!wrong && chain.id >= setup_.size) wrong = "a buffer id out of range";
  if (wrong) {
    break_queue(wrong);
    return false;
  }
  return true;
}

const char* PackedQueue::add(const PackedDesc& desc, ChainBuilder& builder) const {
  if (desc.flags & kDescIndirect) {
    if (!setup_.indirect) return "an indirect descriptor that was not negotiated";
    return gather_indirect(desc, builder);
  }
  return builder.add(desc.addr, desc.len, desc.flags);
}

const char* PackedQueue::gather(Chain& chain, IovecList& pieces) {
  ChainBuilder builder(*setup_.memory, hot_, chain, pieces);
  PackedCursor cursor = avail_;
  if (inflight_.active()) inflight_.begin();
  for (std::uint16_t entries = 1; entries <= setup_.size; ++entries) {
    const PackedDesc desc = load_desc(descs_ + cursor.index);
    cursor.advance(1, setup_.size);
    const bool last = !(desc.flags & kDescNext);
    // 2.8.7: the two are exclusive.
    if ((desc.flags & kDescIndirect) && !last) return "an indirect descriptor with a successor";
    if (const char* wrong = add(desc, builder)) return wrong;
    if (inflight_.active() && !inflight_.note(desc)) return "more requests in flight than the queue has entries";
    if (!last) continue;
    if (const char* wrong = builder.finish()) return wrong;
    // 2.8.6: the id is that of the last descriptor.
    chain.id = desc.id;
    chain.entries = entries;
    avail_ = cursor;
    if (inflight_.active() && desc.id < setup_.size) inflight_.take(desc.id, entries);
    return nullptr;
  }
  return "a loop of descriptors";
}

const char* PackedQueue::gather_again(std::uint16_t entry, Chain& chain, IovecList& pieces) {
  // What the ring held there may be overwritten by answers to later requests; the in-flight region has a copy.
  ChainBuilder builder(*setup_.memory, hot_, chain, pieces);
  const std::vector<PackedDesc> descs = inflight_.descriptors(entry);
  if (descs.empty()) return "an in-flight entry that makes no sense";
  for (const PackedDesc& desc : descs) {
    if (const char* wrong = add(desc, builder)) return wrong;
  }
  if (const char* wrong = builder.finish()) return wrong;
  chain.id = descs.back().id;
  chain.entries = static_cast<std::uint16_t>(descs.size());
  if (chain.id < setup_.size) inflight_.retake(chain.id, entry);
  return nullptr;
}

const char* PackedQueue::gather_indirect(const PackedDesc& table, ChainBuilder& builder) const {
  const std::uint32_t count = table.len / sizeof(PackedDesc);
  if (table.len % sizeof(PackedDesc) != 0 || count == 0 || count > kMaxQueueSize)
    return "an indirect table of impossible length";
  if (table.addr % alignof(PackedDesc) != 0) return "a misaligned indirect table";
  const std::byte* entries = setup_.memory->pointer(table.addr, table.len);
  if (!entries) return "an indirect table outside of the guest's memory";
  const auto* descs = reinterpret_cast<const PackedDesc*>(entries);
  // 2.8.7: all of the table, in order; only WRITE counts among its flags.
  for (std::uint32_t i = 0; i < count; ++i) {
    const PackedDesc desc = load_desc(descs + i);
    if (desc.flags & kDescIndirect) return "an indirect table within an indirect table";
    if (const char* wrong = builder.add(desc.addr, desc.len, desc.flags)) return wrong;
  }
  return nullptr;
}

void PackedQueue::push(std::uint16_t id, std::uint16_t entries, std::uint32_t written) {
  PackedDesc* desc = descs_ + used_.index;
  std::uint16_t flags = used_.wrap ? kDescAvail | kDescUsed : 0;
  if (written != 0) flags |= kDescWrite;
  store_relaxed(&desc->id, id);
  store_relaxed(&desc->len, written);
  if (staged_ == 0) {
    batch_start_ = used_;
    batch_flags_ = flags;
  } else {
    store_release(&desc->flags, flags);
  }
  // Answers go into the descriptor ring; the log address that front ends give is the event area's.
  log_ring(desc, sizeof(PackedDesc));
  used_.advance(entries, setup_.size);
  ++staged_;
  if (inflight_.active()) inflight_.stage(id);
}

bool PackedQueue::publish() {
  if (staged_ == 0) return false;
  staged_ = 0;
  if (inflight_.active()) inflight_.prepare(used_.index, used_.wrap);
  store_release(&descs_[batch_start_.index].flags, batch_flags_);
  if (inflight_.active()) inflight_.commit();
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const std::uint16_t flags = load_once(&driver_event_->flags) & 3;
  if (flags == kPackedEventDisable) return false;
  if (flags != kPackedEventDesc || !setup_.event_idx) return true;
  // 2.8.10: the guest waits for the entry at this position; has the batch gone over it?
  const std::uint16_t wanted = load_once(&driver_event_->offset_wrap);
  const std::uint16_t size = setup_.size;
  const auto linear = [&](const PackedCursor& cursor) {
    // Distance from the batch's first entry, going forward.
    return static_cast<std::uint16_t>(cursor.index >= batch_start_.index && cursor.wrap == batch_start_.wrap
                                          ? cursor.index - batch_start_.index
                                          : cursor.index + size - batch_start_.index);
  };
  const PackedCursor event{static_cast<std::uint16_t>(wanted & 0x7fff), (wanted & 0x8000) != 0};
  if (event.index >= size) return true;
  if (event.wrap == batch_start_.wrap && event.index < batch_start_.index) return false;
  return linear(event) < linear(used_);
}

void PackedQueue::disable_kicks() {
  if (kicks_off_) return;
  kicks_off_ = true;
  store_relaxed(&device_event_->flags, kPackedEventDisable);
  log_ring(device_event_, sizeof(PackedEvent));
}

bool PackedQueue::enable_kicks() {
  if (broken()) return true;
  if (replayed_ < replay_.size()) return false;
  if (kicks_off_) {
    store_relaxed(&device_event_->flags, kPackedEventEnable);
    log_ring(device_event_, sizeof(PackedEvent));
    kicks_off_ = false;
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  if (!available()) return true;
  disable_kicks();
  return false;
}

}  // namespace pollux::virtio
