#include "control/data_sockets.h"

#include <grp.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "base/log.h"

namespace pollux::control {

namespace {
constexpr const char* kPrefix = "nbd-";
constexpr const char* kSuffix = ".sock";
constexpr std::uint64_t kShutdownDeadlineMs = 30'000;

Status remove_leftovers(const std::string& dir) {
  std::error_code error;
  for (std::filesystem::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code removal;
    if (name.starts_with(kPrefix) && name.ends_with(kSuffix)) std::filesystem::remove(it->path(), removal);
    if (removal) return fail(ErrorCode::kIoError, "cannot remove " + it->path().string() + ": " + removal.message());
  }
  if (error) return fail(ErrorCode::kIoError, "cannot read the folder " + dir + ": " + error.message());
  return {};
}
}  // namespace

Result<std::unique_ptr<DataSockets>> DataSockets::start(reactor::ReactorGroup& reactors, volume::VolumeService& volumes,
                                                        Options options) {
  POLLUX_TRY(remove_leftovers(options.dir));
  std::unique_ptr<DataSockets> sockets(new DataSockets(reactors, volumes, std::move(options)));
  if (!sockets->options_.group.empty()) {
    const auto* group = getgrnam(sockets->options_.group.c_str());
    if (group == nullptr) {
      return fail(ErrorCode::kInvalid, "data.socket_group: there is no group " + sockets->options_.group);
    }
    sockets->gid_ = group->gr_gid;
  }
  return sockets;
}

Result<DataSockets::Held> DataSockets::hold(const Uuid& id, Deadline deadline) {
  while (true) {
    Held held;
    {
      const std::lock_guard lock(mutex_);
      const auto known = open_.find(id);
      if (known == open_.end()) return held;
      held.open = known->second;
    }
    held.turn = std::unique_lock(held.open->turn, deadline.at());
    if (!held.turn.owns_lock()) {
      return fail(ErrorCode::kRetry, "another change to data socket " + id.to_string() +
                                         " took longer than this call may wait: repeat the request");
    }
    // The call that had its turn before may have closed it, or failed to open it.
    if (held.open->server) return held;
  }
}

Result<DataSockets::Held> DataSockets::reserve(const DataSocketRequest& request) {
  const std::lock_guard lock(mutex_);
  if (open_.contains(request.id)) return fail(ErrorCode::kExists, "");
  if (open_.size() >= options_.max_sockets) {
    return fail(ErrorCode::kRetry, "all " + std::to_string(options_.max_sockets) +
                                       " data sockets are in use (data.max_sockets): close one first");
  }
  Held held;
  held.open = std::make_shared<Open>();
  held.open->request = request;
  held.turn = std::unique_lock(held.open->turn);
  open_.emplace(request.id, held.open);
  return held;
}

void DataSockets::forget(const Open& open) {
  const std::lock_guard lock(mutex_);
  open_.erase(open.request.id);
}

Status DataSockets::serve(Open& open, Deadline deadline) {
  const auto& request = open.request;
  auto device = reactor::call(reactors_.main(), volumes_.open(request.volume), deadline.remaining_ms());
  if (!device) return fail(std::move(device.error()));
  auto& socket = open.socket;
  socket.id = request.id;
  socket.volume = request.volume;
  socket.path = options_.dir + "/" + kPrefix + request.id.to_string() + kSuffix;
  socket.export_name = request.volume.to_string();
  socket.read_only = request.read_only || (*device)->read_only();
  if (!socket.read_only) {
    auto claim = options_.writers->data_socket(request.volume, request.shared);
    if (!claim) return fail(std::move(claim.error()));
    open.claim = std::move(*claim);
  }
  NbdServer::Options server_options;
  server_options.path = socket.path;
  server_options.export_name = socket.export_name;
  server_options.group = gid_;
  server_options.max_connections = options_.max_connections;
  server_options.read_only = socket.read_only;
  server_options.sole_writer = !socket.read_only && !request.shared;
  auto server = NbdServer::start(reactors_, std::move(*device), std::move(server_options));
  if (!server) return fail(std::move(server.error()));
  open.server = std::move(*server);
  return {};
}

Result<DataSocket> DataSockets::open(const DataSocketRequest& request, Deadline deadline) {
  while (true) {
    const auto known = hold(request.id, deadline);
    if (!known) return fail(known.error());
    if (known->open) {
      if (known->open->request == request) return known->open->socket;
      return fail(ErrorCode::kExists, "data socket " + request.id.to_string() + " is open with other parameters");
    }
    auto reserved = reserve(request);
    if (!reserved && reserved.error().code == ErrorCode::kRetry) {
      close_abandoned({}, deadline);
      reserved = reserve(request);
    }
    // Somebody else asked for the same at the same time.
    if (!reserved && reserved.error().code == ErrorCode::kExists) continue;
    if (!reserved) return fail(reserved.error());
    if (const auto served = serve(*reserved->open, deadline); !served) {
      forget(*reserved->open);
      return fail(served.error());
    }
    return reserved->open->socket;
  }
}

Status DataSockets::close(const Uuid& id, Deadline deadline) {
  const auto held = hold(id, deadline);
  if (!held) return fail(held.error());
  if (!held->open) return {};
  return end(*held->open, deadline);
}

Status DataSockets::end(Open& open, Deadline deadline) {
  const Status stopped = open.server->stop(deadline);
  // Requests or the flush are still under way.
  if (!stopped && stopped.error().code == ErrorCode::kRetry) return stopped;
  const std::string name = "data socket " + open.request.id.to_string();
  open.server.reset();
  open.claim.reset();
  forget(open);
  if (stopped) return {};
  return fail(stopped.error().code,
              name + " is closed, but what was written to it may not be durable: " + stopped.error().message);
}

void DataSockets::close_abandoned(const std::optional<Uuid>& volume, Deadline deadline) {
  std::vector<std::shared_ptr<Open>> meant;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, open] : open_) {
      if (!volume || open->request.volume == *volume) meant.push_back(open);
    }
  }
  for (const auto& open : meant) {
    // One that is being opened or closed is not abandoned.
    const std::unique_lock turn(open->turn, std::try_to_lock);
    if (!turn.owns_lock() || !open->server) continue;
    const std::uint64_t unused_ms = open->server->unused_ms();
    if (unused_ms < options_.abandoned_after_ms) continue;
    log::warn("control: data socket {} has been unused for {} ms and is closed", open->request.id.to_string(),
              unused_ms);
    if (const auto status = end(*open, deadline); !status) {
      log::error("control: data socket {}: {}", open->request.id.to_string(), status.error().message);
    }
  }
}

void DataSockets::close_all() {
  std::map<Uuid, std::shared_ptr<Open>> all;
  {
    const std::lock_guard lock(mutex_);
    all.swap(open_);
  }
  // What they have in flight ends at the same time, so one deadline does for all of them.
  for (auto& [id, open] : all) open->server->begin_stop();
  const auto deadline = Deadline::after_ms(kShutdownDeadlineMs);
  for (auto& [id, open] : all) {
    if (const auto status = open->server->stop(deadline); !status) {
      log::error("control: data socket {}: {}", id.to_string(), status.error().message);
    }
  }
}

}  // namespace pollux::control
