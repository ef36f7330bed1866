// Sockets and message framing. One thread accepts; every connection has a thread of its own, so that a front end which
// sends half a message, does not read its answers, or waits for a slow disk to drain delays no other front end.
// The threads sleep in the kernel nearly always.
//
// Not DPDK's vhost library: it reads all connections on one thread with calls that wait (half a message from one guest
// stops all others), and leaks the descriptors of a message that has too many.

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/descriptors.h"
#include "base/log.h"
#include "base/log_limiter.h"
#include "base/waiting_clients.h"
#include "protocol/vhost_user.h"
#include "vhost/transport.h"

namespace pollux::vhost {

using namespace protocol;

namespace {

constexpr int kBacklog = 16;
// How long to leave accepting alone when the process has no descriptors left.
constexpr int kAcceptPauseMs = 100;

// The process that has connected, as this one knows it: all that it cannot see are one.
std::string process_behind(int socket) {
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return {};
  return std::to_string(credentials.pid);
}

// One front end's connection and the thread that serves it.
class Link {
 public:
  // `process`: who has connected.
  Link(UniqueFd socket, std::string process, std::shared_ptr<Connection> connection)
      : process_(std::move(process)),
        socket_(std::move(socket)),
        connection_(std::move(connection)),
        thread_([this] { serve(); }) {}
  ~Link() {
    // A front end that finds its connection gone takes its rings to be where they are then: they stop before that.
    connection_->on_close();
    {
      // Wakes the thread that waits on the socket.
      std::lock_guard lock(socket_mutex_);
      if (socket_) ::shutdown(socket_.get(), SHUT_RDWR);
    }
    thread_.join();
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  const std::string& process() const { return process_; }
  Connection& connection() const { return *connection_; }
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  // Tells the connection when the front end has closed its end; the thread may be long in finding out.
  void look_for_hangup() {
    std::lock_guard lock(socket_mutex_);
    pollfd entry{socket_.get(), POLLRDHUP, 0};
    if (socket_ && ::poll(&entry, 1, 0) > 0) connection_->on_hangup();
  }

 private:
  void serve() {
    ::pthread_setname_np(::pthread_self(), "vhost-session");
    while (serve_one()) {
    }
    connection_->on_close();
    {
      // Last, so that a front end which sees the end knows that nothing of it is left.
      std::lock_guard lock(socket_mutex_);
      socket_.reset();
    }
    ended_.store(true, std::memory_order_release);
  }

  // False: the connection is to end.
  bool serve_one() {
    Message message;
    VhostUserHeader header{};
    if (!receive_header(header, message)) return false;
    message.request = header.request;
    message.flags = header.flags;
    message.size_bytes = header.size_bytes;
    if (message.size_bytes > Message::kMaxPayloadBytes || !receive(message.payload.data(), message.size_bytes))
      return false;
    const bool wants_answer = (message.flags & kFlagNeedReply) != 0;
    switch (connection_->on_message(message)) {
      case Verdict::kReply:
        return send(message);
      case Verdict::kDone: {
        if (!wants_answer) return true;
        message.reply_fd = -1;
        message.write(std::uint64_t{0});
        return send(message);
      }
      case Verdict::kDrop:
        break;
    }
    return false;
  }

  // The descriptors of a message come with its first byte.
  bool receive_header(VhostUserHeader& header, Message& message) {
    auto* bytes = reinterpret_cast<std::byte*>(&header);
    std::size_t done = 0;
    while (done < sizeof(header)) {
      iovec piece{bytes + done, sizeof(header) - done};
      alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof(int) * Message::kMaxFds)];
      msghdr received{};
      received.msg_iov = &piece;
      received.msg_iovlen = 1;
      received.msg_control = control;
      received.msg_controllen = sizeof(control);
      const ssize_t got = ::recvmsg(socket_.get(), &received, MSG_CMSG_CLOEXEC);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      // They are owned before anything else can go wrong.
      const bool taken = take_descriptors(received, message);
      if (!taken || (received.msg_flags & MSG_CTRUNC)) return false;
      done += static_cast<std::size_t>(got);
    }
    return true;
  }

