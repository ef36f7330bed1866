// polluxd: reads the command line and the configuration, starts the service, and waits for signals in a libuv loop.
//
// SIGTERM, SIGINT: drain and stop. SIGHUP: reopen the log, read the certificates again. Exit status: 0 after a clean
// stop, 1 when starting or stopping failed, 2 for a wrong configuration. --fsck has codes of its own, see
// control/fsck.h.

#include <unistd.h>
#include <uv.h>

#include <CLI/CLI.hpp>
#include <array>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>

#include "base/descriptors.h"
#include "base/log.h"
#include "base/memory.h"
#include "control/config.h"
#include "control/daemon.h"
#include "control/fsck.h"
#include "control/notify.h"

namespace {

using pollux::control::Config;
using pollux::control::Daemon;

constexpr int kExitFailure = 1;
constexpr int kExitConfiguration = 2;

// The loop and what its signals act on. Main thread.
struct Loop {
  uv_loop_t loop{};
  std::array<uv_signal_t, 3> signals{};
  Daemon* daemon = nullptr;
  bool stopping = false;

  bool start() {
    if (uv_loop_init(&loop) != 0) return false;
    loop.data = this;
    constexpr std::array<int, 3> kSignals = {SIGTERM, SIGINT, SIGHUP};
    for (std::size_t i = 0; i < signals.size(); ++i) {
      if (uv_signal_init(&loop, &signals[i]) != 0 || uv_signal_start(&signals[i], on_signal, kSignals[i]) != 0)
        return false;
    }
    return true;
  }

  // Also takes signals that came while the service was starting.
  void run() {
    if (!stopping) uv_run(&loop, UV_RUN_DEFAULT);
  }

  void close() {
    for (auto& signal : signals) uv_close(reinterpret_cast<uv_handle_t*>(&signal), nullptr);
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
  }

  static void on_signal(uv_signal_t* handle, int number) {
    auto& self = *static_cast<Loop*>(handle->loop->data);
    if (number == SIGHUP) {
      if (self.daemon != nullptr) self.daemon->reload();
      return;
    }
    pollux::log::info("stop: {}", number == SIGTERM ? "SIGTERM" : "SIGINT");
    self.stopping = true;
    uv_stop(handle->loop);
  }
};

void tell_manager(const std::string& state) {
  if (const auto status = pollux::control::notify_manager(state); !status)
    pollux::log::warn("{}", status.error().message);
}

bool write_pid_file(const std::string& path) {
  if (path.empty()) return true;
  std::ofstream file(path, std::ios::trunc);
  file << getpid() << '\n';
  file.close();
  if (!file) pollux::log::error("start: cannot write the pid file {}", path);
  return static_cast<bool>(file);
}

pollux::memory::Options memory_options(const Config::Memory& memory) {
  using pollux::memory::Hugepages;
  const auto hugepages = memory.hugepages == "on"    ? Hugepages::kOn
                         : memory.hugepages == "off" ? Hugepages::kOff
                                                     : Hugepages::kAuto;
  return {hugepages, memory.size_mb};
}

int serve(const Config& config) {
  pollux::log::info("polluxd {} starts as {}", POLLUX_VERSION, config.service.host_id);
  Loop loop;
  if (!loop.start()) {
    pollux::log::error("start: no event loop");
    return kExitFailure;
  }
  auto daemon = Daemon::start(config, POLLUX_VERSION);
  if (!daemon) {
    pollux::log::error("start: {}", daemon.error().message);
    loop.close();
    return kExitFailure;
  }
  loop.daemon = daemon->get();
  bool clean = write_pid_file(config.service.pid_file);
  if (clean) {
    pollux::log::info("polluxd is ready");
    tell_manager("READY=1");
    loop.run();
    tell_manager("STOPPING=1");
  }
  loop.daemon = nullptr;
  if (const auto status = (*daemon)->stop(); !status) {
    pollux::log::error("stop: {}", status.error().message);
    clean = false;
  }
  daemon->reset();
  loop.close();
  if (!config.service.pid_file.empty()) std::remove(config.service.pid_file.c_str());
  pollux::log::info("polluxd stopped");
  return clean ? 0 : kExitFailure;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"polluxd: polled block storage for the virtual machines of this host"};
  std::string path;
  bool check = false;
  app.add_option("--config", path, "configuration file; etc/polluxd.toml describes every key");
  app.add_flag("--check", check, "say whether the configuration is right, and exit");
  std::string device;
  bool repair = false;
  auto* fsck = app.add_option("--fsck", device,
                              "check the pool on this file or device, which no service may have open, and exit: 0 in "
                              "order, 1 errors and all repaired, 4 errors left, 8 nothing could be checked");
  app.add_flag("--repair", repair, "with --fsck: correct wrong counts and free leaked space")->needs(fsck);
  app.set_version_flag("--version", "polluxd " POLLUX_VERSION);
  CLI11_PARSE(app, argc, argv);

  if (!device.empty()) return pollux::control::run_fsck(device, repair, std::cout);
  if (path.empty()) return app.exit(CLI::RequiredError("--config"));
  const auto config = pollux::control::load_config(path);
  if (!config) {
    std::cerr << config.error().message << '\n';
    return kExitConfiguration;
  }
  if (check) {
    std::cout << path << " is right\n";
    return 0;
  }
  if (const auto status = pollux::log::init(config->service.log_level, config->service.log_file); !status) {
    std::cerr << status.error().message << '\n';
    return kExitFailure;
  }
  if (const auto status = pollux::memory::start(memory_options(config->memory)); !status) {
    pollux::log::error("start: {}", status.error().message);
    return kExitFailure;
  }
  pollux::log::info("start: {} MiB of {} pages", config->memory.size_mb,
                    pollux::memory::usage().hugepages ? "huge" : "ordinary");
  if (const auto limit = pollux::raise_descriptor_limit(); !limit) {
    pollux::log::warn("start: {}", limit.error().message);
  } else {
    pollux::log::info("start: at most {} descriptors", *limit);
  }
  // A client that goes away is an error of its connection, not the end of the service.
  std::signal(SIGPIPE, SIG_IGN);
  return serve(*config);
}
