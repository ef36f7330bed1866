#include "vhost/queue_poller.h"

#include <algorithm>

#include "vhost/hop.h"

namespace pollux::vhost {

namespace {
// 8 KiB each. Only requests of more than a few pieces hold one.
constexpr std::size_t kIovecArraysPerReactor = 256;
constexpr unsigned kTurnsPerSweep = 64;
}  // namespace

Status QueuePoller::add(VhostQueue& queue) {
  POLLUX_TRY(queue.start(reactor_, pool_));
  queues_.push_back({&queue, {}});
  return {};
}

void QueuePoller::remove(VhostQueue& queue) {
  for (Entry& entry : queues_) {
    if (entry.queue == &queue) entry = {};
  }
  holes_ = true;
}

unsigned QueuePoller::poll() {
  if (holes_) [[unlikely]] {
    std::erase_if(queues_, [](const Entry& entry) { return entry.queue == nullptr; });
    holes_ = false;
  }
  const bool sweep = --until_sweep_ == 0;
  if (sweep) until_sweep_ = kTurnsPerSweep;
  unsigned done = 0;
  // By index: the list may change while a queue is polled.
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    const Entry& entry = queues_[i];
    if (entry.glance.word && !sweep && virtio::load_once(entry.glance.word) == entry.glance.quiet) continue;
    if (!entry.queue) continue;
    const unsigned found = entry.queue->poll();
    done += found;
    Entry& after = queues_[i];
    after.glance = found == 0 && after.queue ? after.queue->glance() : virtio::Glance{};
  }
  return done;
}

bool QueuePoller::arm() {
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    if (!queues_[i].queue || queues_[i].queue->arm()) continue;
    for (std::size_t armed = 0; armed < i; ++armed) {
      if (queues_[armed].queue) queues_[armed].queue->disarm();
    }
    until_sweep_ = 1;
    return false;
  }
  return true;
}

void QueuePoller::disarm() {
  until_sweep_ = 1;
  for (const Entry& entry : queues_) {
    if (entry.queue) entry.queue->disarm();
  }
}

Placement::Placement(reactor::ReactorGroup& reactors) : loads_(reactors.size(), 0) {
  for (std::size_t i = 0; i < reactors.size(); ++i) {
    auto poller = std::make_unique<QueuePoller>(reactors.at(i), kIovecArraysPerReactor);
    run_on(reactors.at(i), [&] { reactors.at(i).add_poller(*poller); });
    pollers_.push_back(std::move(poller));
  }
}

Placement::~Placement() {
  for (auto& poller : pollers_) {
    run_on(poller->reactor(), [&] { poller->reactor().remove_poller(*poller); });
  }
}

QueuePoller& Placement::enter(unsigned load) {
  std::lock_guard lock(mutex_);
  const auto least = std::min_element(loads_.begin(), loads_.end());
  *least += load;
  return *pollers_[static_cast<std::size_t>(least - loads_.begin())];
}

void Placement::leave(QueuePoller& poller, unsigned load) {
  bool uneven = false;
  {
    std::lock_guard lock(mutex_);
    loads_[index_of(poller)] -= load;
    const auto [least, most] = std::minmax_element(loads_.begin(), loads_.end());
    uneven = *most > *least + 1;
  }
  if (uneven && on_uneven_) on_uneven_();
}

bool Placement::crowded(const QueuePoller& poller) const {
  std::lock_guard lock(mutex_);
  return loads_[index_of(poller)] > *std::min_element(loads_.begin(), loads_.end()) + 1;
}

std::vector<unsigned> Placement::loads() const {
  std::lock_guard lock(mutex_);
  return loads_;
}

std::size_t Placement::index_of(const QueuePoller& poller) const {
  const auto found =
      std::find_if(pollers_.begin(), pollers_.end(), [&](const auto& own) { return own.get() == &poller; });
  return static_cast<std::size_t>(found - pollers_.begin());
}

}  // namespace pollux::vhost
