#include "control/rpc_server.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "control/rpc_frame.h"

namespace pollux::control {

namespace {

constexpr int kBacklog = 128;
// In one turn, between which handshakes go on.
constexpr int kAcceptsPerTurn = 16;
// Out of descriptors or memory a connection stays in the backlog, and polling again at once would spin.
constexpr std::uint64_t kFirstAcceptPauseMs = 50;
constexpr std::uint64_t kLongestAcceptPauseMs = 1000;

std::string to_text(const sockaddr_storage& address, socklen_t length) {
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host.data(), host.size(), port.data(),
                  port.size(), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "an unknown address";
  }
  return address.ss_family == AF_INET6 ? "[" + std::string(host.data()) + "]:" + port.data()
                                       : std::string(host.data()) + ":" + port.data();
}

// Whom a place in the handshake is counted to: an IPv4 address, or what one site of IPv6 has, which is 64 bits and
// more.
std::string place_of(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address).sin_addr;
    return {reinterpret_cast<const char*>(&v4), sizeof(v4)};
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  const auto* bytes = reinterpret_cast<const char*>(&v6);
  if (IN6_IS_ADDR_V4MAPPED(&v6)) return {bytes + 12, 4};
  return {bytes, 8};
}

std::uint16_t bound_port(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

}  // namespace

RpcServer::RpcServer(Options options, TlsKeeper& tls, AccessLog& access_log, ProcessorFactory factory)
    : options_(std::move(options)),
      access_log_(access_log),
      factory_(std::move(factory)),
      handshakes_(
          {options_.max_handshakes, std::max<std::size_t>(options_.max_handshakes / 4, 1)},
          options_.handshake_timeout_ms, tls, access_log,
          [this](std::unique_ptr<TlsStream> stream, const std::string& peer) { admit(std::move(stream), peer); }) {}

RpcServer::~RpcServer() {
  stop();
}

Result<std::unique_ptr<RpcServer>> RpcServer::start(Options options, TlsKeeper& tls, AccessLog& access_log,
                                                    ProcessorFactory factory) {
  std::unique_ptr<RpcServer> server(new RpcServer(std::move(options), tls, access_log, std::move(factory)));
  server->stop_event_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  server->finished_event_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!server->stop_event_ || !server->finished_event_)
    return fail(ErrorCode::kInternal, std::string("no eventfd: ") + std::strerror(errno));
  POLLUX_TRY(server->bind());
  server->acceptor_ = std::thread([raw = server.get()] { raw->accept_loop(); });
  return server;
}

