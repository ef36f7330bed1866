#include "control/data_sockets.h"

#include <grp.h>

#include <filesystem>
#include <system_error>
#include <utility>

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

Result<std::unique_lock<std::timed_mutex>> DataSockets::turn(Deadline deadline) {
  std::unique_lock lock(changes_, deadline.at());
  if (!lock.owns_lock()) {
    return fail(ErrorCode::kRetry,
                "other changes to data sockets took longer than this call may wait: repeat the request");
  }
  return lock;
}

Result<DataSocket> DataSockets::open(const DataSocketRequest& request, Deadline deadline) {
  const auto lock = turn(deadline);
  if (!lock) return fail(lock.error());
  if (const auto known = open_.find(request.id); known != open_.end()) {
    if (known->second.request == request) return known->second.socket;
    return fail(ErrorCode::kExists, "data socket " + request.id.to_string() + " is open with other parameters");
  }
  if (open_.size() >= options_.max_sockets) drop_abandoned({}, deadline);
  if (open_.size() >= options_.max_sockets) {
    return fail(ErrorCode::kRetry, "all " + std::to_string(options_.max_sockets) +
                                       " data sockets are in use (data.max_sockets): close one first");
  }
  auto device = reactor::call(reactors_.main(), volumes_.open(request.volume), deadline.remaining_ms());
  if (!device) return fail(std::move(device.error()));
  DataSocket socket;
  socket.id = request.id;
  socket.volume = request.volume;
  socket.path = options_.dir + "/" + kPrefix + request.id.to_string() + kSuffix;
  socket.export_name = request.volume.to_string();
  socket.read_only = request.read_only || (*device)->read_only();
  NbdServer::Options server_options;
  server_options.path = socket.path;
  server_options.export_name = socket.export_name;
  server_options.group = gid_;
  server_options.max_connections = options_.max_connections;
  server_options.read_only = socket.read_only;
  auto server = NbdServer::start(reactors_, std::move(*device), std::move(server_options));
  if (!server) return fail(std::move(server.error()));
  open_.emplace(request.id, Open{request, socket, std::move(*server)});
  return socket;
}

Status DataSockets::close(const Uuid& id, Deadline deadline) {
  const auto lock = turn(deadline);
  if (!lock) return fail(lock.error());
  const auto known = open_.find(id);
  if (known == open_.end()) return {};
  POLLUX_TRY(known->second.server->stop(deadline));
  open_.erase(known);
  return {};
}

void DataSockets::close_abandoned(const std::optional<Uuid>& volume, Deadline deadline) {
  if (const auto lock = turn(deadline)) drop_abandoned(volume, deadline);
}

void DataSockets::drop_abandoned(const std::optional<Uuid>& volume, Deadline deadline) {
  for (auto it = open_.begin(); it != open_.end();) {
    const auto& [id, open] = *it;
    const bool meant = !volume || open.request.volume == *volume;
    if (!meant || open.server->unused_ms() < options_.abandoned_after_ms) {
      ++it;
      continue;
    }
    log::warn("control: data socket {} has been unused for {} ms and is closed", id.to_string(),
              open.server->unused_ms());
    if (const auto status = open.server->stop(deadline); !status) {
      log::error("control: data socket {}: {}", id.to_string(), status.error().message);
      ++it;
      continue;
    }
    it = open_.erase(it);
  }
}

void DataSockets::close_all() {
  const std::lock_guard lock(changes_);
  for (auto& [id, open] : open_) {
    if (const auto status = open.server->stop(Deadline::after_ms(kShutdownDeadlineMs)); !status) {
      log::error("control: data socket {}: {}", id.to_string(), status.error().message);
    }
  }
  open_.clear();
}

}  // namespace pollux::control
