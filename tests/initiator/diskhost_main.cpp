// pollux-diskhost: disks in memory or in files behind vhost-user sockets, without pools, volumes or a control plane.
// For tests and benchmarks of the front ends alone.
//
//   pollux-diskhost --dir /tmp/x --blk a=ram:64M --scsi g:0=file:/tmp/disk.img --reactors 2
//
// Prints "ready" when all sockets are there; ends at SIGTERM or SIGINT. Lines on standard input change it while it
// runs: "add NAME:TARGET=SPEC", "remove NAME:TARGET"; each is answered by "ok" or "error ...". "counters" is answered
// by a line of JSON with the reactors' counters.

#include <sched.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "bdev/ram.h"
#include "bdev/spec.h"
#include "initiator/null_disk.h"
#include "vhost/vhost_service.h"

namespace {

using namespace pollux;

std::uint64_t parse_size(const std::string& text) {
  std::size_t end = 0;
  const std::uint64_t number = std::stoull(text, &end);
  const std::string unit = text.substr(end);
  if (unit == "K") return number << 10;
  if (unit == "M") return number << 20;
  if (unit == "G") return number << 30;
  if (unit.empty()) return number;
  throw std::runtime_error("unknown unit in size " + text);
}

// null:SIZE, ram:SIZE, ram4k:SIZE (4096-byte blocks), file:PATH or file:PATH:SIZE.
std::shared_ptr<bdev::Bdev> open_disk(const std::string& spec) {
  static std::map<std::string, std::shared_ptr<bdev::Bdev>> files;
  const auto colon = spec.find(':');
  const std::string kind = spec.substr(0, colon);
  const std::string rest = colon == std::string::npos ? "" : spec.substr(colon + 1);
  Result<std::shared_ptr<bdev::Bdev>> opened;
  if (kind == "null") {
    opened = initiator::make_null_disk(parse_size(rest));
  } else if (kind == "ram" || kind == "ram4k") {
    opened = bdev::make_ram_bdev("ram", parse_size(rest), kind == "ram" ? 512 : 4096);
  } else if (kind == "file") {
    if (auto& known = files[spec]) return known;
    const auto second = rest.find(':');
    bdev::Spec file{.kind = bdev::Spec::Kind::kUring, .path = rest.substr(0, second)};
    if (second != std::string::npos) file.size_bytes = parse_size(rest.substr(second + 1));
    // After a kill the kernel ends the dead process's requests, and drops its lock, in its own time.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    do {
      opened = bdev::open(file);
      if (opened || opened.error().code != ErrorCode::kBusy) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    } while (std::chrono::steady_clock::now() < deadline);
    if (opened) files[spec] = *opened;
  } else {
    throw std::runtime_error("unknown disk " + spec);
  }
  if (!opened) throw std::runtime_error(opened.error().message);
  return *opened;
}

// "NAME:TARGET=SPEC"; without '=' the specification is empty.
struct ScsiArgument {
  std::string name;
  std::uint16_t target = 0;
  std::string spec;
};

ScsiArgument parse_scsi(const std::string& text) {
  const auto equals = text.find('=');
  const auto colon = text.rfind(':', equals);
  if (colon == std::string::npos || colon == 0) throw std::runtime_error("not NAME:TARGET: " + text);
  return {text.substr(0, colon), static_cast<std::uint16_t>(std::stoul(text.substr(colon + 1))),
          equals == std::string::npos ? "" : text.substr(equals + 1)};
}

// One uuid for each name, the same after a restart.
Uuid uuid_of(const std::string& name) {
  Uuid uuid;
  std::size_t hash = std::hash<std::string>{}(name);
  for (auto& byte : uuid.bytes) {
    byte = static_cast<std::uint8_t>(hash);
    hash = hash * 6364136223846793005ULL + 1442695040888963407ULL;
    hash = hash >> 8 | hash << 56;
  }
  return uuid;
}

void add_scsi(vhost::VhostService& service, const ScsiArgument& argument, bool read_only) {
  const vhost::ScsiTarget where{argument.target, 0};
  // A file is one volume, however often it is attached.
  const bool shared = argument.spec.starts_with("file:");
  const std::string id = shared ? argument.spec : argument.name + ":" + std::to_string(argument.target);
  if (auto added = service.add_scsi_target(argument.name, where, {open_disk(argument.spec), uuid_of(id), read_only});
      !added) {
    throw std::runtime_error(added.error().message);
  }
}

reactor::Task<Result<reactor::Reactor::Counters>> read_counters(reactor::Reactor& reactor) {
  co_await reactor.enter();
  co_return reactor.counters();
}