  static bool take_descriptors(const msghdr& received, Message& message) {
    bool all = true;
    for (cmsghdr* part = CMSG_FIRSTHDR(&received); part; part = CMSG_NXTHDR(const_cast<msghdr*>(&received), part)) {
      if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
        UniqueFd owned(fd);
        if (message.fd_count == Message::kMaxFds || is_last_descriptor(owned.get())) {
          all = false;
        } else {
          message.fds[message.fd_count++] = std::move(owned);
        }
      }
    }
    return all;
  }

  bool receive(std::byte* to, std::size_t length) {
    while (length > 0) {
      const ssize_t got = ::recv(socket_.get(), to, length, 0);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      to += got;
      length -= static_cast<std::size_t>(got);
    }
    return true;
  }

  bool send(const Message& message) {
    const VhostUserHeader header{message.request, kVersion | kFlagReply, message.size_bytes};
    std::array<std::byte, sizeof(header) + Message::kMaxPayloadBytes> bytes;
    std::memcpy(bytes.data(), &header, sizeof(header));
    std::memcpy(bytes.data() + sizeof(header), message.payload.data(), message.size_bytes);
    const std::size_t length = sizeof(header) + message.size_bytes;
    std::size_t done = 0;
    while (done < length) {
      iovec piece{bytes.data() + done, length - done};
      alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof(int))] = {};
      msghdr out{};
      out.msg_iov = &piece;
      out.msg_iovlen = 1;
      if (done == 0 && message.reply_fd >= 0) {
        out.msg_control = control;
        out.msg_controllen = sizeof(control);
        cmsghdr* rights = CMSG_FIRSTHDR(&out);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(rights), &message.reply_fd, sizeof(int));
      }
      const ssize_t sent = ::sendmsg(socket_.get(), &out, MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) return false;
      done += static_cast<std::size_t>(sent);
    }
    return true;
  }

  const std::string process_;
  // Against other threads' use of a descriptor that the link's own has just closed.
  std::mutex socket_mutex_;
  UniqueFd socket_;
  const std::shared_ptr<Connection> connection_;
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

class SocketTransport final : public Transport {
 public:
  SocketTransport(UniqueFd epoll, UniqueFd wake)
      : epoll_(std::move(epoll)), wake_(std::move(wake)), thread_([this] { accept_loop(); }) {}
  ~SocketTransport() override {
    std::vector<std::string> paths;
    {
      std::lock_guard lock(mutex_);
      for (const auto& [path, listener] : listeners_) paths.push_back(path);
    }
    for (const auto& path : paths) close(path);
    ending_ = true;
    const std::uint64_t one = 1;
    if (::write(wake_.get(), &one, sizeof(one)) != sizeof(one))
      log::error("cannot wake the accepting thread: {}", std::strerror(errno));
    thread_.join();
  }

  Status open(const std::string& path, Acceptor& acceptor) override;
  void close(const std::string& path) override;

 private:
  struct Listener {
    UniqueFd socket;
    Acceptor* acceptor;
    std::list<Link> links;
  };

  void accept_loop();
  // False: the process has no descriptor or memory for one more.
  bool accept_from(const std::string& path, Listener& listener);
  // False: nobody there can be sent away for a front end of `process`.
  static bool make_room(std::list<Link>& links, const std::string& process);

  UniqueFd epoll_;
  UniqueFd wake_;
  std::atomic<bool> ending_{false};
  // Held while a connection is accepted, so that close() leaves none behind.
  std::mutex mutex_;
  std::map<std::string, Listener> listeners_;
  LogLimiter accept_failures_;
  LogLimiter refusals_;
  std::thread thread_;
};

Status SocketTransport::open(const std::string& path, Acceptor& acceptor) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return fail(ErrorCode::kInvalid, "socket path " + path + " is longer than the kernel's limit of 107 characters");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const auto refused = [&path](const std::string& what) {
    return fail(ErrorCode::kInternal, what + " " + path + ": " + std::strerror(errno));
  };
  std::lock_guard lock(mutex_);
  if (listeners_.contains(path)) return fail(ErrorCode::kExists, "socket " + path + " is open already");
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return refused("cannot make socket");
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return refused("cannot replace the stale socket");
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(socket.get(), kBacklog) != 0) {
    return refused("cannot listen on");
  }
  const int fd = socket.get();
  listeners_.emplace(path, Listener{std::move(socket), &acceptor, {}});
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    const auto failure = refused("cannot listen on");
    listeners_.erase(path);
    ::unlink(path.c_str());
    return failure;
  }
  return {};
}

