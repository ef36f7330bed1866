#include "vhost/scsi_control_queue.h"

#include <optional>

#include "vhost/scsi_address.h"

namespace pollux::vhost {

using namespace protocol;

namespace {

// VIRTIO 1.2 5.6.6.2: subtypes of a TMF request, in their order.
std::optional<scsi::TaskFunction> to_function(std::uint32_t subtype) {
  constexpr scsi::TaskFunction kFunctions[] = {
      scsi::TaskFunction::kAbortTask,    scsi::TaskFunction::kAbortTaskSet, scsi::TaskFunction::kClearAca,
      scsi::TaskFunction::kClearTaskSet, scsi::TaskFunction::kNexusReset,   scsi::TaskFunction::kLogicalUnitReset,
      scsi::TaskFunction::kQueryTask,    scsi::TaskFunction::kQueryTaskSet,
  };
  if (subtype >= std::size(kFunctions)) return std::nullopt;
  return kFunctions[subtype];
}

}  // namespace

ScsiControlQueue::ScsiControlQueue(std::unique_ptr<virtio::Virtqueue> ring_to_own, QueueFds fds, ReactorTargets& here)
    : VhostQueue(std::move(ring_to_own), std::move(fds)), on_reactor_(here), requests_(ring().size()) {
  number(*this, requests_, on_complete);
  ignore_budget();
}

void ScsiControlQueue::accept(const virtio::Chain& chain, virtio::IovecList& pieces) {
  Request* free = begin(requests_, chain);
  if (!free) return;
  Request& request = *free;
  request.response_byte = nullptr;
  Pieces readable{pieces.items, chain.readable};
  const Pieces writable{pieces.items + chain.readable, chain.writable};
  const auto give_back = [&](std::uint32_t written) { finish(request, written); };
  std::uint32_t type = 0;
  if (chain.faulty || !readable.take_front(&type, sizeof(type))) {
    give_back(0);
    return;
  }
  if (type == kScsiControlTmf) {
    ScsiTmfRequest tmf;
    if (!readable.take_front(&tmf, sizeof(tmf)) || writable.bytes() < 1) {
      give_back(0);
      return;
    }
    request.response_byte = static_cast<std::byte*>(writable.items[0].iov_base);
    manage(request, tmf);
    return;
  }
  ScsiAnRequest query;
  const bool known = type == kScsiControlAnQuery || type == kScsiControlAnSubscribe;
  if (!known || !readable.take_front(&query, sizeof(query)) || writable.bytes() < sizeof(ScsiAnResponse)) {
    give_back(0);
    return;
  }
  // There is no asynchronous event that a disk could report.
  const auto address = decode_lun(query.lun);
  const bool there = address && on_reactor_.targets[address->target];
  ScsiAnResponse response{};
  response.response = static_cast<std::uint8_t>(there ? ScsiResponseCode::kOk : ScsiResponseCode::kBadTarget);
  writable.put(&response, sizeof(response));
  if (ring().logging()) ring().log_writes(writable.items, writable.count);
  give_back(sizeof(response));
}

void ScsiControlQueue::manage(Request& request, const ScsiTmfRequest& tmf) {
  const auto address = decode_lun(tmf.lun);
  scsi::TargetChannel* target = address ? on_reactor_.targets[address->target].get() : nullptr;
  if (!target) {
    answer(request, ScsiResponseCode::kBadTarget);
    return;
  }
  scsi::LunChannel* channel = target->find(address->lun);
  if (!channel || address->well_known) {
    answer(request, ScsiResponseCode::kIncorrectLun);
    return;
  }
  const auto function = to_function(tmf.subtype);
  if (!function) {
    answer(request, ScsiResponseCode::kFunctionRejected);
    return;
  }
  request.function = *function;
  request.tag = tmf.id;
  request.response = scsi::TaskFunctionResponse::kComplete;
  channel->nexus().manage(request);
}

void ScsiControlQueue::on_complete(scsi::TaskManagement& management) {
  auto& request = static_cast<Request&>(management);
  ScsiResponseCode code = ScsiResponseCode::kOk;
  switch (request.response) {
    case scsi::TaskFunctionResponse::kComplete:
      code = ScsiResponseCode::kOk;
      break;
    case scsi::TaskFunctionResponse::kSucceeded:
      code = ScsiResponseCode::kFunctionSucceeded;
      break;
    case scsi::TaskFunctionResponse::kRejected:
      code = ScsiResponseCode::kFunctionRejected;
      break;
    case scsi::TaskFunctionResponse::kIncorrectLun:
      code = ScsiResponseCode::kIncorrectLun;
      break;
  }
  request.queue->answer(request, code);
}

void ScsiControlQueue::answer(Request& request, ScsiResponseCode code) {
  *request.response_byte = static_cast<std::byte>(code);
  if (ring().logging()) {
    const iovec piece{request.response_byte, 1};
    ring().log_writes(&piece, 1);
  }
  finish(request, 1);
}

}  // namespace pollux::vhost
