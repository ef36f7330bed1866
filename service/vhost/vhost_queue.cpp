#include "vhost/vhost_queue.h"

#include "base/log.h"

namespace pollux::vhost {

namespace {

// How often a device that answers at once shows its answers while a batch goes on. All at the end would be the fewest
// barriers, but the guest would wait for the whole batch and the service then for the guest, in turns.
constexpr unsigned kChainsPerPublish = Tenant::kRequestsPerLook;

}  // namespace

Status VhostQueue::start(reactor::Reactor& reactor, ReactorStock& stock, Tenant& tenant) {
  reactor_ = &reactor;
  stock_ = &stock;
  tenant_ = &tenant;
  if (fds_.kick) POLLUX_TRY(reactor.watch(fds_.kick.get()));
  ring_->disable_kicks();
  // A process that died may have answered and not said so any more: one interrupt too many is harmless.
  want_call_ = true;
  signal_call();
  return {};
}

unsigned VhostQueue::poll() {
  unsigned done = 0;
  const bool has_turn = !tenant_->takes_turns() || in_its_turn();
  if (goes_on_ && has_turn) [[unlikely]] {
    go_on();
    tenant_->spend_turn();
    ++done;
  }
  // What an earlier process has left in flight is answered before the queue stops, as all that is in flight.
  if (has_turn && (!stopping() || ring_->replaying()) && wants_chain()) {
    done += accept_batch();
  }
  if (ring_->has_staged()) {
    publish();
    ++done;
  }
  if (want_call_) signal_call();
  if (ring_->broken() && !broken()) [[unlikely]] {
    report_broken();
    ++done;
  }
  if (stopping()) [[unlikely]]
    done += go_on_stopping();
  return done;
}

// Of queues that take turns. One that has nothing to begin lets the others go first; one that ends what holds the budget
// waits for nobody.
bool VhostQueue::in_its_turn() {
  if (ignores_budget_) return true;
  const bool begins = goes_on_ || (within_budget() && wants_chain() && ring_->look() != 0);
  return !begins || tenant_->has_turn(this);
}

unsigned VhostQueue::go_on_stopping() {
  if (in_flight_ != 0 || (ring_->replaying() && wants_chain())) {
    hurry();
    return 0;
  }
  if (fds_.kick) reactor_->unwatch(fds_.kick.get());
  // The callback may destroy this queue.
  auto stopped = std::exchange(stopped_, nullptr);
  stopped();
  return 1;
}

unsigned VhostQueue::accept_batch() {
  turn_bytes_ = 0;
  tenant_->enter_turn();
  const unsigned done = accept_ready();
  if (done != 0) {
    QueueCounters::add(counters_.requests, done);
    tenant_->begun(done, turn_bytes_);
  }
  return done;
}

unsigned VhostQueue::accept_ready() {
  unsigned done = 0;
  virtio::Chain chain;
  virtio::IovecList pieces = stock_->iovec_pool.scratch();
  virtio::Virtqueue& ring = *ring_;
  while (done < virtio::Virtqueue::kMaxBatch) {
    const unsigned ready = ring.look();
    if (ready != 0) ring.disable_kicks();
    for (unsigned i = 0; i < ready; ++i) {
      if (!within_budget() || turn_bytes_ >= Tenant::kBytesPerTurn || !wants_chain()) return done;
      if (!ring.pop(chain, pieces)) return done;
      accept(chain, pieces);
      if (++done % kChainsPerPublish != 0) continue;
      publish();
      if (tenant_->over_time()) [[unlikely]]
        return done;
    }
    // A packed ring tells of one chain at a time.
    if (ready != 1) break;
  }
  return done;
}

void VhostQueue::publish() {
  if (ring_->has_staged() && ring_->publish()) want_call_ = true;
}

virtio::Glance VhostQueue::glance() const {
  if (in_flight_ != 0 || stopping() || want_call_) return {};
  virtio::Glance glance = ring_->glance();
  // What is there already is not wanted: anything more is no reason to look either, but harmless.
  if (!wants_chain() || ring_->broken()) glance.quiet = virtio::load_once(glance.word);
  return glance;
}

bool VhostQueue::arm() {
  if (want_call_ || goes_on_) return false;
  if (ring_->has_staged() || stopping()) return in_flight_ != 0 && !ring_->has_staged();
  if (!wants_chain()) return true;
  // A tenant that has used up its budget has requests in flight on this reactor; the completion of one wakes it.
  if (!within_budget()) return true;
  return ring_->enable_kicks();
}

void VhostQueue::stop(std::function<void()> stopped) {
  stopped_ = std::move(stopped);
}

bool VhostQueue::resume() {
  return std::exchange(stopped_, nullptr) != nullptr;
}

void VhostQueue::set_call(SignalFd call) {
  fds_.call = std::move(call);
  // Whatever was signalled on the old descriptor may have been missed: one interrupt too many is harmless.
  want_call_ = true;
  signal_call();
}

// Tried again at the next turn when the kernel has no memory for it now. A front end that gave something unusable goes
// without interrupts.
void VhostQueue::signal_call() {
  want_call_ = fds_.call && stock_->signaller->raise(fds_.call) == Signaller::Outcome::kRetry;
}

void VhostQueue::report_broken() {
  broken_.store(true, std::memory_order_relaxed);
  QueueCounters::add(counters_.errors);
  // Once: the queue's state says it as well.
  if (fds_.error) static_cast<void>(stock_->signaller->raise(fds_.error));
}

}  // namespace pollux::vhost
