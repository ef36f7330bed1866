#include "control/rpc_server.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/log.h"
#include "control/rpc_frame.h"

namespace pollux::control {

namespace {

constexpr int kBacklog = 128;

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

std::uint16_t bound_port(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

}  // namespace

RpcServer::RpcServer(Options options, TlsKeeper& tls, AccessLog& access_log, ProcessorFactory factory)
    : options_(std::move(options)), tls_(tls), access_log_(access_log), factory_(std::move(factory)) {}

RpcServer::~RpcServer() {
  stop();
}

Result<std::unique_ptr<RpcServer>> RpcServer::start(Options options, TlsKeeper& tls, AccessLog& access_log,
                                                    ProcessorFactory factory) {
  std::unique_ptr<RpcServer> server(new RpcServer(std::move(options), tls, access_log, std::move(factory)));
  server->stop_event_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!server->stop_event_) return fail(ErrorCode::kInternal, std::string("no eventfd: ") + std::strerror(errno));
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
  Fd fd(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
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
  std::array<pollfd, 2> fds{{{listener_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}}};
  while (true) {
    // The time-out collects threads of connections that ended.
    const int ready = poll(fds.data(), fds.size(), 1000);
    reap(/*all=*/false);
    if (ready < 0 && errno != EINTR) log::error("control: poll: {}", std::strerror(errno));
    if (ready <= 0) continue;
    if (fds[1].revents != 0) break;
    take_connection();
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

void RpcServer::take_connection() {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  Fd socket(accept4(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length, SOCK_CLOEXEC));
  if (!socket) {
    const int error = errno;
    if (error == EAGAIN || error == EINTR || error == ECONNABORTED) return;
    log::error("control: accept: {}", std::strerror(error));
    // Out of descriptors or memory: the connection stays in the backlog, and polling again at once would spin.
    pollfd stop{stop_event_.get(), POLLIN, 0};
    poll(&stop, 1, 100);
    return;
  }
  std::string peer = to_text(address, length);
  if (connections_.size() >= options_.max_connections) {
    access_log_.refused(peer, "",
                        "there are " + std::to_string(connections_.size()) + " connections (control.max_connections)");
    return;
  }
  const int on = 1;
  setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(socket.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  auto& connection = connections_.emplace_back();
  try {
    connection.thread = std::thread([this, &connection, fd = std::move(socket), peer]() mutable {
      serve(std::move(fd), peer);
      connection.finished.store(true, std::memory_order_release);
    });
  } catch (const std::system_error& e) {
    connections_.pop_back();
    access_log_.refused(peer, "", std::string("no thread for it: ") + e.what());
  }
}

void RpcServer::serve(Fd socket, const std::string& peer) {
  TlsStream stream(std::move(socket), tls_.current());
  if (const auto status = stream.handshake(Deadline::after_ms(options_.io_timeout_ms)); !status) {
    access_log_.refused(peer, stream.subject().common_name, status.error().message);
    return;
  }
  const auto& subject = stream.subject();
  Caller caller{role_of(subject.organisational_unit), subject.common_name, peer};
  if (caller.host.empty()) caller.role = Role::kNone;
  if (caller.role == Role::kNone) {
    access_log_.refused(peer, caller.host,
                        caller.host.empty()
                            ? "its certificate has not exactly one printable common name"
                            : "its certificate's organisational unit '" + subject.organisational_unit + "' is no role");
  }
  log::debug("control: {} connected as {} ({})", peer, caller.host, to_string(caller.role));
  const auto processor = factory_(caller);
  while (serve_call(stream, *processor, caller)) {
    // Whoever has no role is told so once.
    if (caller.role == Role::kNone) break;
  }
  stream.close_notify(Deadline::after_ms(options_.io_timeout_ms));
}

bool RpcServer::serve_call(TlsStream& stream, apache::thrift::TProcessor& processor, const Caller& caller) {
  const auto dropped = [&](const std::string& why) {
    access_log_.refused(caller.peer, caller.host, why + "; connection dropped");
    return false;
  };
  std::uint32_t wire_length = 0;
  const auto header = stream.read(&wire_length, 1, Deadline::after_ms(options_.idle_timeout_ms), stop_event_.get());
  if (header == TlsStream::End::kFailed) return dropped("TLS broken off between requests");
  if (header != TlsStream::End::kDone) return false;

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
