#include "control/daemon.h"

#include <sched.h>

#include <chrono>
#include <filesystem>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/units.h"
#include "control/access_log.h"
#include "control/attachments.h"
#include "control/data_sockets.h"
#include "control/disk_state_keeper.h"
#include "control/dispatch.h"
#include "control/handler.h"
#include "control/metrics_source.h"
#include "control/pool_checks.h"
#include "control/service_id.h"
#include "control/pools.h"
#include "control/rpc_server.h"
#include "control/state_store.h"
#include "control/stop_limit.h"
#include "control/tls_context.h"
#include "control/volume_writers.h"
#include "metrics/page.h"
#include "reactor/reactor.h"
#include "reactor/resume_latency.h"
#include "vhost/vhost_service.h"
#include "volume/volume_service.h"

namespace pollux::control {

namespace {

constexpr std::chrono::milliseconds kOpeningPause{20};

}  // namespace

// In the order of construction; stop() takes them down by name, in reverse.
struct Daemon::Parts {
  AccessLog access_log;
  std::unique_ptr<TlsKeeper> tls;
  std::unique_ptr<StateStore> store;
  std::optional<reactor::ResumeLatency> resume_latency;
  std::unique_ptr<reactor::ReactorGroup> reactors;
  std::unique_ptr<volume::VolumeService> volumes;
  std::unique_ptr<vhost::VhostService> vhost;
  std::unique_ptr<Pools> pools;
  std::unique_ptr<Attachments> attachments;
  std::unique_ptr<DataSockets> data_sockets;
  std::unique_ptr<PoolChecks> pool_checks;
  std::optional<Backend> backend;
  std::unique_ptr<metrics::Page> page;
  std::unique_ptr<RpcServer> server;
};

Daemon::Daemon(const Config& config) : config_(config), parts_(std::make_unique<Parts>()) {}

Daemon::~Daemon() {
  if (const auto status = stop(); !status) log::error("stop: {}", status.error().message);
}

Result<std::unique_ptr<Daemon>> Daemon::start(const Config& config, const std::string& version) {
  std::unique_ptr<Daemon> daemon(new Daemon(config));
  POLLUX_TRY(daemon->start_stages(version));
  return daemon;
}

Status Daemon::start_stages(const std::string& version) {
  auto& parts = *parts_;
  const std::int64_t started_at_ms = wall_clock_ms();
  // A certificate that is wrong is found before any guest's disk depends on this start.
  const TlsFiles files{config_.control.ca, config_.control.certificate, config_.control.key};
  auto tls = TlsContext::load(files);
  if (!tls) return fail(std::move(tls.error()));
  parts.tls = std::make_unique<TlsKeeper>(files, std::move(*tls));
  std::error_code error;
  for (const std::string& folder : {config_.service.runtime_dir, config_.service.memory_dir}) {
    std::filesystem::create_directories(folder, error);
    if (error) return fail(ErrorCode::kIoError, "cannot make the folder " + folder + ": " + error.message());
  }
  if (StateStore::is_new(config_.service.state_dir)) warn_of_new_state();
  auto store = StateStore::open(config_.service.state_dir);
  if (!store) return fail(std::move(store.error()));
  parts.store = std::move(*store);
  log::info("start: state in {}", config_.service.state_dir);
  POLLUX_TRY(start_reactors());
  POLLUX_TRY(start_services());
  parts.backend.emplace(Backend{*parts.reactors, *parts.volumes, *parts.vhost, *parts.store, *parts.pools,
                                *parts.attachments, *parts.data_sockets, *parts.pool_checks, config_.service.host_id,
                                version, started_at_ms, config_.control.default_deadline_ms,
                                config_.control.max_deadline_ms});
  if (!config_.metrics.listen.empty()) {
    auto page =
        metrics::Page::start(config_.metrics.listen, [&backend = *parts.backend] { return gather_metrics(backend); });
    if (!page) return fail(std::move(page.error()));
    parts.page = std::move(*page);
    log::info("start: metrics on http://{}/metrics", config_.metrics.listen);
  }
  return open_port();
}

// Nothing says so more loudly than volumes that are missed, so it is said before.
void Daemon::warn_of_new_state() const {
  log::warn(
      "start: there is no state in {}: this is a new service, without pools, attachments and authorisations. If this "
      "host "
      "had pools before, check service.state_dir, or bring them back with `polluxctl pool import`",
      config_.service.state_dir);
  std::error_code error;
  std::size_t sockets = 0;
  for (std::filesystem::directory_iterator it(config_.vhost.socket_dir, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(".sock") && (name.starts_with("scsi-") || name.starts_with("blk-"))) ++sockets;
  }
  if (sockets == 0) return;
  log::warn("start: {} sockets of guests in {} are of a service with other state: this one does not serve them",
            sockets, config_.vhost.socket_dir);
}

Status Daemon::start_reactors() {
  std::vector<reactor::Reactor::Options> options;
  const auto& wanted = config_.reactors;
  const std::size_t count = wanted.cores.empty() ? wanted.count : wanted.cores.size();
  for (std::size_t i = 0; i < count; ++i) {
    reactor::Reactor::Options one;
    one.id = static_cast<unsigned>(i);
    if (!wanted.cores.empty()) one.core = wanted.cores[i];
    one.idle = wanted.adaptive ? reactor::IdlePolicy::kAdaptive : reactor::IdlePolicy::kPoll;
    one.idle_after_us = wanted.idle_after_us;
    options.push_back(one);
  }
  auto reactors = reactor::ReactorGroup::start(options);
  if (!reactors) return fail(std::move(reactors.error()));
  parts_->reactors = std::move(*reactors);
  bound_resume_latency();
  leave_reactor_cores();
  log::info("start: {} reactors", count);
  return {};
}

void Daemon::bound_resume_latency() {
  const auto& wanted = config_.reactors;
  reactor::ResumeLatency::Options options;
  if (wanted.adaptive && wanted.resume_latency_us >= 0) {
    options.cores = wanted.cores;
    options.limit_us = static_cast<std::uint32_t>(wanted.resume_latency_us);
  }
  options.record = config_.service.runtime_dir + "/resume-latency";
  // Also without cores: what an earlier service left when it was killed is put back.
  parts_->resume_latency.emplace(std::move(options));
}

// Threads that are started from here on inherit this thread's cores: control work stays off those that guests are
// served on.
void Daemon::leave_reactor_cores() {
  cpu_set_t allowed;
  if (config_.reactors.cores.empty() || sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  for (const unsigned core : config_.reactors.cores) CPU_CLR(core, &allowed);
  if (CPU_COUNT(&allowed) == 0) {
    log::warn("start: every core is a reactor's; control threads share them");
  } else if (sched_setaffinity(0, sizeof(allowed), &allowed) != 0) {
    log::warn("start: cannot keep control threads off the reactors' cores");
  }
}

Status Daemon::start_services() {
  auto& parts = *parts_;
  const auto id = service_id(config_.service.state_dir);
  if (!id) return fail(id.error());
  auto boot_id = DiskStateKeeper::host_boot_id();
  if (!boot_id) return fail(std::move(boot_id.error()));
  POLLUX_TRY(parts.store->drop_losses_before(*boot_id));
  const auto known_boot = parts.store->boot_id();
  if (!known_boot) return fail(known_boot.error());
  const auto guests = known_boot->empty() || *known_boot == *boot_id ? Pools::Guests::kMayLive : Pools::Guests::kGone;
  const auto keeper = std::make_shared<DiskStateKeeper>(*parts.store, *boot_id);
  parts.volumes = std::make_unique<volume::VolumeService>(
      *parts.reactors, blob::Owner::Identity{.host = config_.service.host_id, .service = *id}, keeper,
      blob::JournalQueue::in_folder(config_.service.memory_dir));
  vhost::Options vhost_options;
  vhost_options.socket_dir = config_.vhost.socket_dir;
  vhost_options.socket_group = config_.vhost.socket_group;
  vhost_options.default_queues = config_.vhost.default_queues;
  vhost_options.max_queues = config_.vhost.max_queues;
  vhost_options.guest_memory_bytes = config_.vhost.guest_memory_gib * kGiB;
  vhost_options.hold_sockets = true;
  vhost_options.reservations = keeper;
  vhost_options.settings = keeper;
  auto vhost = vhost::VhostService::start(*parts.reactors, std::move(vhost_options));
  if (!vhost) return fail(std::move(vhost.error()));
  parts.vhost = std::move(*vhost);
  parts.pools = std::make_unique<Pools>(*parts.store, *parts.reactors, *parts.volumes, guests);
  POLLUX_TRY(parts.pools->restore());
  log::info("start: pools {}", parts.pools->all_open() ? "open" : "open but for those named above");

  const auto writers = std::make_shared<VolumeWriters>();
  Attachments::Options options;
  options.writers = writers;
  options.socket_dir = config_.vhost.socket_dir;
  options.default_queues = config_.vhost.default_queues;
  options.max_queues = config_.vhost.max_queues;
  parts.attachments =
      std::make_unique<Attachments>(*parts.store, *parts.reactors, *parts.volumes, *parts.vhost, std::move(options));
  POLLUX_TRY(parts.attachments->restore(parts.pools->all_open()));
  // Not before: a start that was killed is repeated with the same guests.
  if (*known_boot != *boot_id) POLLUX_TRY(parts.store->put_boot_id(*boot_id));
  const auto attached = parts.store->attachments();
  if (!attached) return fail(attached.error());
  parts.vhost->listen();
  log::info("start: {} attachments recorded, all back but for those named above; sockets in {}", attached->size(),
            config_.vhost.socket_dir);

  DataSockets::Options data_options;
  data_options.writers = writers;
  data_options.dir = config_.service.runtime_dir;
  data_options.group = config_.data.socket_group;
  data_options.max_sockets = config_.data.max_sockets;
  data_options.max_connections = config_.data.max_connections;
  data_options.abandoned_after_ms = config_.data.abandoned_after_s * 1000ULL;
  auto data_sockets = DataSockets::start(*parts.reactors, *parts.volumes, std::move(data_options));
  if (!data_sockets) return fail(std::move(data_sockets.error()));
  parts.data_sockets = std::move(*data_sockets);
  parts.pool_checks = std::make_unique<PoolChecks>(*parts.reactors, *parts.volumes, *parts.pools, *parts.attachments);
  return {};
}

Status Daemon::open_port() {
  auto& parts = *parts_;
  auto listen = Endpoint::parse(config_.control.listen);
  if (!listen) return fail(std::move(listen.error()));
  RpcServer::Options options;
  options.listen = *listen;
  options.max_frame_bytes = config_.control.max_frame_bytes;
  options.max_connections = config_.control.max_connections;
  options.max_handshakes = config_.control.max_handshakes;
  options.handshake_timeout_ms = config_.control.handshake_timeout_s * 1000;
  options.io_timeout_ms = config_.control.io_timeout_s * 1000;
  options.idle_timeout_ms = config_.control.idle_timeout_s * 1000;
  auto server = RpcServer::start(options, *parts.tls, parts.access_log, [&parts](const Caller& caller) {
    return std::make_shared<GuardedProcessor>(std::make_shared<Handler>(*parts.backend, caller), caller,
                                              parts.access_log);
  });
  if (!server) return fail(std::move(server.error()));
  parts.server = std::move(*server);
  listen->port = parts.server->port();
  log::info("start: control port {} open", listen->to_string());
  return {};
}

std::uint16_t Daemon::control_port() const {
  return parts_->server->port();
}

void Daemon::reload() {
  if (const auto status = log::reopen(); !status) log::error("reload: {}", status.error().message);
  if (const auto status = parts_->tls->reload(); !status) {
    log::error("reload: the certificates stay as they were: {}", status.error().message);
  } else {
    log::info("reload: log reopened, certificates read");
  }
}

Status Daemon::stop() {
  auto& parts = *parts_;
  StopLimit limit(std::chrono::seconds(config_.service.stop_timeout_s), config_.service.pid_file);
  limit.waiting_for("calls that are under way");
  if (parts.server) log::info("stop: control port closed");
  parts.server.reset();
  parts.page.reset();
  parts.backend.reset();
  limit.waiting_for("checks of pools");
  parts.pool_checks.reset();
  limit.waiting_for("requests of data sockets");
  if (parts.data_sockets) parts.data_sockets->close_all();
  parts.data_sockets.reset();
  parts.attachments.reset();
  parts.pools.reset();
  limit.waiting_for("requests of guests");
  if (parts.vhost) log::info("stop: disconnecting front ends");
  parts.vhost.reset();
  limit.waiting_for("the pools' last writes");
  Status closed;
  if (parts.volumes) {
    closed = reactor::call(parts.reactors->main(), parts.volumes->close());
    // Its users are gone: a volume that is in use is still being opened for a call that has given it up.
    while (!closed && closed.error().code == ErrorCode::kBusy) {
      limit.waiting_for("volumes that are being opened");
      std::this_thread::sleep_for(kOpeningPause);
      closed = reactor::call(parts.reactors->main(), parts.volumes->close());
    }
    if (closed) log::info("stop: pools closed");
  }
  parts.volumes.reset();
  parts.reactors.reset();
  parts.resume_latency.reset();
  parts.store.reset();
  return closed;
}

}  // namespace pollux::control
