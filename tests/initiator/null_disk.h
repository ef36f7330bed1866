#pragma once
// A disk that completes every request at once and touches no data: what is left is the cost of the front end.

#include <cstdint>
#include <memory>

#include "bdev/bdev.h"

namespace pollux::initiator {

// Blocks of 512 bytes.
std::shared_ptr<bdev::Bdev> make_null_disk(std::uint64_t size_bytes);

}  // namespace pollux::initiator
