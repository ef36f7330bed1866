#include "blob/cluster_io.h"

#include "blob/aligned_buffer.h"

namespace pollux::blob {

using bdev::IoStatus;

reactor::Task<IoStatus> ClusterIo::read(ClusterNo cluster, std::uint64_t offset_bytes, void* to,
                                        std::size_t length_bytes) {
  return bdev::read(channel_, place(cluster, offset_bytes), to, length_bytes);
}

reactor::Task<IoStatus> ClusterIo::write(ClusterNo cluster, std::uint64_t offset_bytes, const void* from,
                                         std::size_t length_bytes) {
  return bdev::write(channel_, place(cluster, offset_bytes), from, length_bytes);
}

reactor::Task<IoStatus> ClusterIo::copy(ClusterNo from, ClusterNo to, std::uint64_t offset_bytes,
                                        std::size_t length_bytes) {
  AlignedBuffer bytes(length_bytes);
  const IoStatus status = co_await read(from, offset_bytes, bytes.data(), length_bytes);
  if (status != IoStatus::kOk) co_return status;
  co_return co_await write(to, offset_bytes, bytes.data(), length_bytes);
}

reactor::Task<IoStatus> ClusterIo::discard(ClusterNo first, std::uint64_t count) {
  return bdev::unmap(channel_, place(first, 0), count << cluster_shift_);
}

reactor::Task<IoStatus> ClusterIo::flush() {
  return bdev::flush(channel_);
}

}  // namespace pollux::blob