std::string counters(reactor::ReactorGroup& reactors) {
  std::ostringstream out;
  for (std::size_t i = 0; i < reactors.size(); ++i) {
    const auto now = reactor::call(reactors.at(i), read_counters(reactors.at(i)));
    if (!now) throw std::runtime_error(now.error().message);
    out << (i == 0 ? "[" : ", ") << "{\"loops\": " << now->loops << ", \"busy_loops\": " << now->busy_loops
        << ", \"busy_cycles\": " << now->busy_tsc << ", \"sleeps\": " << now->sleeps << "}";
  }
  return out.str() + "]";
}

// As polluxd does it: the process's main thread, and with it what works for the devices, leaves the reactors' cores.
void leave(const std::vector<unsigned>& cores) {
  cpu_set_t others;
  if (sched_getaffinity(0, sizeof(others), &others) != 0) return;
  for (const unsigned core : cores) CPU_CLR(core, &others);
  // Where there are no others, it has to share.
  if (CPU_COUNT(&others) == 0) return;
  if (sched_setaffinity(0, sizeof(others), &others) != 0) throw std::runtime_error("cannot leave the reactors' cores");
}

std::string obey(vhost::VhostService& service, reactor::ReactorGroup& reactors, const std::string& line) {
  std::istringstream words(line);
  std::string verb, what;
  words >> verb >> what;
  if (verb == "counters") return counters(reactors);
  const ScsiArgument argument = parse_scsi(what);
  if (verb == "add") {
    add_scsi(service, argument, false);
  } else if (verb == "remove") {
    if (auto removed = service.remove_scsi_target(argument.name, {argument.target, 0}); !removed)
      throw std::runtime_error(removed.error().message);
  } else {
    throw std::runtime_error("unknown verb " + verb);
  }
  return "ok";
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("disks behind vhost-user sockets, for tests and benchmarks");
  std::string dir, level = "info";
  std::vector<std::string> blks, scsis;
  std::vector<unsigned> cores;
  unsigned reactors = 2, queues = 4;
  bool read_only = false, poll = false;
  app.add_option("--dir", dir, "directory of the sockets")->required();
  app.add_option("--blk", blks, "NAME=SPEC: a blk device; SPEC is null:SIZE, ram:SIZE, ram4k:SIZE or file:PATH[:SIZE]");
  app.add_option("--scsi", scsis, "NAME:TARGET=SPEC: a target of a scsi controller");
  app.add_option("--queues", queues, "request queues of each device");
  app.add_option("--reactors", reactors, "how many reactors");
  app.add_option("--cores", cores, "a core for each reactor; without it they are not pinned");
  app.add_flag("--read-only", read_only, "all disks");
  app.add_flag("--poll", poll, "never sleep");
  app.add_option("--log-level", level);
  CLI11_PARSE(app, argc, argv);

  // Every thread that follows leaves the signals to this one.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // The reader of its standard output may be gone: that is no reason to take the guests' disks away.
  ::signal(SIGPIPE, SIG_IGN);
  try {
    if (auto ready = log::init(level, ""); !ready) throw std::runtime_error(ready.error().message);
    std::vector<reactor::Reactor::Options> options;
    for (unsigned i = 0; i < reactors; ++i) {
      reactor::Reactor::Options each{.id = i,
                                     .idle = poll ? reactor::IdlePolicy::kPoll : reactor::IdlePolicy::kAdaptive};
      if (i < cores.size()) each.core = cores[i];
      options.push_back(each);
    }
    auto group = reactor::ReactorGroup::start(options);
    if (!group) throw std::runtime_error(group.error().message);
    leave(cores);
    auto service = vhost::VhostService::start(**group, {.socket_dir = dir});
    if (!service) throw std::runtime_error(service.error().message);
    for (const auto& blk : blks) {
      const auto equals = blk.find('=');
      if (equals == std::string::npos) throw std::runtime_error("not NAME=SPEC: " + blk);
      const std::string name = blk.substr(0, equals);
      auto made = (*service)->create_blk(name, queues, {open_disk(blk.substr(equals + 1)), uuid_of(name), read_only});
      if (!made) throw std::runtime_error(made.error().message);
    }
    for (const auto& scsi : scsis) {
      const ScsiArgument argument = parse_scsi(scsi);
      if (auto made = (*service)->ensure_scsi_controller(argument.name, queues); !made)
        throw std::runtime_error(made.error().message);
      add_scsi(**service, argument, read_only);
    }
    std::cout << "ready" << std::endl;
    std::thread([&service, &group] {
      for (std::string line; std::getline(std::cin, line);) {
        try {
          std::cout << obey(**service, **group, line) << std::endl;
        } catch (const std::exception& error) {
          std::cout << "error " << error.what() << std::endl;
        }
      }
    }).detach();
    int signal = 0;
    sigwait(&signals, &signal);
    service->reset();
  } catch (const std::exception& error) {
    std::cerr << "pollux-diskhost: " << error.what() << "\n";
    return 1;
  }
  // The reader of standard input may still wait in it.
  std::quick_exit(0);
}
