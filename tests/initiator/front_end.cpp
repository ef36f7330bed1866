#include "initiator/front_end.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

namespace pollux::initiator {
namespace {

constexpr int kReplyDeadlineMs = 30000;

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what);
}
[[noreturn]] void fail_errno(const std::string& what) {
  fail(what + ": " + std::strerror(errno));
}

bool readable(int fd, int deadline_ms) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, deadline_ms) > 0;
}

}  // namespace

std::unique_ptr<Wire> Wire::connect(const std::string& socket_path, unsigned deadline_ms) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_path.size() >= sizeof(address.sun_path)) fail("socket path too long");
  std::memcpy(address.sun_path, socket_path.data(), socket_path.size());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(deadline_ms);
  while (true) {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail_errno("socket");
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0)
      return std::unique_ptr<Wire>(new Wire(fd));
    const int error = errno;
    ::close(fd);
    errno = error;
    if ((error != ECONNREFUSED && error != ENOENT) || std::chrono::steady_clock::now() > deadline)
      fail_errno("connect " + socket_path);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

Wire::~Wire() {
  ::close(fd_);
}

void Wire::send_bytes(std::span<const std::byte> bytes, std::span<const int> fds) {
  iovec iov{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  std::vector<std::byte> control;
  if (!fds.empty()) {
    control.resize(CMSG_SPACE(fds.size_bytes()));
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  if (::sendmsg(fd_, &message, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes.size())) fail_errno("sendmsg");
}

void Wire::send(std::uint32_t request, std::span<const std::byte> payload, std::span<const int> fds,
                std::uint32_t flags) {
  const VhostUserHeader header{request, flags, static_cast<std::uint32_t>(payload.size())};
  std::vector<std::byte> bytes(sizeof(header) + payload.size());
  std::memcpy(bytes.data(), &header, sizeof(header));
  if (!payload.empty()) std::memcpy(bytes.data() + sizeof(header), payload.data(), payload.size());
  send_bytes(bytes, fds);
}

Reply Wire::receive() {
  if (!readable(fd_, kReplyDeadlineMs)) fail("the back end does not answer");
  VhostUserHeader header{};
  iovec iov{&header, sizeof(header)};
  alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (::recvmsg(fd_, &message, MSG_CMSG_CLOEXEC) != sizeof(header)) fail("the back end closed the connection");
  Reply reply;
  reply.request = header.request;
  if (const cmsghdr* rights = CMSG_FIRSTHDR(&message)) std::memcpy(&reply.fd, CMSG_DATA(rights), sizeof(int));
  reply.payload.resize(header.size_bytes);
  std::size_t done = 0;
  while (done < reply.payload.size()) {
    const ssize_t part = ::read(fd_, reply.payload.data() + done, reply.payload.size() - done);
    if (part <= 0) fail("the back end closed the connection");
    done += static_cast<std::size_t>(part);
  }
  return reply;
}

bool Wire::closed_by_peer(unsigned deadline_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(deadline_ms);
  while (true) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    if (left <= 0 || !readable(fd_, static_cast<int>(left))) return false;
    std::byte buffer[512];
    const ssize_t got = ::recv(fd_, buffer, sizeof(buffer), 0);
    if (got == 0 || (got < 0 && errno == ECONNRESET)) return true;
    if (got < 0) fail_errno("recv");
  }
}

FrontEnd::FrontEnd(const FrontEndOptions& options)
    : options_(options), ram_(options.ram_bytes, options.ram_regions), queues_(options.queues) {
  for (Queue& queue : queues_) {
    queue.ring = DriverRing::make(ram_, options.ring);
    queue.kick = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    queue.call = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (queue.kick < 0 || queue.call < 0) fail_errno("eventfd");
  }
}

FrontEnd::~FrontEnd() {
  abandon();
  for (Queue& queue : queues_) {
    ::close(queue.kick);
    ::close(queue.call);
  }
  if (inflight_fd_ >= 0) ::close(inflight_fd_);
}

void FrontEnd::start(std::optional<std::uint16_t> only) {
  only_ = only;
  wire_ = Wire::connect(options_.socket_path);
  negotiate();
  set_mem_table();
  if (protocol_ & kProtocolInflightShmfd) share_inflight();
  if (options_.enable_first) {
    for (std::uint16_t i = 0; i < options_.queues; ++i) request(VhostUserRequest::kSetVringEnable, VringState{i, 1});
  }
  for (std::uint16_t i = 0; i < options_.queues; ++i) {
    if (!only || *only == i) start_queue(i);
  }
}

void FrontEnd::negotiate() {
  protocol_ = 0;
  offered_ = get_u64(VhostUserRequest::kGetFeatures);
  std::uint64_t wanted = kFeatureVersion1 | kFeatureProtocolFeatures | options_.features;
  if (options_.ring.packed) wanted |= kFeatureRingPacked;
  if (options_.ring.event_idx) wanted |= kFeatureEventIdx;
  if (options_.ring.indirect) wanted |= kFeatureIndirectDesc;
  const std::uint64_t missing = (wanted & ~options_.features) & ~offered_;
  if (missing) fail("the back end lacks feature bits " + std::to_string(missing));
  offered_protocol_ = get_u64(VhostUserRequest::kGetProtocolFeatures);
  std::uint64_t protocol =
      kProtocolMq | kProtocolConfig | kProtocolBackendReq | kProtocolLogShmfd | kProtocolConfigureMemSlots;
  if (options_.inflight) protocol |= kProtocolInflightShmfd;
  if (options_.reply_ack) protocol |= kProtocolReplyAck;
  protocol &= offered_protocol_;
  request(VhostUserRequest::kSetProtocolFeatures, protocol);
  protocol_ = protocol;
  wire_->send(static_cast<std::uint32_t>(VhostUserRequest::kSetOwner), {});
  if (protocol_ & kProtocolBackendReq) {
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, backend_channel_) != 0) fail_errno("socketpair");
    request_bytes(VhostUserRequest::kSetBackendReqFd, {}, std::span(&backend_channel_[1], 1));
  }
  set_features(wanted & offered_);
}

