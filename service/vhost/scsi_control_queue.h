#pragma once
// ScsiControlQueue: task management and asynchronous notification requests of a virtio-scsi guest (VIRTIO 1.2 5.6.6.2).

#include <memory>

#include "protocol/virtio_scsi.h"
#include "scsi/task.h"
#include "vhost/pieces.h"
#include "vhost/scsi_controller.h"
#include "vhost/vhost_queue.h"

namespace pollux::vhost {

class ScsiControlQueue final : public VhostQueue {
 public:
  ScsiControlQueue(std::unique_ptr<virtio::Virtqueue> ring, QueueFds fds, ReactorTargets& here);

 private:
  struct Request : QueueRequest<ScsiControlQueue, scsi::TaskManagement> {
    std::byte* response_byte = nullptr;
  };

  void accept(const virtio::Chain& chain, virtio::IovecList& pieces) override;
  void manage(Request& request, const protocol::ScsiTmfRequest& tmf);
  void answer(Request& request, protocol::ScsiResponseCode code);
  static void on_complete(scsi::TaskManagement& management);

  ReactorTargets& on_reactor_;
  memory::Vector<Request> requests_;
};

}  // namespace pollux::vhost
