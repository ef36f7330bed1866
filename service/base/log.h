#pragma once
// Logging for everything but the data path, which counts instead of writing lines.
//
//   log::info("pool {} opened: {} volumes", name, count);
//
// Lines go to stderr, or to a file that is reopened on request (logrotate).

#include <spdlog/spdlog.h>

#include <string>

#include "base/result.h"

namespace pollux::log {

using spdlog::critical;
using spdlog::debug;
using spdlog::error;
using spdlog::info;
using spdlog::warn;

// Level: trace, debug, info, warn, error. Empty file: stderr. kInvalid for an unknown level, kIoError for the file.
Status init(const std::string& level, const std::string& file);

// Closes and opens the log file again; nothing to do for stderr.
Status reopen();

}  // namespace pollux::log
