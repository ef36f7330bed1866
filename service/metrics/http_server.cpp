#include "metrics/http_server.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/descriptors.h"
#include "base/log.h"
#include "base/waiting_clients.h"

namespace pollux::metrics {

namespace {

constexpr int kBacklog = 64;
constexpr std::size_t kMaxRequestBytes = 8192;
constexpr WaitingLimits kLimits{.clients = 64, .clients_per_address = 32};
constexpr std::chrono::milliseconds kAcceptPause{200};
constexpr const char* kEndOfHead = "\r\n\r\n";

std::string response(const char* status, const std::string& content_type, const std::string& body, bool with_body) {
  std::string text = std::string("HTTP/1.1 ") + status + "\r\nContent-Type: " + content_type +
                     "\r\nContent-Length: " + std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n";
  if (with_body) text += body;
  return text;
}

std::string refusal(const char* status) {
  return response(status, "text/plain; charset=utf-8", std::string(status) + "\n", true);
}

std::string address_of(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address).sin_addr;
    return {reinterpret_cast<const char*>(&v4), sizeof(v4)};
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  return {reinterpret_cast<const char*>(&v6), sizeof(v6)};
}

}  // namespace

HttpServer::Socket& HttpServer::Socket::operator=(Socket&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

HttpServer::Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

Result<std::unique_ptr<HttpServer>> HttpServer::start(Options options, MakeText make_text) {
  std::unique_ptr<HttpServer> server(new HttpServer(std::move(options), std::move(make_text)));
  server->stop_event_ = Socket(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (server->stop_event_.get() < 0) {
    return fail(ErrorCode::kInternal, std::string("no eventfd: ") + std::strerror(errno));
  }
  POLLUX_TRY(server->bind());
  server->thread_ = std::thread([raw = server.get()] { raw->loop(); });
  return server;
}

HttpServer::~HttpServer() {
  if (!thread_.joinable()) return;
  const std::uint64_t one = 1;
  if (write(stop_event_.get(), &one, sizeof(one)) < 0) log::error("metrics: stop event: {}", std::strerror(errno));
  thread_.join();
}

Status HttpServer::bind() {
  const auto& where = options_.listen;
  const auto refused = [&](const std::string& why) {
    return fail(ErrorCode::kBusy, "cannot serve metrics on " + where + ": " + why);
  };
  const auto colon = where.rfind(':');
  if (colon == std::string::npos) return refused("not of the form ADDRESS:PORT");
  std::string host = where.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), where.substr(colon + 1).c_str(), &hints, &found);
  if (error != 0) return refused(gai_strerror(error));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  Socket socket(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  if (socket.get() >= 0) setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (socket.get() < 0 || ::bind(socket.get(), found->ai_addr, found->ai_addrlen) != 0 ||
      listen(socket.get(), kBacklog) != 0) {
    return refused(std::strerror(errno));
  }
  listener_ = std::move(socket);
  return {};
}

std::uint16_t HttpServer::port() const {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

void HttpServer::loop() {
  pthread_setname_np(pthread_self(), "metrics");
  std::vector<pollfd> fds;
  while (true) {
    const auto now = Clock::now();
    auto wake = now + std::chrono::seconds(60);
    for (const auto& client : clients_) wake = std::min(wake, client.until);
    const bool paused = now < accept_after_;
    if (paused) wake = std::min(wake, accept_after_);
    // A negative descriptor is ignored.
    fds = {{paused ? -1 : listener_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}};
    for (const auto& client : clients_) {
      fds.push_back({client.socket.get(), static_cast<short>(client.answer.empty() ? POLLIN : POLLOUT), 0});
    }
    const auto wait_ms = std::chrono::ceil<std::chrono::milliseconds>(wake - now).count();
    if (poll(fds.data(), fds.size(), static_cast<int>(std::max<std::int64_t>(wait_ms, 0))) < 0) continue;
    if (fds[1].revents != 0) return;
    auto fd = fds.begin() + 2;
    const auto after = Clock::now();
    for (auto client = clients_.begin(); client != clients_.end();) {
      const bool ready = (fd++)->revents != 0;
      const bool stays = ready ? go_on(*client) : after < client->until;
      client = stays ? std::next(client) : clients_.erase(client);
    }
    if (fds[0].revents != 0) take_clients();
  }
}

void HttpServer::make_room(const std::string& address) {
  std::vector<WaitingClient> waiting;
  for (const auto& client : clients_) waiting.push_back({client.address, client.request.empty()});
  if (const auto leaving = who_leaves(waiting, address, kLimits)) {
    clients_.erase(std::next(clients_.begin(), static_cast<std::ptrdiff_t>(*leaving)));
  }
}

void HttpServer::take_clients() {
  for (int i = 0; i < kBacklog; ++i) {
    sockaddr_storage address{};
    socklen_t length = sizeof(address);
    Socket socket(
        accept4(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length, SOCK_CLOEXEC | SOCK_NONBLOCK));
    const int error = errno;
    if (socket.get() < 0 && (error == EAGAIN || error == EINTR || error == ECONNABORTED)) return;
    if (socket.get() < 0 || is_last_descriptor(socket.get())) {
      accept_after_ = Clock::now() + kAcceptPause;
      std::uint64_t suppressed = 0;
      if (accept_failures_.allow(suppressed)) {
        log::error("metrics: accept: {} (and {} times before that are not listed)",
                   std::strerror(socket.get() < 0 ? error : EMFILE), suppressed);
      }
      return;
    }
    std::string from = address_of(address);
    make_room(from);
    auto& client = clients_.emplace_back();
    client.socket = std::move(socket);
    client.address = std::move(from);
    client.until = Clock::now() + options_.patience;
  }
}

bool HttpServer::go_on(Client& client) {
  if (client.answer.empty()) {
    if (!receive(client)) return false;
    if (client.answer.empty()) return true;
  }
  return send(client);
}

bool HttpServer::receive(Client& client) {
  std::array<char, 4096> buffer{};
  const ssize_t got = recv(client.socket.get(), buffer.data(), buffer.size(), 0);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) return false;
  client.request.append(buffer.data(), static_cast<std::size_t>(got));
  if (client.request.find(kEndOfHead) == std::string::npos) {
    if (client.request.size() < kMaxRequestBytes) return true;
    client.answer = refusal("431 Request Header Fields Too Large");
  } else {
    client.answer = answer_to(client.request);
  }
  client.until = Clock::now() + options_.patience;
  return true;
}

// RFC 9112 3: "METHOD TARGET VERSION" on the first line. What a target says after '?' is not for this page.
std::string HttpServer::answer_to(const std::string& request) {
  const std::string line = request.substr(0, request.find("\r\n"));
  const auto first = line.find(' ');
  const auto second = line.rfind(' ');
  if (first == std::string::npos || second == first || line.compare(second, 8, " HTTP/1.") != 0) {
    return refusal("400 Bad Request");
  }
  const std::string method = line.substr(0, first);
  const std::string target = line.substr(first + 1, second - first - 1);
  if (target.substr(0, target.find('?')) != options_.path) return refusal("404 Not Found");
  if (method != "GET" && method != "HEAD") return refusal("405 Method Not Allowed");
  return response("200 OK", options_.content_type, make_text_(), method == "GET");
}

bool HttpServer::send(Client& client) {
  while (client.sent_bytes < client.answer.size()) {
    const ssize_t put = ::send(client.socket.get(), client.answer.data() + client.sent_bytes,
                               client.answer.size() - client.sent_bytes, MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return errno == EAGAIN;
    client.sent_bytes += static_cast<std::size_t>(put);
  }
  return false;
}

}  // namespace pollux::metrics