Status RpcServer::bind() {
  const auto& where = options_.listen;
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(where.host.c_str(), std::to_string(where.port).c_str(), &hints, &found);
  if (error != 0) {
    return fail(ErrorCode::kInvalid,
                "control.listen: " + where.to_string() + " does not resolve: " + gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  UniqueFd fd(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  const int off = 0;
  if (fd) setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (fd && found->ai_family == AF_INET6) setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  if (!fd || ::bind(fd.get(), found->ai_addr, found->ai_addrlen) != 0 || listen(fd.get(), kBacklog) != 0) {
    return fail(errno == EADDRINUSE ? ErrorCode::kBusy : ErrorCode::kInvalid,
                "cannot listen on " + where.to_string() + ": " + std::strerror(errno));
  }
  port_ = bound_port(fd.get());
  listener_ = std::move(fd);
  return {};
}

void RpcServer::stop() {
  if (!acceptor_.joinable()) return;
  const std::uint64_t one = 1;
  if (::write(stop_event_.get(), &one, sizeof(one)) < 0) log::error("control: stop event: {}", std::strerror(errno));
  acceptor_.join();
}

void RpcServer::accept_loop() {
  std::vector<pollfd> fds;
  while (true) {
    if (accept_again_ && accept_again_->passed()) accept_again_.reset();
    int wait_ms = handshakes_.wait_ms(1000);
    if (accept_again_) wait_ms = std::min(wait_ms, static_cast<int>(accept_again_->remaining_ms()));
    // A negative descriptor is ignored.
    fds = {{accept_again_ ? -1 : listener_.get(), POLLIN, 0},
           {stop_event_.get(), POLLIN, 0},
           {finished_event_.get(), POLLIN, 0}};
    const std::size_t own = fds.size();
    handshakes_.append_to(fds);
    const int ready = poll(fds.data(), fds.size(), wait_ms);
    if (ready < 0) {
      for (auto& fd : fds) fd.revents = 0;
    }
    if (fds[1].revents != 0) break;
    std::uint64_t count = 0;
    if (fds[2].revents != 0 && ::read(finished_event_.get(), &count, sizeof(count)) < 0 && errno != EAGAIN) {
      log::error("control: finished event: {}", std::strerror(errno));
    }
    reap(/*all=*/false);
    handshakes_.go_on(std::span(fds).subspan(own));
    if (fds[0].revents != 0) take_clients();
  }
  listener_.reset();
  reap(/*all=*/true);
}

void RpcServer::reap(bool all) {
  for (auto it = connections_.begin(); it != connections_.end();) {
    if (all || it->finished.load(std::memory_order_acquire)) {
      it->thread.join();
      it = connections_.erase(it);
    } else {
      ++it;
    }
  }
}

void RpcServer::take_clients() {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    sockaddr_storage address{};
    socklen_t length = sizeof(address);
    UniqueFd socket(accept4(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length, SOCK_CLOEXEC));
    if (!socket) return accept_failed(errno);
    accept_pause_ms_ = 0;
    const int on = 1;
    setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(socket.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    handshakes_.take(std::move(socket), to_text(address, length), place_of(address));
  }
}

void RpcServer::accept_failed(int error) {
  if (error == EAGAIN || error == EINTR || error == ECONNABORTED) return;
  accept_pause_ms_ = std::clamp(2 * accept_pause_ms_, kFirstAcceptPauseMs, kLongestAcceptPauseMs);
  accept_again_ = Deadline::after_ms(accept_pause_ms_);
  std::uint64_t suppressed = 0;
  if (accept_failures_.allow(suppressed)) {
    log::error("control: accept: {} (and {} times before that are not listed)", std::strerror(error), suppressed);
  }
}

// A name that has most connections loses one to a name that has fewer: the one whose last call was longest ago. False:
// there is no room.
bool RpcServer::make_room(const Caller& caller) {
  std::map<std::string, std::size_t> held;
  std::size_t staying = 0;
  for (const auto& connection : connections_) {
    if (connection.leaving) continue;
    ++held[connection.caller.host];
    ++staying;
  }
  if (staying < options_.max_connections) return true;
  const auto most = std::ranges::max_element(held, {}, [](const auto& entry) { return entry.second; });
  if (most == held.end() || most->second <= held[caller.host] + 1) return false;
  Connection* leaving = nullptr;
  std::uint64_t since_ns = kBusy;
  for (auto& connection : connections_) {
    const std::uint64_t idle_since_ns = connection.idle_since_ns.load();
    if (connection.leaving || connection.caller.host != most->first || idle_since_ns >= since_ns) continue;
    leaving = &connection;
    since_ns = idle_since_ns;
  }
  if (leaving == nullptr) return false;
  leaving->leaving = true;
  leaving->stream->interrupt();
  return true;
}

void RpcServer::admit(std::unique_ptr<TlsStream> stream, const std::string& peer) {
  const auto& subject = stream->subject();
  Caller caller{role_of(subject.organisational_unit), subject.common_name, peer};
  if (caller.host.empty()) caller.role = Role::kNone;
  if (caller.role == Role::kNone) {
    access_log_.refused(peer, caller.host,
                        caller.host.empty()
                            ? "its certificate has not exactly one printable common name"
                            : "its certificate's organisational unit '" + subject.organisational_unit + "' is no role");
  }
  if (!make_room(caller)) {
    access_log_.refused(peer, caller.host,
                        "there are " + std::to_string(connections_.size()) + " connections (control.max_connections)");
    return;
  }
  log::debug("control: {} connected as {} ({})", peer, caller.host, to_string(caller.role));
  auto& connection = connections_.emplace_back();
  connection.stream = std::move(stream);
  connection.caller = std::move(caller);
  connection.idle_since_ns = monotonic_ns();
  try {
    connection.thread = std::thread([this, &connection] {
      serve(connection);
      connection.finished.store(true, std::memory_order_release);
      const std::uint64_t one = 1;
      // Refused when the counter is full, and then the acceptor is woken anyway.
      [[maybe_unused]] const auto written = ::write(finished_event_.get(), &one, sizeof(one));
    });
  } catch (const std::system_error& e) {
    connections_.pop_back();
    access_log_.refused(peer, "", std::string("no thread for it: ") + e.what());
  }
}

void RpcServer::serve(Connection& connection) {
  const auto processor = factory_(connection.caller);
  while (serve_call(connection, *processor)) {
    // A caller without a role is told so once.
    if (connection.caller.role == Role::kNone) break;
    connection.idle_since_ns = monotonic_ns();
  }
  connection.stream->close_notify(Deadline::after_ms(options_.io_timeout_ms));
}

bool RpcServer::serve_call(Connection& connection, apache::thrift::TProcessor& processor) {
  auto& stream = *connection.stream;
  const auto& caller = connection.caller;
  const auto dropped = [&](const std::string& why) {
    access_log_.refused(caller.peer, caller.host, why + "; connection dropped");
    return false;
  };
  // Nobody without a role has a reason to stay.
  const std::uint32_t patience_ms = caller.role == Role::kNone ? options_.io_timeout_ms : options_.idle_timeout_ms;
  std::uint32_t wire_length = 0;
  const auto header = stream.read(&wire_length, 1, Deadline::after_ms(patience_ms), stop_event_.get());
  if (header == TlsStream::End::kFailed) return dropped("TLS broken off between requests");
  if (header != TlsStream::End::kDone) return false;
  connection.idle_since_ns = kBusy;

  // From its first byte on a request has io_timeout to arrive.
  const auto arrival = Deadline::after_ms(options_.io_timeout_ms);
  if (stream.read(reinterpret_cast<unsigned char*>(&wire_length) + 1, 3, arrival) != TlsStream::End::kDone) {
    return dropped("a request's length did not arrive in time");
  }
  const std::uint32_t length = ntohl(wire_length);
  if (length == 0 || length > options_.max_frame_bytes) {
    return dropped("a request of " + std::to_string(length) + " bytes; at most " +
                   std::to_string(options_.max_frame_bytes) + " are allowed (control.max_frame_bytes)");
  }
  std::vector<std::uint8_t> frame(length);
  if (stream.read(frame.data(), frame.size(), arrival) != TlsStream::End::kDone) {
    return dropped("a request of " + std::to_string(length) + " bytes did not arrive in time");
  }

  const auto answer = answer_frame(processor, frame);
  if (!answer) return dropped(answer.error().message);
  if (stream.write(answer->data(), answer->size(), Deadline::after_ms(options_.io_timeout_ms)) !=
      TlsStream::End::kDone) {
    return dropped("the answer was not taken in time");
  }
  return true;
}

}  // namespace pollux::control
