#include "vhost/session.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "base/units.h"

namespace pollux::vhost {

using namespace protocol;

namespace {

constexpr std::uint64_t kCommonFeatures = kFeatureLogAll | kFeatureIndirectDesc | kFeatureEventIdx |
                                          kFeatureProtocolFeatures | kFeatureVersion1 | kFeatureRingPacked;
constexpr std::uint64_t kProtocolFeatures = kProtocolMq | kProtocolLogShmfd | kProtocolReplyAck | kProtocolBackendReq |
                                            kProtocolConfig | kProtocolInflightShmfd | kProtocolConfigureMemSlots;

// How long a queue's requests may take to end before it stays where it is.
constexpr std::chrono::milliseconds kMovePatience{500};

// How many descriptors may come with a request.
std::pair<std::size_t, std::size_t> expected_fds(const Message& message) {
  switch (static_cast<VhostUserRequest>(message.request)) {
    case VhostUserRequest::kSetMemTable: {
      MemTableHeader header{};
      if (message.size_bytes >= sizeof(header)) std::memcpy(&header, message.payload.data(), sizeof(header));
      const std::size_t count = std::min(header.count, kMaxMemTableRegions + 1);
      return {count, count};
    }
    case VhostUserRequest::kAddMemReg:
    case VhostUserRequest::kSetLogBase:
    case VhostUserRequest::kSetLogFd:
    case VhostUserRequest::kSetBackendReqFd:
    case VhostUserRequest::kSetInflightFd:
      return {1, 1};
    case VhostUserRequest::kSetVringKick:
    case VhostUserRequest::kSetVringCall:
    case VhostUserRequest::kSetVringErr: {
      std::uint64_t value = kVringNoFd;
      message.read(value);
      const std::size_t count = value & kVringNoFd ? 0 : 1;
      return {count, count};
    }
    case VhostUserRequest::kRemMemReg:
      // The specification tells back ends to tolerate one.
      return {0, 1};
    default:
      return {0, 0};
  }
}

// Of GET_CONFIG and SET_CONFIG; the bytes that follow it are all there.
Result<ConfigHeader> config_header(const Message& message) {
  ConfigHeader header{};
  if (message.size_bytes < sizeof(header)) return fail(ErrorCode::kInvalid, "wrong payload size");
  std::memcpy(&header, message.payload.data(), sizeof(header));
  if (header.size > kMaxConfigBytes || !range_fits(header.offset, header.size, kMaxConfigBytes) ||
      message.size_bytes != sizeof(header) + header.size) {
    return fail(ErrorCode::kInvalid, "configuration space is not that large");
  }
  return header;
}

}  // namespace

Session::Session(std::string name, Device& device, Placement& placement, MemoryShare& memory_share, LogLimiter& limiter,
                 std::vector<std::shared_ptr<Session>> predecessors)
    : name_(std::move(name)),
      device_(device),
      placement_(placement),
      memory_share_(memory_share),
      limiter_(limiter),
      predecessors_(std::move(predecessors)),
      vrings_(device.virtqueues()) {}

Session::~Session() = default;

Verdict Session::on_message(Message& message) {
  Stage seen = Stage::kSilent;
  stage_.compare_exchange_strong(seen, Stage::kTalking);
  std::lock_guard lock(mutex_);
  if (closed_ || seen == Stage::kDismissed) return Verdict::kDrop;
  log::debug("{}: request {}, {} bytes, {} descriptors", name_, message.request, message.size_bytes, message.fd_count);
  auto verdict = handle(message);
  if (verdict) return *verdict;
  blame("front end disconnected after request " + std::to_string(message.request) + ": " + verdict.error().message);
  return Verdict::kDrop;
}

bool Session::dismiss() {
  Stage seen = stage_;
  while (seen != Stage::kServed && !stage_.compare_exchange_weak(seen, Stage::kDismissed)) {
  }
  if (seen == Stage::kServed) return false;
  blame("a front end that had started no queue lost its place to another");
  return true;
}

bool Session::serve() {
  Stage seen = stage_;
  while (seen != Stage::kDismissed && !stage_.compare_exchange_weak(seen, Stage::kServed)) {
  }
  return seen != Stage::kDismissed;
}

void Session::blame(const std::string& what) {
  std::uint64_t suppressed = 0;
  if (!limiter_.allow(suppressed)) return;
  if (suppressed == 0) {
    log::warn("{}: {}", name_, what);
  } else {
    log::warn("{}: {} (and {} such events before)", name_, what, suppressed);
  }
}

Result<Verdict> Session::handle(Message& message) {
  if ((message.flags & kVersionMask) != kVersion || (message.flags & kFlagReply)) {
    return fail(ErrorCode::kInvalid, "not a vhost-user request of version 1");
  }
  const auto [least_fds, most_fds] = expected_fds(message);
  if (message.fd_count < least_fds || message.fd_count > most_fds) {
    return fail(ErrorCode::kInvalid, "wrong number of descriptors");
  }
  switch (static_cast<VhostUserRequest>(message.request)) {
    case VhostUserRequest::kGetFeatures:
      return get_features(message);
    case VhostUserRequest::kSetFeatures:
      return set_features(message);
    case VhostUserRequest::kGetProtocolFeatures:
      return get_protocol_features(message);
    case VhostUserRequest::kSetProtocolFeatures:
      return set_protocol_features(message);
    case VhostUserRequest::kSetOwner:
      owned_ = true;
      return Verdict::kDone;
    case VhostUserRequest::kResetOwner:
    case VhostUserRequest::kSetLogFd:
      // Nothing to do: the connection's end is the owner's, and the log needs no signal.
      return Verdict::kDone;
    case VhostUserRequest::kGetQueueNum:
      return get_queue_num(message);
    case VhostUserRequest::kSetBackendReqFd:
      return set_backend_req_fd(message);
    case VhostUserRequest::kGetConfig:
      return get_config(message);
    case VhostUserRequest::kSetConfig:
      return set_config(message);
    case VhostUserRequest::kSetMemTable:
      return set_mem_table(message);
    case VhostUserRequest::kGetMaxMemSlots:
      return get_max_mem_slots(message);
    case VhostUserRequest::kAddMemReg:
      return add_mem_reg(message);
    case VhostUserRequest::kRemMemReg:
      return rem_mem_reg(message);
    case VhostUserRequest::kSetLogBase:
      return set_log_base(message);
    case VhostUserRequest::kGetInflightFd:
      return get_inflight_fd(message);
    case VhostUserRequest::kSetInflightFd:
      return set_inflight_fd(message);
    case VhostUserRequest::kSetVringNum:
      return set_vring_num(message);
    case VhostUserRequest::kSetVringAddr:
      return set_vring_addr(message);
    case VhostUserRequest::kSetVringBase:
      return set_vring_base(message);
    case VhostUserRequest::kGetVringBase:
      return get_vring_base(message);
    case VhostUserRequest::kSetVringEnable:
      return set_vring_enable(message);
    case VhostUserRequest::kSetVringKick:
    case VhostUserRequest::kSetVringCall:
    case VhostUserRequest::kSetVringErr:
      return set_vring_fd(message);
  }
  return fail(ErrorCode::kUnsupported, "unknown request");
}

Result<Verdict> Session::get_features(Message& message) {
  message.write(kCommonFeatures | device_.features());
  return Verdict::kReply;
}

Result<Verdict> Session::set_features(Message& message) {
  std::uint64_t features = 0;
  if (!message.read(features)) return fail(ErrorCode::kInvalid, "wrong payload size");
  if (features & ~(kCommonFeatures | device_.features()))
    return fail(ErrorCode::kInvalid, "features that were not offered");
  if (features == features_) return Verdict::kDone;
  POLLUX_TRY(change_at_rest([&]() -> Status {
    // Rings start enabled unless the front end can say so itself.
    if (!(features & kFeatureProtocolFeatures)) {
      for (Vring& vring : vrings_) vring.enabled = true;
    }
    features_ = features;
    device_.negotiated(features);
    return {};
  }));
  return Verdict::kDone;
}

Result<Verdict> Session::get_protocol_features(Message& message) {
  // QEMU warns of a back end that offers the configuration space of a device for which QEMU makes it itself; other
  // front ends, such as User-mode Linux, have it from us. What tells them apart is that QEMU takes ownership after it
  // has asked.
  const bool config_wanted = device_.config_is_for_qemu() || owned_;
  message.write(config_wanted ? kProtocolFeatures : kProtocolFeatures & ~kProtocolConfig);
  return Verdict::kReply;
}

Result<Verdict> Session::set_protocol_features(Message& message) {
  std::uint64_t features = 0;
  if (!message.read(features)) return fail(ErrorCode::kInvalid, "wrong payload size");
  if (features & ~kProtocolFeatures) return fail(ErrorCode::kInvalid, "protocol features that were not offered");
  protocol_features_ = features;
  return Verdict::kDone;
}

Result<Verdict> Session::get_queue_num(Message& message) {
  message.write(std::uint64_t{device_.virtqueues()});
  return Verdict::kReply;
}

Result<Verdict> Session::set_backend_req_fd(Message& message) {
  std::lock_guard lock(channel_mutex_);
  backend_req_ = std::move(message.fds[0]);
  return Verdict::kDone;
}

Result<Verdict> Session::get_config(Message& message) {
  const auto header = config_header(message);
  if (!header) return fail(header.error());
  // Front ends ask for the configuration space as they know it, which may end later than ours: those fields are zero.
  std::vector<std::byte> config = device_.config();
  known_config_ = config;
  config.resize(kMaxConfigBytes);
  std::memcpy(message.payload.data() + sizeof(*header), config.data() + header->offset, header->size);
  return Verdict::kReply;
}

Result<Verdict> Session::set_config(Message& message) {
  const auto header = config_header(message);
  if (!header) return fail(header.error());
  const std::span<const std::byte> bytes(message.payload.data() + sizeof(*header), header->size);
  auto written = device_.write_config(header->offset, bytes);
  if (written) {
    if (range_fits(header->offset, header->size, known_config_.size()))
      std::ranges::copy(bytes, known_config_.begin() + header->offset);
    return Verdict::kDone;
  }
  if (written.error().code == ErrorCode::kInvalid || !(message.flags & kFlagNeedReply)) {
    return fail(std::move(written.error()));
  }
  // The guest then reads the field as it was.
  blame("a configuration field could not be changed: " + written.error().message);
  message.write(std::uint64_t{1});
  return Verdict::kReply;
}

void Session::on_close() {
  leaving_ = true;
  std::lock_guard lock(mutex_);
  if (closed_) return;
  log::debug("{}: front end disconnected", name_);
  for (Vring& vring : vrings_) stop(vring);
  vrings_.clear();
  closed_ = true;
  closed_.notify_all();
  predecessors_.clear();
  memory_.reset();
  log_.reset();
  inflight_.reset();
  memory_leases_.clear();
  log_lease_ = {};
  inflight_lease_ = {};
  inflight_fd_.reset();
  std::lock_guard channel(channel_mutex_);
  backend_req_.reset();
}

void Session::config_changed() {
  std::lock_guard lock(channel_mutex_);
  if (!backend_req_ || !(protocol_features_ & kProtocolConfig)) return;
  const VhostUserHeader header{kBackendConfigChange, kVersion, 0};
  // Never waits: a front end that does not read its channel misses the message.
  if (::send(backend_req_.get(), &header, sizeof(header), MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof(header)) {
    log::warn("{}: the front end does not take a configuration change: {}", name_, std::strerror(errno));
  }
}

void Session::rebalance() {
  std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || closed_) return;
  for (std::uint16_t i = 0; i < vrings_.size(); ++i) {
    Vring& vring = vrings_[i];
    if (!vring.queue || vring.queue->broken() || load_of(vring) == 0 || !placement_.crowded(*vring.poller)) continue;
    if (!stop_within(vring, kMovePatience)) continue;
    if (auto started = start_if_ready(i); !started) blame("a queue could not move: " + started.error().message);
  }
}

Session::Totals Session::totals() const {
  std::unique_lock lock(mutex_, std::try_to_lock);
  std::lock_guard known(known_mutex_);
  if (!lock) return known_;
  known_ = {0, past_requests_, past_errors_};
  for (const Vring& vring : vrings_) {
    if (!vring.queue) continue;
    ++known_.active_queues;
    known_.requests += vring.queue->counters().requests.load(std::memory_order_relaxed);
    known_.errors += vring.queue->counters().errors.load(std::memory_order_relaxed);
  }
  return known_;
}

}  // namespace pollux::vhost
