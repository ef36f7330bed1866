#pragma once
// What tells this installation of the service from every other: a UUID in its state directory, made at its first start.
// It is on record on each device whose pool it has open, so that a service that was killed has its pools back at once.

#include <string>

#include "base/result.h"
#include "base/uuid.h"

namespace pollux::control {

// Reads it, or makes it, durably. Only for who holds the directory's lock. kIoError, kCorrupt.
Result<Uuid> service_id(const std::string& state_dir);

}  // namespace pollux::control
