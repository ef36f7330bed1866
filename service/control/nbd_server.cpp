#include "control/nbd_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/descriptors.h"
#include "base/log.h"
#include "control/nbd_protocol.h"

namespace pollux::control {

namespace {

constexpr int kBacklog = 16;
// From its first to its last byte. A client that asks for the export is served for as long as it likes.
constexpr std::uint64_t kNegotiationMs = 10'000;
constexpr int kAcceptPauseMs = 200;
constexpr std::chrono::seconds kPlacePatience{1};

reactor::Task<Status> flush_device(reactor::Reactor& reactor, std::shared_ptr<bdev::Bdev> device, std::uint8_t flags) {
  co_await reactor.enter();
  auto channel = co_await device->open_channel(reactor);
  if (!channel) co_return fail(std::move(channel.error()));
  const auto status = co_await bdev::flush(**channel, flags);
  channel->reset();
  const std::string what = "flush of " + device->name();
  // This frame ends some time after its caller has the answer. It must not be what keeps the volume in use then.
  device.reset();
  co_return bdev::to_status(status, what);
}

}  // namespace

Result<std::unique_ptr<NbdServer>> NbdServer::start(reactor::ReactorGroup& reactors, std::shared_ptr<bdev::Bdev> device,
                                                    Options options) {
  POLLUX_TRY(bdev::check_stack(*device));
  std::unique_ptr<NbdServer> server(new NbdServer(reactors, std::move(device), std::move(options)));
  server->stop_event_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!server->stop_event_) return fail(ErrorCode::kInternal, std::string("no eventfd: ") + std::strerror(errno));
  POLLUX_TRY(server->listen());
  server->acceptor_ = std::thread([raw = server.get()] { raw->accept_loop(); });
  return server;
}

NbdServer::~NbdServer() {
  begin_stop();
  for (auto& client : clients_) client.thread.join();
}

Status NbdServer::listen() {
  const auto& path = options_.path;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return fail(ErrorCode::kInvalid, "the socket's path " + path + " is longer than 107 characters");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto broken = [&] {
    return fail(ErrorCode::kIoError, "cannot make the socket " + path + ": " + std::strerror(errno));
  };
  // Nobody may connect before mode and group are right: a socket does not accept before listen().
  if (!fd || bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return broken();
  const bool reachable = (!options_.group || chown(path.c_str(), static_cast<uid_t>(-1), *options_.group) == 0) &&
                         chmod(path.c_str(), 0660) == 0 && ::listen(fd.get(), kBacklog) == 0;
  if (!reachable) {
    auto error = broken();
    unlink(path.c_str());
    return error;
  }
  listener_ = std::move(fd);
  return {};
}

nbd::Export NbdServer::describe() const {
  nbd::Export exported;
  exported.name = options_.export_name;
  exported.size_bytes = device_->size_bytes();
  exported.block_bytes = device_->block_bytes();
  exported.preferred_bytes = std::max({device_->optimal_io_bytes(), device_->block_bytes(), 4096U});
  // "Transmission flags", CAN_MULTI_CONN: every connection uses one device, so a flush covers what any of them
  // completed.
  exported.reports_extents = device_->reports_extents();
  exported.flush_flags = flush_flags();
  exported.transmission_flags = nbd::kHasFlags | nbd::kSendFlush | nbd::kCanMultiConn;
  if (options_.read_only) {
    exported.transmission_flags |= nbd::kReadOnly;
  } else {
    exported.transmission_flags |= nbd::kSendFua | nbd::kSendWriteZeroes;
    if (device_->supports_unmap()) exported.transmission_flags |= nbd::kSendTrim;
  }
  return exported;
}

void NbdServer::accept_loop() {
  std::array<pollfd, 2> fds{{{listener_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}}};
  while (true) {
    const int ready = poll(fds.data(), fds.size(), 1000);
    reap();
    if (ready <= 0) continue;
    if (fds[1].revents != 0) return;
    take_client();
  }
}

void NbdServer::reap() {
  const std::lock_guard lock(mutex_);
  for (auto it = clients_.begin(); it != clients_.end();) {
    if (!it->finished) {
      if (it->connection->negotiating() && it->negotiation.passed()) it->connection->interrupt();
      ++it;
      continue;
    }
    it->thread.join();
    it = clients_.erase(it);
  }
}

// One that is in the negotiation for longest goes, for it may never end that; those that use the export stay.
bool NbdServer::make_room() {
  const auto staying = std::ranges::count_if(clients_, [](const Client& one) { return !one.finished && !one.leaving; });
  if (staying < static_cast<std::ptrdiff_t>(options_.max_connections)) return true;
  const auto oldest = std::ranges::find_if(
      clients_, [](const Client& one) { return !one.finished && !one.leaving && one.connection->negotiating(); });
  if (oldest == clients_.end()) return false;
  oldest->leaving = true;
  oldest->connection->interrupt();
  return true;
}

void NbdServer::pause_accepting(int error) {
  std::uint64_t suppressed = 0;
  if (accept_failures_.allow(suppressed)) {
    log::error("data socket {}: accept: {} (and {} times before that are not listed)", options_.path,
               std::strerror(error), suppressed);
  }
  pollfd stop{stop_event_.get(), POLLIN, 0};
  poll(&stop, 1, kAcceptPauseMs);
}

void NbdServer::take_client() {
  UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket) {
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
    return pause_accepting(errno);
  }
  if (is_last_descriptor(socket.get())) {
    socket.reset();
    return pause_accepting(EMFILE);
  }
  std::unique_lock lock(mutex_);
  // A client that has just left may still have requests in flight.
  if (!changed_.wait_for(lock, kPlacePatience, [this] { return make_room(); })) {
    note_breach("there are " + std::to_string(options_.max_connections) + " (data.max_connections)");
    return;
  }
  auto& reactor = reactors_.at(next_reactor_++ % reactors_.size());
  auto& client = clients_.emplace_back(Client{.negotiation = Deadline::after_ms(kNegotiationMs)});
  client.connection = std::make_unique<nbd::Connection>(std::move(socket), device_, reactor, describe());
  try {
    client.thread = std::thread([this, &client] {
      if (const auto status = client.connection->run(); !status) {
        note_breach(status.error().message);
      }
      client.connection->interrupt();
      const std::lock_guard finishing(mutex_);
      client.finished = true;
      unused_since_ns_ = monotonic_ns();
      changed_.notify_all();
    });
  } catch (const std::system_error& e) {
    clients_.pop_back();
    log::error("data socket {}: no thread for a connection: {}", options_.path, e.what());
  }
}

