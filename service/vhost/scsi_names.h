#pragma once
// By which names a guest knows a SCSI disk: see thrift/pollux.thrift.

#include <cstdint>

namespace pollux::vhost {

enum class ScsiNames : std::uint8_t { kPollux = 1, kQemu = 2 };

}  // namespace pollux::vhost
