#include "vhost/scsi_request_queue.h"

#include <algorithm>
#include <cstring>

#include "vhost/scsi_address.h"

namespace pollux::vhost {

using namespace protocol;

namespace {

// VIRTIO 1.2 5.6.6.1: task_attr.
constexpr std::uint8_t kAttrOrdered = 1;
constexpr std::uint8_t kAttrHead = 2;

scsi::TaskAttribute to_attribute(std::uint8_t attr) {
  switch (attr) {
    case kAttrOrdered:
      return scsi::TaskAttribute::kOrdered;
    case kAttrHead:
      return scsi::TaskAttribute::kHeadOfQueue;
    default:
      // ACA among them: there is no auto contingent allegiance to be in.
      return scsi::TaskAttribute::kSimple;
  }
}

ScsiResponseCode to_code(scsi::Outcome outcome) {
  switch (outcome) {
    case scsi::Outcome::kCompleted:
      return ScsiResponseCode::kOk;
    case scsi::Outcome::kOverrun:
      return ScsiResponseCode::kOverrun;
    case scsi::Outcome::kAborted:
      return ScsiResponseCode::kAborted;
    case scsi::Outcome::kReset:
      return ScsiResponseCode::kReset;
    case scsi::Outcome::kRemoved:
      return ScsiResponseCode::kBadTarget;
  }
  return ScsiResponseCode::kFailure;
}

}  // namespace

ScsiRequestQueue::ScsiRequestQueue(std::unique_ptr<virtio::Virtqueue> ring_to_own, QueueFds fds, ReactorTargets& here)
    : VhostQueue(std::move(ring_to_own), std::move(fds)), on_reactor_(here), requests_(ring().size()) {
  number(*this, requests_, on_complete);
  for (Request& request : requests_) {
    request.arrival = arrival_of;
    request.cdb_length = kScsiCdbBytes;
  }
}

scsi::CommandArrival ScsiRequestQueue::arrival_of(const scsi::Task& task) {
  const auto& request = static_cast<const Request&>(task);
  const virtio::Arrival arrival = request.queue->ring().arrival(request.id);
  // A guest's queues count for themselves.
  constexpr std::uint64_t kQueues = 1U << 7;
  if (arrival.number == 0) return {};
  return {arrival.number * kQueues + request.queue->ring().index() % kQueues, arrival.again};
}

[[gnu::always_inline]] inline void ScsiRequestQueue::answer(Request& request, const ScsiResponse& response,
                                                            std::uint32_t data_written) {
  const Pieces out{request.response, request.response_count};
  constexpr std::size_t kHead = offsetof(ScsiResponse, sense);
  if (response.sense_len == 0) [[likely]] {
    out.put(&response, kHead);
  } else {
    // The sense buffer beyond what is valid is the guest's to ignore.
    out.put(&response, kHead + response.sense_len);
  }
  if (response.response != static_cast<std::uint8_t>(ScsiResponseCode::kOk)) QueueCounters::add(counters_.errors);
  if (ring().logging()) [[unlikely]] {
    ring().log_writes(request.response, request.response_count);
    if (request.log_count != 0)
      ring().log_writes(request.pooled + IovecPool::kMaxPieces, std::exchange(request.log_count, 0));
  }
  if (request.pooled) [[unlikely]]
    tenant().give_array(std::exchange(request.pooled, nullptr));
  finish(request, static_cast<std::uint32_t>(sizeof(response)) + data_written);
}

[[gnu::always_inline]] inline void ScsiRequestQueue::dispatch(
    Request& request, const ScsiRequestHeader& header, const Pieces& data_out, const Pieces& data_in) {
  const auto address = decode_lun(header.lun);
  scsi::TargetChannel* target = address ? on_reactor_.targets[address->target].get() : nullptr;
  if (!target) {
    refuse(request, ScsiResponseCode::kBadTarget);
    return;
  }
  iovec* room = request.own;
  const bool logging = ring().logging();
  if (data_out.count + data_in.count > kInlinePieces || logging) [[unlikely]] {
    request.pooled = tenant().take_array();
    room = request.pooled;
  }
  request.data_out = room;
  request.data_out_count = data_out.count;
  request.data_out_bytes = data_out.copy_to(room);
  room += data_out.count;
  request.data_in = room;
  request.data_in_count = data_in.count;
  request.data_in_bytes = data_in.copy_to(room);
  if (logging) [[unlikely]] {
    // The task may shorten its own list; what it may have written is logged when it has.
    request.log_count = data_in.count;
    data_in.copy_to(request.pooled + IovecPool::kMaxPieces);
  }
  request.cdb = header.cdb;
  request.attribute = to_attribute(header.task_attr);
  request.tag = header.id;
  if (address->well_known) [[unlikely]] {
    target->submit_to_well_known(request);
  } else {
    target->submit(address->lun, request);
  }
}

void ScsiRequestQueue::accept(const virtio::Chain& chain, virtio::IovecList& pieces) {
  Request* free = begin(requests_, chain);
  if (!free) return;
  Request& request = *free;
  Pieces readable{pieces.items, chain.readable};
  Pieces writable{pieces.items + chain.readable, chain.writable};
  Pieces response{request.response, 0};
  ScsiRequestHeader header;
  // Without room for a response all that is left is to give the chain back.
  const bool answerable = !chain.faulty && writable.split_front(sizeof(ScsiResponse), response, kResponsePieces);
  request.response_count = response.count;
  if (!answerable || !readable.take_front(&header, sizeof(header))) {
    QueueCounters::add(counters_.errors);
    finish(request, 0);
    return;
  }
  dispatch(request, header, readable, writable);
}

void ScsiRequestQueue::hurry() {
  for (auto& target : on_reactor_.targets) {
    if (target) target->expedite();
  }
}

void ScsiRequestQueue::on_complete(scsi::Task& task) {
  auto& request = static_cast<Request&>(task);
  // Its sense data are set when there are some.
  ScsiResponse response;
  response.status_qualifier = 0;
  response.response = static_cast<std::uint8_t>(to_code(request.outcome));
  response.status = static_cast<std::uint8_t>(request.status);
  static_assert(scsi::kMaxSenseBytes <= kScsiSenseBytes);
  response.sense_len = request.sense_length;
  if (response.sense_len != 0) [[unlikely]]
    std::memcpy(response.sense.data(), request.sense.data(), request.sense_length);
  const std::uint64_t room = request.data_in_bytes + request.data_out_bytes;
  response.residual = static_cast<std::uint32_t>(room - std::min(room, request.transferred_bytes));
  const std::uint64_t data_written =
      request.data_in_bytes == 0 ? 0 : std::min(request.transferred_bytes, request.data_in_bytes);
  request.queue->answer(request, response, static_cast<std::uint32_t>(data_written));
}

void ScsiRequestQueue::refuse(Request& request, ScsiResponseCode code) {
  ScsiResponse response{};
  response.response = static_cast<std::uint8_t>(code);
  answer(request, response, 0);
}

}  // namespace pollux::vhost
