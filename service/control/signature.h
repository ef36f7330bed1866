#pragma once
// Before a device is formatted: whether it holds something that somebody may miss.

#include <string>

#include "base/result.h"

namespace pollux::control {

// What libblkid recognises on a file or block device: "ext4 file system 'data'", "gpt partition table"; empty when it
// recognises nothing. A pool of ours is none of it. Reads the device, so only on a thread that may block. kIoError: it
// cannot be read.
Result<std::string> find_signature(const std::string& path);

}  // namespace pollux::control