void SocketTransport::close(const std::string& path) {
  std::list<Link> ending;
  {
    std::lock_guard lock(mutex_);
    auto found = listeners_.find(path);
    if (found == listeners_.end()) return;
    ::unlink(path.c_str());
    ending = std::move(found->second.links);
    // Closing the socket takes it out of the epoll set.
    listeners_.erase(found);
  }
  // Each link's connection is closed, and its thread ends.
  ending.clear();
}

void SocketTransport::accept_loop() {
  ::pthread_setname_np(::pthread_self(), "vhost-accept");
  while (!ending_) {
    epoll_event events[16];
    const int count = ::epoll_wait(epoll_.get(), events, static_cast<int>(std::size(events)), -1);
    bool exhausted = false;
    for (int i = 0; i < count && !exhausted; ++i) {
      std::lock_guard lock(mutex_);
      const auto listener = std::find_if(listeners_.begin(), listeners_.end(), [&](const auto& entry) {
        return entry.second.socket.get() == events[i].data.fd;
      });
      if (listener != listeners_.end()) exhausted = !accept_from(listener->first, listener->second);
    }
    if (exhausted) {
      // Without the mutex: sockets can be closed meanwhile, which gives descriptors back.
      pollfd end{wake_.get(), POLLIN, 0};
      static_cast<void>(::poll(&end, 1, kAcceptPauseMs));
    }
  }
}

bool SocketTransport::make_room(std::list<Link>& links, const std::string& process) {
  while (links.size() >= kMaxFrontEnds) {
    std::vector<WaitingClient> waiting;
    std::vector<std::list<Link>::iterator> found;
    for (auto link = links.begin(); link != links.end(); ++link) {
      const Stage stage = link->connection().stage();
      if (stage == Stage::kServed) continue;
      waiting.push_back({link->process(), stage == Stage::kSilent});
      found.push_back(link);
    }
    const auto leaving = who_leaves(waiting, process, {.clients = 0, .clients_per_address = kMaxFrontEnds});
    if (!leaving) return false;
    // One that has just been served after all is not among those that can leave the next time. Of the others no queue
    // runs, so that they end at once.
    if (found[*leaving]->connection().dismiss()) links.erase(found[*leaving]);
  }
  return true;
}

bool SocketTransport::accept_from(const std::string& path, Listener& listener) {
  listener.links.remove_if([](const Link& link) { return link.ended(); });
  UniqueFd socket(::accept4(listener.socket.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const int error = socket ? (is_last_descriptor(socket.get()) ? EMFILE : 0) : errno;
  if (error != 0) {
    // A front end that went away again is nothing to speak of.
    if (error != EMFILE && error != ENFILE && error != ENOMEM && error != ENOBUFS) return true;
    std::uint64_t suppressed = 0;
    if (accept_failures_.allow(suppressed)) {
      log::error("cannot accept a front end: {} (and {} times before that are not listed)", std::strerror(error),
                 suppressed);
    }
    return false;
  }
  // A front end that reconnects has closed its old socket first, so this one's predecessors are known by now.
  for (Link& link : listener.links) link.look_for_hangup();
  std::string process = process_behind(socket.get());
  if (!make_room(listener.links, process)) {
    std::uint64_t suppressed = 0;
    if (refusals_.allow(suppressed)) {
      log::warn("{}: refused a front end of process {}: {} are served (and {} refusals before that are not listed)",
                path, process, listener.links.size(), suppressed);
    }
    return true;
  }
  listener.links.emplace_back(std::move(socket), std::move(process), listener.acceptor->on_connect());
  return true;
}

}  // namespace

Result<std::unique_ptr<Transport>> make_socket_transport() {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = wake.get();
  if (!epoll || !wake || ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake.get(), &event) != 0) {
    return fail(ErrorCode::kInternal, std::string("cannot watch sockets: ") + std::strerror(errno));
  }
  return std::make_unique<SocketTransport>(std::move(epoll), std::move(wake));
}

}  // namespace pollux::vhost
