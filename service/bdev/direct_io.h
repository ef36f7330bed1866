#pragma once
// DirectIo: what the kernel asks of a request with O_DIRECT. What it would refuse with EINVAL goes through a buffer.
//
// From Linux 6.1 on (block/fops.c, blkdev_dio_unaligned; fs/iomap/direct-io.c, iomap_dio_bio_iter) the address of each
// iovec is a multiple of the device's DMA alignment, and its length, not only that of the request, one of the logical
// block size: a piece that ends within a block would make a bio that does. Newer kernels ask for less.

#include <sys/uio.h>

#include <cstdint>

namespace pollux::bdev {

struct DirectIo {
  std::uint32_t memory_bytes = 512;  // of addresses; a power of two
  std::uint32_t block_bytes = 512;   // of offsets and lengths; a power of two

  bool takes(const iovec* iov, std::uint16_t iov_count) const {
    std::uintptr_t addresses = 0;
    std::size_t lengths = 0;
    for (std::uint16_t i = 0; i < iov_count; ++i) {
      addresses |= reinterpret_cast<std::uintptr_t>(iov[i].iov_base);
      lengths |= iov[i].iov_len;
    }
    return (addresses & (memory_bytes - 1)) == 0 && (lengths & (block_bytes - 1)) == 0;
  }
};

}  // namespace pollux::bdev
