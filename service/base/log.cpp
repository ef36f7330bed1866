#include "base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <memory>

namespace pollux::log {

namespace {

std::string& file_path() {
  static std::string path;
  return path;
}

Status install(const std::string& file) {
  try {
    spdlog::sink_ptr sink;
    if (file.empty()) {
      sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    } else {
      sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(file);
    }
    auto logger = std::make_shared<spdlog::logger>("polluxd", std::move(sink));
    logger->set_level(spdlog::get_level());
    logger->flush_on(spdlog::level::info);
    logger->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %L %v", spdlog::pattern_time_type::utc);
    spdlog::set_default_logger(std::move(logger));
    return {};
  } catch (const spdlog::spdlog_ex& e) {
    return fail(ErrorCode::kIoError, "cannot open the log file '" + file + "': " + e.what());
  }
}

}  // namespace

Status init(const std::string& level, const std::string& file) {
  const auto parsed = spdlog::level::from_str(level);
  if (parsed == spdlog::level::off && level != "off") {
    return fail(ErrorCode::kInvalid, "log level '" + level + "' is not one of trace, debug, info, warn, error, off");
  }
  spdlog::set_level(parsed);
  file_path() = file;
  return install(file);
}

Status reopen() {
  if (file_path().empty()) return {};
  return install(file_path());
}

}  // namespace pollux::log
