#pragma once
// Logging for everything but the data path, which counts instead of writing lines.
//
//   log::info("pool {} opened: {} volumes", name, count);
//
// Lines go to stderr, or to a file that is reopened on request (logrotate). Formats are checked when they are compiled;
// everything else of the logging library stays in log.cpp, because its headers take longer to compile than most files
// that log.

#include <fmt/core.h>

#include <cstdint>
#include <string>

#include "base/result.h"

namespace pollux::log {

enum class Level : std::uint8_t { kTrace, kDebug, kInfo, kWarn, kError, kCritical };

// A line, if lines of this level are wanted. Any thread.
void write(Level level, fmt::string_view format, fmt::format_args arguments);

template <typename... Args>
void line(Level level, fmt::format_string<Args...> format, Args&&... arguments) {
  write(level, format, fmt::make_format_args(arguments...));
}
template <typename... Args>
void debug(fmt::format_string<Args...> format, Args&&... arguments) {
  write(Level::kDebug, format, fmt::make_format_args(arguments...));
}
template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... arguments) {
  write(Level::kInfo, format, fmt::make_format_args(arguments...));
}
template <typename... Args>
void warn(fmt::format_string<Args...> format, Args&&... arguments) {
  write(Level::kWarn, format, fmt::make_format_args(arguments...));
}
template <typename... Args>
void error(fmt::format_string<Args...> format, Args&&... arguments) {
  write(Level::kError, format, fmt::make_format_args(arguments...));
}
template <typename... Args>
void critical(fmt::format_string<Args...> format, Args&&... arguments) {
  write(Level::kCritical, format, fmt::make_format_args(arguments...));
}

// Level: trace, debug, info, warn, error. Empty file: stderr. kInvalid for an unknown level, kIoError for the file.
Status init(const std::string& level, const std::string& file);

// Closes and opens the log file again; nothing to do for stderr.
Status reopen();

}  // namespace pollux::log
