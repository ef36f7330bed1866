#pragma once
// BlkQueue: a virtio-blk request queue (VIRTIO 1.2 5.2.6): from a chain to a block device request and back.

#include <memory>

#include "bdev/bdev.h"
#include "bdev/path_wait.h"
#include "vhost/blk_device.h"
#include "vhost/limits.h"
#include "vhost/pieces.h"
#include "vhost/vhost_queue.h"

namespace pollux::vhost {

class BlkQueue final : public VhostQueue {
 public:
  BlkQueue(std::unique_ptr<virtio::Virtqueue> ring, QueueFds fds, const BlkShared& shared, bdev::Channel& channel,
           reactor::Reactor& reactor, bool may_cache);

 private:
  // One for each entry of the ring, made when the queue is.
  struct Request : QueueRequest<BlkQueue, bdev::PathWait::Request> {
    std::byte* status_byte = nullptr;
    // Bytes written to the guest, the status byte aside.
    std::uint32_t written = 0;
    iovec* pooled = nullptr;
    // Of a transfer in steps: with the step under way, what is left.
    Pieces data;
    std::uint64_t left_bytes = 0;
    std::uint64_t beyond_bytes = 0;
    Request* next_step = nullptr;
    iovec own[kInlinePieces];
  };

  void accept(const virtio::Chain& chain, virtio::IovecList& pieces) override;
  void hurry() override { channel_.expedite(); }
  // Each hands the request to the device or answers it at once.
  void dispatch(Request& request, Pieces readable, Pieces writable);
  // Whether the disk has all of it.
  bool on_disk(std::uint64_t sector, std::uint64_t length_bytes);
  void transfer(Request& request, bdev::IoOp op, std::uint64_t sector, const Pieces& data);
  // A transfer of more than kStepBytes: a step at a time, and no more than one step of the queue a turn.
  void submit_step(Request& request);
  static void on_step(bdev::IoRequest& io);
  void go_on() override;
  void get_id(Request& request, const Pieces& data);
  void clear_range(Request& request, std::uint32_t type, Pieces& data);
  // Flags of a request that changes what the disk holds.
  std::uint8_t durability() const;
  void answer(Request& request, std::uint8_t status);
  static void on_complete(bdev::IoRequest& io);

  const BlkShared& shared_;
  bdev::Channel& channel_;
  // 5.2.6 has no status for it.
  bdev::PathWait path_wait_;
  const bool may_cache_;
  const std::uint32_t block_bytes_;
  // The disk had at least that when it was looked at last; disks never shrink.
  std::uint64_t known_bytes_ = 0;
  memory::Vector<Request> requests_;
  // Transfers whose next step is due, oldest first.
  Request* first_step_ = nullptr;
  Request* last_step_ = nullptr;
};

}  // namespace pollux::vhost
