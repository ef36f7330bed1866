#pragma once
// ScsiRequestQueue: a virtio-scsi request queue (VIRTIO 1.2 5.6.6.1): from a chain to a SCSI task and back.

#include <memory>

#include "protocol/virtio_scsi.h"
#include "scsi/task.h"
#include "vhost/limits.h"
#include "vhost/pieces.h"
#include "vhost/scsi_controller.h"
#include "vhost/vhost_queue.h"

namespace pollux::vhost {

class ScsiRequestQueue final : public VhostQueue {
 public:
  ScsiRequestQueue(std::unique_ptr<virtio::Virtqueue> ring, QueueFds fds, ReactorTargets& here);

 private:
  // A response may be scattered over so many pieces; drivers use one.
  static constexpr std::uint32_t kResponsePieces = 4;

  // One for each entry of the ring, made when the queue is.
  struct Request : QueueRequest<ScsiRequestQueue, scsi::Task> {
    iovec* pooled = nullptr;
    std::uint32_t log_count = 0;
    std::uint32_t response_count = 0;
    iovec response[kResponsePieces];
    iovec own[kInlinePieces];
  };

  void accept(const virtio::Chain& chain, virtio::IovecList& pieces) override;
  // Of every disk that this reactor serves to the guest: which of them a request is for is not kept.
  void hurry() override;
  void dispatch(Request& request, const protocol::ScsiRequestHeader& header, const Pieces& data_out,
                const Pieces& data_in);
  void answer(Request& request, const protocol::ScsiResponse& response, std::uint32_t data_written);
  void refuse(Request& request, protocol::ScsiResponseCode code);
  static void on_complete(scsi::Task& task);
  static scsi::CommandArrival arrival_of(const scsi::Task& task);

  ReactorTargets& on_reactor_;
  memory::Vector<Request> requests_;
};

}  // namespace pollux::vhost
