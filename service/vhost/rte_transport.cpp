// Sockets and message framing by DPDK's vhost library (rte_vhost), with every message taken over before the library
// acts on it.
//
// The library calls a "pre message handler" with each message that it has read. Ours answers all of them itself, so the
// library never maps guest memory, never touches a ring and never keeps a descriptor: what remains of it is the
// listener, the reading of messages, and the sending of replies. Its thread ("vhost-events") runs every callback here.

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_log.h>
#include <rte_vhost.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/log.h"
#include "vhost/transport.h"
#include "vhost/vhost_user.h"

namespace pollux::vhost {
namespace {

// The message as the library hands it to external handlers. It is not in its public headers, but the library promises
// not to change it carelessly because such handlers rely on it (22.11: lib/vhost/vhost_user.h).
struct RteMessage {
  std::uint32_t request;
  std::uint32_t flags;
  std::uint32_t size;
  std::byte payload[Message::kMaxPayloadBytes];
  int fds[Message::kMaxFds];
  int fd_count;
};
static_assert(offsetof(RteMessage, payload) == 12);
static_assert(offsetof(RteMessage, fds) == 12 + Message::kMaxPayloadBytes);

// A session costs the library about 10 KiB of it, and untouched pages cost nothing.
constexpr const char* kEalMemoryMb = "64";

Status start_eal() {
  // The EAL pins the thread that starts it and makes it the main lcore; this one ends right after.
  int result = 0;
  int error = 0;
  std::thread([&] {
    std::vector<std::string> arguments = {"polluxd",        "--no-shconf",         "--no-pci",
                                          "--no-telemetry", "--no-huge",           "-m",
                                          kEalMemoryMb,     "--log-level=*:error", "--log-level=lib.vhost.*:critical"};
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
      for (int core = 0; core < CPU_SETSIZE; ++core) {
        if (!CPU_ISSET(core, &allowed)) continue;
        arguments.insert(arguments.end(), {"-l", std::to_string(core)});
        break;
      }
    }
    std::vector<char*> argv;
    for (auto& argument : arguments) argv.push_back(argument.data());
    result = rte_eal_init(static_cast<int>(argv.size()), argv.data());
    error = rte_errno;
  }).join();
  if (result < 0) return fail(ErrorCode::kInternal, "DPDK's EAL does not start: " + std::string(rte_strerror(error)));
  return {};
}

class RteTransport;
// The library's callbacks carry no context but the connection's number.
RteTransport* the_transport = nullptr;

class RteTransport final : public Transport {
 public:
  ~RteTransport() override {
    std::vector<std::string> paths;
    {
      std::lock_guard lock(mutex_);
      for (const auto& [path, acceptor] : acceptors_) paths.push_back(path);
    }
    for (const auto& path : paths) close(path);
    the_transport = nullptr;
  }

  Status open(const std::string& path, Acceptor& acceptor) override;
  void close(const std::string& path) override;

  int connected(int vid);
  void disconnected(int vid);
  rte_vhost_msg_result received(int vid, RteMessage& raw);

 private:
  struct Live {
    std::string path;
    std::shared_ptr<Connection> connection;
  };

  std::shared_ptr<Connection> find(int vid) {
    std::lock_guard lock(mutex_);
    return vid >= 0 && vid < RTE_MAX_VHOST_DEVICE ? live_[static_cast<std::size_t>(vid)].connection : nullptr;
  }

  std::mutex mutex_;
  std::unordered_map<std::string, Acceptor*> acceptors_;
  std::array<Live, RTE_MAX_VHOST_DEVICE> live_;
};

int on_new_device(int /*vid*/) {
  return 0;
}
void on_destroy_device(int /*vid*/) {}
int on_new_connection(int vid) {
  return the_transport->connected(vid);
}
void on_destroy_connection(int vid) {
  the_transport->disconnected(vid);
}
rte_vhost_msg_result on_message(int vid, void* message) {
  return the_transport->received(vid, *static_cast<RteMessage*>(message));
}

// new_device and destroy_device are called only for rings that the library itself has set up, which is none.
constexpr rte_vhost_device_ops kDeviceOps = [] {
  rte_vhost_device_ops ops{};
  ops.new_device = on_new_device;
  ops.destroy_device = on_destroy_device;
  ops.new_connection = on_new_connection;
  ops.destroy_connection = on_destroy_connection;
  return ops;
}();

constexpr rte_vhost_user_extern_ops kMessageOps = {.pre_msg_handle = on_message, .post_msg_handle = nullptr};

Status RteTransport::open(const std::string& path, Acceptor& acceptor) {
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    return fail(ErrorCode::kInvalid, "socket path " + path + " is longer than the kernel's limit of 107 characters");
  }
  {
    std::lock_guard lock(mutex_);
    if (!acceptors_.emplace(path, &acceptor).second)
      return fail(ErrorCode::kExists, "socket " + path + " is open already");
  }
  const auto give_up = [&](ErrorCode code, const std::string& what) {
    std::lock_guard lock(mutex_);
    acceptors_.erase(path);
    return fail(code, what + " " + path);
  };
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return give_up(ErrorCode::kInternal, "cannot replace the stale socket (" + std::string(std::strerror(errno)) + ")");
  }
  if (rte_vhost_driver_register(path.c_str(), 0) != 0) {
    return give_up(ErrorCode::kBusy, "DPDK's vhost library takes no further socket:");
  }
  if (rte_vhost_driver_callback_register(path.c_str(), &kDeviceOps) != 0 || rte_vhost_driver_start(path.c_str()) != 0) {
    rte_vhost_driver_unregister(path.c_str());
    return give_up(ErrorCode::kInternal, "cannot listen on");
  }
  return {};
}

