#pragma once
// Which device a pool stands on, as configuration and RPCs name it, and how to open it.

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "bdev/bdev.h"

namespace pollux::bdev {

struct Spec {
  enum class Kind : std::uint8_t { kRam = 1, kUring = 2 };
  Kind kind = Kind::kUring;
  // kUring: absolute path of a file or block device.
  std::string path;
  // kRam: the size. kUring: size of a file that does not exist yet; 0 when it must exist.
  std::uint64_t size_bytes = 0;

  bool operator==(const Spec&) const = default;
};

// kInvalid: relative path, no size, size not a multiple of 4096. kNotFound: no such file. kBusy: another process has it
// open as a pool (exclusive lock). kIoError: the kernel refused.
Result<std::shared_ptr<Bdev>> open(const Spec& spec);

}  // namespace pollux::bdev
