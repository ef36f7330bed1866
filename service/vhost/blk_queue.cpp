#include "vhost/blk_queue.h"

#include <algorithm>

#include "base/units.h"
#include "protocol/virtio_blk.h"

namespace pollux::vhost {

using namespace protocol;

namespace {

[[gnu::always_inline]] inline bool within(std::uint64_t size_bytes, std::uint64_t sector, std::uint64_t length_bytes) {
  return sector <= size_bytes / kSectorBytes && length_bytes <= size_bytes - sector * kSectorBytes;
}

}  // namespace

BlkQueue::BlkQueue(std::unique_ptr<virtio::Virtqueue> ring_to_own, QueueFds fds, const BlkShared& shared,
                   bdev::Channel& channel, reactor::Reactor& reactor, bool may_cache)
    : VhostQueue(std::move(ring_to_own), std::move(fds)),
      shared_(shared),
      channel_(channel),
      path_wait_(reactor, channel, shared.path_patience),
      may_cache_(may_cache),
      block_bytes_(shared.bdev->block_bytes()),
      requests_(ring().size()) {
  number(*this, requests_, on_complete);
}

void BlkQueue::accept(const virtio::Chain& chain, virtio::IovecList& pieces) {
  Request* free = begin(requests_, chain, kStepBytes);
  if (!free) return;
  Request& request = *free;
  request.written = 0;
  Pieces readable{pieces.items, chain.readable};
  Pieces writable{pieces.items + chain.readable, chain.writable};
  const bool status_mapped = chain.writable != 0 && pieces.items[pieces.count - 1].iov_base != nullptr;
  request.status_byte = status_mapped ? writable.take_last_byte() : nullptr;
  if (!request.status_byte || chain.faulty) {
    answer(request, kBlkIoError);
    return;
  }
  dispatch(request, readable, writable);
}

[[gnu::always_inline]] inline void BlkQueue::dispatch(Request& request, Pieces readable, Pieces writable) {
  BlkHeader header;
  if (!readable.take_front(&header, sizeof(header))) {
    answer(request, kBlkIoError);
    return;
  }
  switch (header.type) {
    case kBlkIn:
      transfer(request, bdev::IoOp::kRead, header.sector, writable);
      return;
    case kBlkOut:
      transfer(request, bdev::IoOp::kWrite, header.sector, readable);
      return;
    case kBlkFlush:
      request.op = bdev::IoOp::kFlush;
      request.flags = 0;
      request.offset_bytes = request.length_bytes = 0;
      request.iov = nullptr;
      request.iov_count = 0;
      channel_.submit(request);
      return;
    case kBlkGetId:
      get_id(request, writable);
      return;
    case kBlkDiscard:
    case kBlkWriteZeroes:
      clear_range(request, header.type, readable);
      return;
    default:
      answer(request, kBlkUnsupported);
  }
}

[[gnu::always_inline]] inline bool BlkQueue::on_disk(std::uint64_t sector, std::uint64_t length_bytes) {
  if (within(known_bytes_, sector, length_bytes)) [[likely]]
    return true;
  known_bytes_ = shared_.bdev->size_bytes();
  return within(known_bytes_, sector, length_bytes);
}

[[gnu::always_inline]] inline void BlkQueue::transfer(Request& request, bdev::IoOp op, std::uint64_t sector,
                                                      const Pieces& data) {
  iovec* room = request.own;
  if (data.count > kInlinePieces) [[unlikely]] {
    request.pooled = tenant().take_array();
    room = request.pooled;
  }
  const std::uint64_t length = data.copy_to(room);
  request.data = {room, data.count};
  if (!on_disk(sector, length) || ((length | sector * kSectorBytes) & (block_bytes_ - 1)) != 0 ||
      (op == bdev::IoOp::kWrite && shared_.read_only)) [[unlikely]] {
    answer(request, kBlkIoError);
    return;
  }
  if (length == 0) [[unlikely]] {
    answer(request, kBlkOk);
    return;
  }
  request.op = op;
  request.flags = op == bdev::IoOp::kWrite ? durability() : 0;
  if (op == bdev::IoOp::kRead) request.written = static_cast<std::uint32_t>(length);
  request.offset_bytes = sector * kSectorBytes;
  if (length > kStepBytes) [[unlikely]] {
    request.left_bytes = length;
    request.complete = on_step;
    return submit_step(request);
  }
  request.length_bytes = length;
  request.iov = request.data.items;
  request.iov_count = static_cast<std::uint16_t>(request.data.count);
  channel_.submit(request);
}

void BlkQueue::submit_step(Request& request) {
  request.length_bytes = std::min<std::uint64_t>(request.left_bytes, kStepBytes);
  request.iov = request.data.items;
  request.iov_count = 0;
  std::uint64_t covered = 0;
  while (covered < request.length_bytes) covered += request.data.items[request.iov_count++].iov_len;
  // What the last piece has beyond the step, on_step() gives back to it.
  request.data.items[request.iov_count - 1].iov_len -= covered - request.length_bytes;
  request.beyond_bytes = covered - request.length_bytes;
  channel_.submit(request);
}

void BlkQueue::on_step(bdev::IoRequest& io) {
  auto& request = static_cast<Request&>(io);
  BlkQueue& queue = *request.queue;
  if (request.status == bdev::IoStatus::kPathLost) [[unlikely]]
    return queue.path_wait_.hold(request);
  if (request.op == bdev::IoOp::kRead && queue.ring().logging())
    queue.ring().log_writes(request.iov, request.iov_count);
  request.left_bytes -= request.length_bytes;
  if (request.status != bdev::IoStatus::kOk || request.left_bytes == 0) {
    request.complete = on_complete;
    queue.answer(request, request.status == bdev::IoStatus::kOk ? kBlkOk : kBlkIoError);
    return;
  }
  request.flags |= bdev::IoRequest::kContinues;
  request.offset_bytes += request.length_bytes;
  request.data.items += request.iov_count;
  request.data.count -= request.iov_count;
  if (request.beyond_bytes != 0) {
    iovec& last = *--request.data.items;
    ++request.data.count;
    last.iov_base = static_cast<std::byte*>(last.iov_base) + last.iov_len;
    last.iov_len = request.beyond_bytes;
  }
  request.next_step = nullptr;
  (queue.last_step_ ? queue.last_step_->next_step : queue.first_step_) = &request;
  queue.last_step_ = &request;
  queue.goes_on(true);
}

void BlkQueue::go_on() {
  Request& request = *first_step_;
  first_step_ = request.next_step;
  if (!first_step_) {
    last_step_ = nullptr;
    goes_on(false);
  }
  submit_step(request);
}

void BlkQueue::get_id(Request& request, const Pieces& data) {
  request.written = static_cast<std::uint32_t>(data.put(shared_.id, sizeof(shared_.id)));
  if (ring().logging()) ring().log_writes(data.items, data.count);
  answer(request, kBlkOk);
}

void BlkQueue::clear_range(Request& request, std::uint32_t type, Pieces& data) {
  const bool discard = type == kBlkDiscard;
  if (discard && !shared_.discard) {
    answer(request, kBlkUnsupported);
    return;
  }
  BlkRange segment{};
  // 5.2.6.2: more segments than announced (one), or a part of one.
  if (shared_.read_only || data.bytes() != sizeof(segment) || !data.take_front(&segment, sizeof(segment))) {
    answer(request, kBlkIoError);
    return;
  }
  // 5.2.6.2: unknown flags, and unmap with a discard, are unsupported.
  if ((segment.flags & ~BlkRange::kUnmap) != 0 || (discard && segment.flags != 0)) {
    answer(request, kBlkUnsupported);
    return;
  }
  const std::uint64_t length = std::uint64_t{segment.sectors} * kSectorBytes;
  if (segment.sectors > (discard ? kBlkMaxDiscardSectors : kBlkMaxWriteZeroesSectors) ||
      !on_disk(segment.sector, length) ||
      !is_aligned<std::uint64_t>(length, block_bytes_) ||
      !is_aligned<std::uint64_t>(segment.sector * kSectorBytes, block_bytes_)) {
    answer(request, kBlkIoError);
    return;
  }
  if (length == 0) {
    answer(request, kBlkOk);
    return;
  }
  request.op = discard ? bdev::IoOp::kUnmap : bdev::IoOp::kWriteZeroes;
  request.flags = durability();
  if (segment.flags & BlkRange::kUnmap) request.flags |= bdev::IoRequest::kMayUnmap;
  request.offset_bytes = segment.sector * kSectorBytes;
  request.length_bytes = length;
  request.iov = nullptr;
  request.iov_count = 0;
  channel_.submit(request);
}

// 5.2.6.2: without a cache that the driver knows of, what is answered is stable. That goes for a discard as well, since
// what it leaves reads as zeros.
std::uint8_t BlkQueue::durability() const {
  const bool cached = may_cache_ && shared_.writeback.load(std::memory_order_relaxed);
  return cached ? 0 : bdev::IoRequest::kFua;
}

void BlkQueue::on_complete(bdev::IoRequest& io) {
  auto& request = static_cast<Request&>(io);
  BlkQueue& queue = *request.queue;
  if (request.status == bdev::IoStatus::kPathLost) [[unlikely]]
    return queue.path_wait_.hold(request);
  if (request.op == bdev::IoOp::kRead && queue.ring().logging())
    queue.ring().log_writes(request.data.items, request.data.count);
  queue.answer(request, request.status == bdev::IoStatus::kOk ? kBlkOk : kBlkIoError);
}

void BlkQueue::answer(Request& request, std::uint8_t status) {
  std::uint32_t written = 0;
  if (request.status_byte) {
    *request.status_byte = std::byte{status};
    written = request.written + 1;
    if (ring().logging()) {
      const iovec piece{request.status_byte, 1};
      ring().log_writes(&piece, 1);
    }
  }
  if (status != kBlkOk) QueueCounters::add(counters_.errors);
  if (request.pooled) tenant().give_array(std::exchange(request.pooled, nullptr));
  finish(request, written);
}

}  // namespace pollux::vhost
