#pragma once
// Telling a service manager that the service is ready, as sd_notify(3) does: a datagram to the socket that
// NOTIFY_SOCKET names. Nothing to do without it.

#include <string>

#include "base/result.h"

namespace pollux::control {

// "READY=1", "STOPPING=1", "RELOADING=1".
Status notify_manager(const std::string& state);

}  // namespace pollux::control