void FrontEnd::set_features(std::uint64_t features) {
  features_ = features;
  request(VhostUserRequest::kSetFeatures, features);
}

void FrontEnd::set_mem_table() {
  struct {
    std::uint32_t count;
    std::uint32_t padding = 0;
    MemoryRegion regions[8];
  } table{};
  std::vector<int> fds;
  for (const auto& part : ram_.parts()) {
    table.regions[table.count++] = part.region;
    fds.push_back(part.fd);
  }
  request_bytes(VhostUserRequest::kSetMemTable,
                std::as_bytes(std::span(&table, 1)).first(8 + table.count * sizeof(MemoryRegion)), fds);
}

void FrontEnd::share_inflight() {
  if (inflight_fd_ < 0) {
    const Inflight wanted{0, 0, options_.queues, options_.ring.size, 0};
    wire_->send(static_cast<std::uint32_t>(VhostUserRequest::kGetInflightFd), Wire::bytes_of(wanted));
    Reply reply = wire_->receive();
    if (reply.payload.size() != sizeof(inflight_) || reply.fd < 0) fail("a wrong answer to GET_INFLIGHT_FD");
    std::memcpy(&inflight_, reply.payload.data(), sizeof(inflight_));
    inflight_fd_ = reply.fd;
  }
  request(VhostUserRequest::kSetInflightFd, inflight_, std::span(&inflight_fd_, 1));
}

void FrontEnd::start_queue(std::uint16_t index) {
  Queue& queue = queues_[index];
  const std::uint64_t number = index;
  request(VhostUserRequest::kSetVringNum, VringState{index, options_.ring.size});
  request(VhostUserRequest::kSetVringBase, VringState{index, queue.noted_base.value_or(queue.ring->base())});
  queue.noted_base.reset();
  set_ring_addresses(index, 0);
  request(VhostUserRequest::kSetVringCall, number, std::span(&queue.call, 1));
  request(VhostUserRequest::kSetVringKick, number, std::span(&queue.kick, 1));
  if ((features_ & kFeatureProtocolFeatures) && !options_.enable_first)
    request(VhostUserRequest::kSetVringEnable, VringState{index, 1});
}

void FrontEnd::set_ring_addresses(std::uint16_t index, std::uint32_t flags) {
  VringAddr addresses = queues_[index].ring->addresses(index);
  addresses.flags = flags;
  request(VhostUserRequest::kSetVringAddr, addresses);
}

std::uint32_t FrontEnd::get_vring_base(std::uint16_t index) {
  wire_->send(static_cast<std::uint32_t>(VhostUserRequest::kGetVringBase), Wire::bytes_of(VringState{index, 0}));
  const Reply reply = wire_->receive();
  VringState state{};
  if (reply.payload.size() != sizeof(state)) fail("a wrong answer to GET_VRING_BASE");
  std::memcpy(&state, reply.payload.data(), sizeof(state));
  return state.num;
}