void NbdServer::note_breach(const std::string& what) {
  std::uint64_t suppressed = 0;
  if (!breaches_.allow(suppressed)) return;
  log::warn("data socket {}: connection dropped: {} (and {} before that are not listed)", options_.path, what,
            suppressed);
}

std::uint64_t NbdServer::unused_ms() {
  const std::lock_guard lock(mutex_);
  const bool used =
      std::any_of(clients_.begin(), clients_.end(), [](const Client& client) { return !client.finished; });
  return used ? 0 : (monotonic_ns() - unused_since_ns_) / 1'000'000;
}

void NbdServer::stop_accepting() {
  if (!acceptor_.joinable()) return;
  const std::uint64_t one = 1;
  if (write(stop_event_.get(), &one, sizeof(one)) < 0) log::error("data socket: stop event: {}", std::strerror(errno));
  acceptor_.join();
  listener_.reset();
  unlink(options_.path.c_str());
}

void NbdServer::interrupt_all() {
  const std::lock_guard lock(mutex_);
  for (auto& client : clients_) client.connection->interrupt();
}

void NbdServer::begin_stop() {
  stop_accepting();
  interrupt_all();
}

Status NbdServer::stop(Deadline deadline) {
  begin_stop();
  {
    std::unique_lock lock(mutex_);
    const bool ended = changed_.wait_until(lock, deadline.at(), [this] {
      return std::all_of(clients_.begin(), clients_.end(), [](const Client& client) { return client.finished; });
    });
    if (!ended)
      return fail(ErrorCode::kRetry, "requests of " + options_.path + " are still in flight: repeat the request");
  }
  reap();
  if (options_.read_only) return {};
  auto& reactor = reactors_.main();
  // Begun in any case: when there is no time left to wait for it, what was written may still last.
  return reactor::call(reactor, flush_device(reactor, device_, flush_flags()),
                       std::max<std::uint64_t>(deadline.remaining_ms(), 1));
}

}  // namespace pollux::control
