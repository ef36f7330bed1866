// The session's rings: what the front end says about them, and starting and stopping the queues that serve them.

#include <algorithm>
#include <future>

#include "vhost/hop.h"
#include "vhost/session.h"
#include "vhost/signaller.h"

namespace pollux::vhost {

using namespace protocol;

namespace {

// Ready when the queue has stopped and its poller does not refer to it any more.
std::future<void> stop_on_reactor(QueuePoller* poller, VhostQueue* queue) {
  auto promise = std::make_shared<std::promise<void>>();
  auto future = promise->get_future();
  poller->reactor().post([poller, queue, promise] {
    queue->stop([poller, queue, promise] {
      poller->remove(*queue);
      promise->set_value();
    });
  });
  return future;
}

}  // namespace

Result<Session::Vring*> Session::vring_at(std::uint64_t index) {
  if (index >= vrings_.size()) return fail(ErrorCode::kInvalid, "queue " + std::to_string(index) + " is not there");
  return &vrings_[index];
}

Result<Session::Vring*> Session::vring_of(const Message& message, VringState& state) {
  if (!message.read(state)) return fail(ErrorCode::kInvalid, "wrong payload size");
  return vring_at(state.index);
}

Result<Verdict> Session::set_vring_num(Message& message) {
  VringState state{};
  auto vring = vring_of(message, state);
  if (!vring) return fail(std::move(vring.error()));
  if (state.num == 0 || state.num > virtio::kMaxQueueSize) return fail(ErrorCode::kInvalid, "impossible queue size");
  if ((*vring)->queue) return fail(ErrorCode::kInvalid, "a running queue cannot change its size");
  (*vring)->size = static_cast<std::uint16_t>(state.num);
  return Verdict::kDone;
}

Result<Verdict> Session::set_vring_base(Message& message) {
  VringState state{};
  auto vring = vring_of(message, state);
  if (!vring) return fail(std::move(vring.error()));
  if ((*vring)->queue) return fail(ErrorCode::kInvalid, "a running queue cannot change its position");
  (*vring)->base = state.num;
  return Verdict::kDone;
}

Result<Verdict> Session::set_vring_addr(Message& message) {
  VringAddr addr{};
  if (!message.read(addr)) return fail(ErrorCode::kInvalid, "wrong payload size");
  auto found = vring_at(addr.index);
  if (!found) return fail(std::move(found.error()));
  Vring& vring = **found;
  // A migrating front end repeats it for running queues, to turn the log of the used ring on and off.
  stop(vring);
  vring.addr = addr;
  vring.has_addr = true;
  POLLUX_TRY(start_if_ready(static_cast<std::uint16_t>(addr.index)));
  return Verdict::kDone;
}

Result<Verdict> Session::get_vring_base(Message& message) {
  VringState state{};
  auto found = vring_of(message, state);
  if (!found) return fail(std::move(found.error()));
  Vring& vring = **found;
  stop(vring);
  vring.fds = {};
  state.num = vring.base;
  message.write(state);
  return Verdict::kReply;
}

Result<Verdict> Session::set_vring_enable(Message& message) {
  VringState state{};
  auto found = vring_of(message, state);
  if (!found) return fail(std::move(found.error()));
  if (state.num > 1) return fail(ErrorCode::kInvalid, "a queue is enabled or not");
  Vring& vring = **found;
  vring.enabled = state.num == 1;
  if (!vring.enabled) stop(vring);
  POLLUX_TRY(start_if_ready(static_cast<std::uint16_t>(state.index)));
  return Verdict::kDone;
}

Result<Verdict> Session::set_vring_fd(Message& message) {
  std::uint64_t value = 0;
  if (!message.read(value)) return fail(ErrorCode::kInvalid, "wrong payload size");
  if (value & ~(kVringIndexMask | kVringNoFd)) return fail(ErrorCode::kInvalid, "unknown flags");
  auto found = vring_at(value & kVringIndexMask);
  if (!found) return fail(std::move(found.error()));
  Vring& vring = **found;
  // A reactor watches and signals it: with a file of any other kind, whose operations may wait for the front end or for
  // a file system of its own, the front end could stop the reactor.
  if (static_cast<VhostUserRequest>(message.request) == VhostUserRequest::kSetVringKick) {
    UniqueFd kick = std::move(message.fds[0]);
    // A ring without it would have to be polled for ever, and would keep its reactor from sleeping.
    if (!kick) return fail(ErrorCode::kUnsupported, "a queue without a kick descriptor");
    if (!is_eventfd(kick.get())) return fail(ErrorCode::kInvalid, "a descriptor that is no eventfd");
    stop(vring);
    vring.fds.kick = std::move(kick);
    POLLUX_TRY(start_if_ready(static_cast<std::uint16_t>(value & kVringIndexMask)));
    return Verdict::kDone;
  }
  SignalFd fd;
  if (message.fds[0]) {
    auto made = SignalFd::make(std::move(message.fds[0]));
    if (!made) return fail(std::move(made.error()));
    fd = std::move(*made);
  }
  const bool call = static_cast<VhostUserRequest>(message.request) == VhostUserRequest::kSetVringCall;
  if (vring.queue) {
    run_on(vring.poller->reactor(),
           [&] { call ? vring.queue->set_call(std::move(fd)) : vring.queue->set_error(std::move(fd)); });
  } else {
    (call ? vring.fds.call : vring.fds.error) = std::move(fd);
  }
  return Verdict::kDone;
}

bool Session::ready(const Vring& vring) const {
  return !vring.queue && vring.size != 0 && vring.has_addr && vring.enabled && vring.fds.kick && memory_;
}

Status Session::start_if_ready(std::uint16_t index) {
  Vring& vring = vrings_[index];
  if (!ready(vring)) return {};
  if (!serve()) return fail(ErrorCode::kBusy, "its place went to another front end");
  await_predecessors();
  virtio::QueueSetup setup{
      .size = vring.size,
      .packed = negotiated(kFeatureRingPacked),
      .event_idx = negotiated(kFeatureEventIdx),
      .indirect = negotiated(kFeatureIndirectDesc),
      .desc_user_addr = vring.addr.desc_user_addr,
      .driver_user_addr = vring.addr.avail_user_addr,
      .device_user_addr = vring.addr.used_user_addr,
      .base = vring.base,
      .memory = memory_,
      .inflight = index < (inflight_ ? inflight_->queues() : 0) ? inflight_ : nullptr,
      .index = index,
  };
  if (negotiated(kFeatureLogAll) && log_) {
    setup.log = log_;
    if (vring.addr.flags & VringAddr::kFlagLog) setup.device_log_addr = vring.addr.log_guest_addr;
  }
  const bool first = !any_running();
  auto ring = virtio::Virtqueue::create(std::move(setup));
  if (!ring) return fail(std::move(ring.error()));
  QueuePoller& poller = placement_.enter(load_of(vring));
  vring.queue = device_.make_queue(index, std::move(*ring), std::move(vring.fds), features_, poller.reactor());
  vring.poller = &poller;
  Status started = run_on(poller.reactor(), [&] { return poller.add(*vring.queue, load_of(vring), device_); });
  if (!started) {
    vring.queue.reset();
    vring.poller = nullptr;
    placement_.leave(poller, load_of(vring));
    return started;
  }
  // What changed while none ran, or before the front end came back to a service that was restarted.
  if (first && known_config_ != device_.config()) config_changed();
  return {};
}

bool Session::any_running() const {
  return std::ranges::any_of(vrings_, [](const Vring& vring) { return vring.queue != nullptr; });
}

// A front end that hangs up and comes back names the same rings and the same in-flight region: what its old session has
// in flight would be done a second time, and answered twice.
void Session::await_predecessors() {
  for (const auto& session : predecessors_) session->closed_.wait(false);
  predecessors_.clear();
}

unsigned Session::load_of(const Vring& vring) const {
  return device_.carries_requests(static_cast<std::uint16_t>(&vring - vrings_.data())) ? 1 : 0;
}

void Session::stop(Vring& vring) {
  if (!vring.queue) return;
  stop_on_reactor(vring.poller, vring.queue.get()).wait();
  put_away(vring);
}

bool Session::stop_within(Vring& vring, std::chrono::milliseconds time) {
  auto stopped = stop_on_reactor(vring.poller, vring.queue.get());
  if (stopped.wait_for(time) != std::future_status::ready) {
    VhostQueue& queue = *vring.queue;
    if (run_on(vring.poller->reactor(), [&queue] { return queue.resume(); })) return false;
  }
  put_away(vring);
  return true;
}

void Session::put_away(Vring& vring) {
  VhostQueue& queue = *vring.queue;
  QueuePoller& poller = *vring.poller;
  vring.base = queue.base();
  vring.fds = queue.release_fds();
  past_requests_ += queue.counters().requests.load(std::memory_order_relaxed);
  past_errors_ += queue.counters().errors.load(std::memory_order_relaxed);
  if (const char* reason = queue.broken_reason()) blame(std::string("a queue was given up: ") + reason);
  vring.queue.reset();
  vring.poller = nullptr;
  placement_.leave(poller, load_of(vring));
}

Status Session::change_at_rest(const std::function<Status()>& change) {
  std::vector<std::uint16_t> running;
  for (std::uint16_t i = 0; i < vrings_.size(); ++i) {
    if (vrings_[i].queue) running.push_back(i);
  }
  for (const std::uint16_t i : running) stop(vrings_[i]);
  POLLUX_TRY(change());
  for (std::uint16_t i = 0; i < vrings_.size(); ++i) POLLUX_TRY(start_if_ready(i));
  return {};
}

}  // namespace pollux::vhost
