#pragma once
// RamBdev: memory of the process as a block device, for tests, benchmarks and throw-away pools. Requests complete
// inside submit(). Memory is taken from the kernel page by page as it is written, and given back by unmap; flush has
// nothing to do.

#include <memory>
#include <string>

#include "base/result.h"
#include "bdev/bdev.h"

namespace pollux::bdev {

// size_bytes: a multiple of 4096, not 0, else kInvalid. kNoSpace when the address space is not to be had.
Result<std::shared_ptr<Bdev>> make_ram_bdev(std::string name, std::uint64_t size_bytes,
                                            std::uint32_t block_bytes = 512);

}  // namespace pollux::bdev
