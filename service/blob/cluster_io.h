#pragma once
// ClusterIo: the one way by which the data of a pool reaches the pool's device and comes back: what guests read and
// write in place, first writes with their padding, copies, zeros, parts of blocks, discards, and the flush that makes
// all of it durable. Metadata goes by a channel of its own, which is the blob room's alone.
//
// Here stands what is to be done to data and not to metadata, such as checksums or encryption at the pool: a layer
// (bdev/layer.h) between ClusterIo and the device, see DataLayer. Without one ClusterIo's channel is the device's own.
//
// Places are named by cluster, and a request may run on into the clusters that follow it on the device. One a lane, on
// the lane's reactor.

#include <cstdint>
#include <functional>
#include <memory>

#include "bdev/bdev.h"
#include "blob/format.h"
#include "reactor/task.h"

namespace pollux::blob {

// Stands a layer on the pool's device, through which all data passes. It has the size and the blocks of the device, and
// a flush of it is a flush of the device.
using DataLayer = std::function<std::shared_ptr<bdev::Bdev>(std::shared_ptr<bdev::Bdev> device)>;

class ClusterIo {
 public:
  ClusterIo(bdev::Channel& channel, std::uint32_t cluster_shift) : channel_(channel), cluster_shift_(cluster_shift) {}

  // A read or write that has all but its place on the device.
  void submit(bdev::IoRequest& request, ClusterNo cluster, std::uint64_t offset_bytes) {
    request.offset_bytes = place(cluster, offset_bytes);
    channel_.submit(request);
  }

  // For coroutines; lengths and offsets in blocks of the device.
  reactor::Task<bdev::IoStatus> read(ClusterNo cluster, std::uint64_t offset_bytes, void* to,
                                     std::size_t length_bytes);
  reactor::Task<bdev::IoStatus> write(ClusterNo cluster, std::uint64_t offset_bytes, const void* from,
                                      std::size_t length_bytes);
  // The same bytes of another cluster.
  reactor::Task<bdev::IoStatus> copy(ClusterNo from, ClusterNo to, std::uint64_t offset_bytes,
                                     std::size_t length_bytes);
  // The clusters [first, first + count) hold nothing.
  reactor::Task<bdev::IoStatus> discard(ClusterNo first, std::uint64_t count);
  // What was written before on any lane is durable.
  reactor::Task<bdev::IoStatus> flush();

 private:
  std::uint64_t place(ClusterNo cluster, std::uint64_t offset_bytes) const {
    return (std::uint64_t{cluster} << cluster_shift_) + offset_bytes;
  }

  bdev::Channel& channel_;
  const std::uint32_t cluster_shift_;
};

}  // namespace pollux::blob
