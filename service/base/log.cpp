#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/dist_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace pollux::log {

namespace {

// The logger is made once and stays, for threads use it without a lock; what it writes to may change while they do.
class Outlet {
 public:
  static Outlet& get() {
    static Outlet only;
    return only;
  }

  Status open(std::string file) {
    try {
      spdlog::sink_ptr sink;
      if (file.empty()) {
        sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
      } else {
        sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(file);
      }
      sink->set_formatter(
          std::make_unique<spdlog::pattern_formatter>("%Y-%m-%dT%H:%M:%S.%eZ %L %v", spdlog::pattern_time_type::utc));
      sinks_->set_sinks({std::move(sink)});
      file_ = std::move(file);
      return {};
    } catch (const spdlog::spdlog_ex& e) {
      return fail(ErrorCode::kIoError, "cannot open the log file '" + file + "': " + e.what());
    }
  }
  Status reopen() { return file_.empty() ? Status{} : open(file_); }

 private:
  Outlet() : sinks_(std::make_shared<spdlog::sinks::dist_sink_mt>()) {
    auto logger = std::make_shared<spdlog::logger>("polluxd", sinks_);
    logger->flush_on(spdlog::level::info);
    spdlog::set_default_logger(std::move(logger));
  }

  std::shared_ptr<spdlog::sinks::dist_sink_mt> sinks_;
  std::string file_;
};

}  // namespace

void write(Level level, fmt::string_view format, fmt::format_args arguments) {
  static_assert(static_cast<int>(Level::kTrace) == spdlog::level::trace &&
                static_cast<int>(Level::kCritical) == spdlog::level::critical);
  const auto wanted = static_cast<spdlog::level::level_enum>(level);
  spdlog::logger& logger = *spdlog::default_logger_raw();
  if (!logger.should_log(wanted)) return;
  fmt::memory_buffer text;
  fmt::vformat_to(fmt::appender(text), format, arguments);
  logger.log(wanted, spdlog::string_view_t(text.data(), text.size()));
}

Status init(const std::string& level, const std::string& file) {
  const auto parsed = spdlog::level::from_str(level);
  if (parsed == spdlog::level::off && level != "off") {
    return fail(ErrorCode::kInvalid, "log level '" + level + "' is not one of trace, debug, info, warn, error, off");
  }
  POLLUX_TRY(Outlet::get().open(file));
  spdlog::set_level(parsed);
  return {};
}

Status reopen() {
  return Outlet::get().reopen();
}

}  // namespace pollux::log
