#include "virtio/virtqueue.h"

#include "virtio/packed_queue.h"
#include "virtio/split_queue.h"

namespace pollux::virtio {

Result<std::unique_ptr<Virtqueue>> Virtqueue::create(QueueSetup setup) {
  if (setup.size == 0 || setup.size > kMaxQueueSize) {
    return fail(ErrorCode::kInvalid,
                "queue size " + std::to_string(setup.size) + " is not within 1 to " + std::to_string(kMaxQueueSize));
  }
  if (!setup.memory) return fail(ErrorCode::kInvalid, "a queue without guest memory");
  if (setup.inflight) {
    if (setup.index >= setup.inflight->queues() || setup.size > setup.inflight->queue_size() ||
        setup.packed != setup.inflight->packed()) {
      return fail(ErrorCode::kInvalid, "the in-flight region does not fit the queue");
    }
  }
  return setup.packed ? PackedQueue::create(std::move(setup)) : SplitQueue::create(std::move(setup));
}

void Virtqueue::log_writes(const iovec* pieces, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    if (auto addr = setup_.memory->guest_addr(pieces[i].iov_base)) setup_.log->mark(*addr, pieces[i].iov_len);
  }
}

const char* ChainBuilder::add_pieces(std::uint64_t addr, std::uint32_t len) {
  IovecList list{next_, static_cast<std::uint32_t>(end() - next_), 0};
  switch (memory_.translate(addr, len, list)) {
    case GuestMemory::Translation::kOk:
      if (list.count == 1) hot_ = memory_.find(addr);
      break;
    case GuestMemory::Translation::kUnmapped:
      chain_.faulty = true;
      list.count = 0;
      if (!list.push(nullptr, len)) return kTooManyPieces;
      break;
    case GuestMemory::Translation::kTooManyPieces:
      return kTooManyPieces;
  }
  next_ += list.count;
  return nullptr;
}

}  // namespace pollux::virtio