void RteTransport::close(const std::string& path) {
  {
    std::lock_guard lock(mutex_);
    if (acceptors_.erase(path) == 0) return;
  }
  // Waits for a callback under way; afterwards none comes for this path. It does not report connections that it closes
  // here.
  rte_vhost_driver_unregister(path.c_str());
  std::vector<std::shared_ptr<Connection>> closed;
  {
    std::lock_guard lock(mutex_);
    for (Live& live : live_) {
      if (live.connection && live.path == path) closed.push_back(std::move(live.connection));
    }
  }
  for (const auto& connection : closed) connection->on_close();
}

int RteTransport::connected(int vid) {
  char path[PATH_MAX] = {};
  if (rte_vhost_get_ifname(vid, path, sizeof(path)) != 0) return -1;
  Acceptor* acceptor = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (auto found = acceptors_.find(path); found != acceptors_.end()) acceptor = found->second;
  }
  if (!acceptor) return -1;
  auto connection = acceptor->on_connect();
  if (!connection) return -1;
  if (rte_vhost_extern_callback_register(vid, &kMessageOps, nullptr) != 0) {
    connection->on_close();
    return -1;
  }
  std::lock_guard lock(mutex_);
  live_[static_cast<std::size_t>(vid)] = {path, std::move(connection)};
  return 0;
}

void RteTransport::disconnected(int vid) {
  std::shared_ptr<Connection> connection;
  {
    std::lock_guard lock(mutex_);
    connection = std::move(live_[static_cast<std::size_t>(vid)].connection);
  }
  if (connection) connection->on_close();
}

rte_vhost_msg_result RteTransport::received(int vid, RteMessage& raw) {
  Message message;
  message.request = raw.request;
  message.flags = raw.flags;
  message.size_bytes = raw.size;
  if (raw.fd_count > 0)
    message.fd_count = std::min<std::size_t>(static_cast<std::size_t>(raw.fd_count), Message::kMaxFds);
  for (std::size_t i = 0; i < message.fd_count; ++i) message.fds[i] = virtio::UniqueFd(raw.fds[i]);
  std::fill(std::begin(raw.fds), std::end(raw.fds), -1);
  raw.fd_count = 0;

  // Without NEED_REPLY an error makes the library close the connection.
  const auto drop = [&raw] {
    raw.flags &= ~kFlagNeedReply;
    return RTE_VHOST_MSG_RESULT_ERR;
  };
  auto connection = find(vid);
  if (!connection || raw.size > Message::kMaxPayloadBytes) return drop();
  std::memcpy(message.payload.data(), raw.payload, raw.size);
  switch (connection->on_message(message)) {
    case Verdict::kDone:
      return RTE_VHOST_MSG_RESULT_OK;
    case Verdict::kDrop:
      return drop();
    case Verdict::kReply:
      break;
  }
  raw.size = message.size_bytes;
  std::memcpy(raw.payload, message.payload.data(), message.size_bytes);
  if (message.reply_fd >= 0) {
    raw.fds[0] = message.reply_fd;
    raw.fd_count = 1;
  }
  return RTE_VHOST_MSG_RESULT_REPLY;
}

}  // namespace

Result<std::unique_ptr<Transport>> make_rte_transport() {
  if (the_transport) return fail(ErrorCode::kBusy, "DPDK's vhost library is in use already");
  static bool started = false;
  if (!started) {
    POLLUX_TRY(start_eal());
    started = true;
  }
  auto transport = std::make_unique<RteTransport>();
  the_transport = transport.get();
  return transport;
}

}  // namespace pollux::vhost