void FrontEnd::stop() {
  for (std::uint16_t i = 0; i < options_.queues; ++i) {
    if (!only_ || *only_ == i) queues_[i].noted_base = get_vring_base(i);
  }
}

void FrontEnd::resume() {
  for (std::uint16_t i = 0; i < options_.queues; ++i) {
    if (only_ && *only_ != i) continue;
    start_queue(i);
    kick(i);
  }
}

void FrontEnd::disconnect() {
  if (wire_) note_positions();
  abandon();
}

void FrontEnd::abandon() {
  wire_.reset();
  for (int& fd : backend_channel_) {
    if (fd >= 0) ::close(fd);
    fd = -1;
  }
}

void FrontEnd::reconnect() {
  disconnect();
  start(only_);
  // A kick that the dead process took along is made up for.
  for (std::uint16_t i = 0; i < options_.queues; ++i) kick(i);
}

bool FrontEnd::wait_lost(int deadline_ms) {
  pollfd entry{wire_->fd(), POLLRDHUP, 0};
  if (::poll(&entry, 1, deadline_ms) <= 0) return false;
  note_positions();
  return true;
}

void FrontEnd::note_positions() {
  for (Queue& queue : queues_) {
    if (!queue.noted_base) queue.noted_base = queue.ring->base();
  }
}

void FrontEnd::kick(std::uint16_t index) {
  const std::uint64_t one = 1;
  if (::write(queues_[index].kick, &one, sizeof(one)) < 0 && errno != EAGAIN) fail_errno("kick");
}

bool FrontEnd::wait_call(std::uint16_t index, int deadline_ms) {
  if (!readable(queues_[index].call, deadline_ms)) return false;
  take_calls(index);
  return true;
}

std::uint64_t FrontEnd::take_calls(std::uint16_t index) {
  std::uint64_t count = 0;
  if (::read(queues_[index].call, &count, sizeof(count)) < 0 && errno != EAGAIN) fail_errno("call");
  return count;
}

std::optional<std::uint32_t> FrontEnd::wait_backend_message(int deadline_ms) {
  if (!readable(backend_channel_[0], deadline_ms)) return std::nullopt;
  VhostUserHeader header{};
  if (::recv(backend_channel_[0], &header, sizeof(header), MSG_WAITALL) != sizeof(header))
    fail("half a message on the back-end channel");
  return header.request;
}

std::vector<std::byte> FrontEnd::config(std::uint32_t offset, std::uint32_t size) {
  std::vector<std::byte> payload(12 + size);
  const std::uint32_t header[3] = {offset, size, 0};
  std::memcpy(payload.data(), header, sizeof(header));
  wire_->send(static_cast<std::uint32_t>(VhostUserRequest::kGetConfig), payload);
  Reply reply = wire_->receive();
  if (reply.payload.size() != payload.size()) fail("a wrong answer to GET_CONFIG");
  return {reply.payload.begin() + 12, reply.payload.end()};
}

void FrontEnd::set_config(std::uint32_t offset, std::span<const std::byte> bytes) {
  std::vector<std::byte> payload(12 + bytes.size());
  const std::uint32_t header[3] = {offset, static_cast<std::uint32_t>(bytes.size()), 0};
  std::memcpy(payload.data(), header, sizeof(header));
  std::memcpy(payload.data() + 12, bytes.data(), bytes.size());
  request_bytes(VhostUserRequest::kSetConfig, payload);
}

void FrontEnd::request_bytes(VhostUserRequest kind, std::span<const std::byte> payload, std::span<const int> fds) {
  const bool ack = protocol_ & kProtocolReplyAck;
  wire_->send(static_cast<std::uint32_t>(kind), payload, fds, ack ? kVersion | kFlagNeedReply : kVersion);
  if (!ack) return;
  const Reply reply = wire_->receive();
  std::uint64_t code = 1;
  if (reply.payload.size() == sizeof(code)) std::memcpy(&code, reply.payload.data(), sizeof(code));
  if (code != 0) fail("the back end refused request " + std::to_string(static_cast<std::uint32_t>(kind)));
}

std::uint64_t FrontEnd::get_u64(VhostUserRequest kind) {
  wire_->send(static_cast<std::uint32_t>(kind), {});
  const Reply reply = wire_->receive();
  std::uint64_t value = 0;
  if (reply.payload.size() != sizeof(value))
    fail("a wrong answer to request " + std::to_string(static_cast<std::uint32_t>(kind)));
  std::memcpy(&value, reply.payload.data(), sizeof(value));
  return value;
}

}  // namespace pollux::initiator
