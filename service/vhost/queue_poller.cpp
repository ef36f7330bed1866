#include "vhost/queue_poller.h"

#include <algorithm>

#include "vhost/hop.h"

namespace pollux::vhost {

namespace {
constexpr unsigned kTurnsPerSweep = 64;
constexpr unsigned kTurnsPerLookAside = 8;
}  // namespace

void QueuePoller::List::remove(const VhostQueue& queue) {
  for (Entry& entry : queues_) {
    if (entry.queue == &queue) entry = {};
  }
  holes_ = true;
}

unsigned QueuePoller::List::poll(bool all) {
  if (holes_) [[unlikely]] {
    std::erase_if(queues_, [](const Entry& entry) { return entry.queue == nullptr; });
    holes_ = false;
  }
  unsigned done = 0;
  // By index: the list may change while a queue is polled.
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    const Entry& entry = queues_[i];
    if (entry.glance.word && !all && virtio::load_once(entry.glance.word) == entry.glance.quiet) continue;
    if (!entry.queue) continue;
    const unsigned found = entry.queue->poll();
    done += found;
    Entry& after = queues_[i];
    after.glance = found == 0 && after.queue ? after.queue->glance() : virtio::Glance{};
  }
  return done;
}

bool QueuePoller::List::arm() {
  return std::all_of(queues_.begin(), queues_.end(),
                     [](const Entry& entry) { return !entry.queue || entry.queue->arm(); });
}

Status QueuePoller::add(VhostQueue& queue, unsigned load, const Device& device) {
  const auto tenant = tenants_.try_emplace(&device, stock_).first;
  if (Status started = queue.start(reactor_, stock_, tenant->second); !started) {
    if (tenant->second.queues == 0) tenants_.erase(tenant);
    return started;
  }
  ++tenant->second.queues;
  (load != 0 ? hot_ : aside_).add(queue);
  return {};
}

void QueuePoller::remove(VhostQueue& queue) {
  hot_.remove(queue);
  aside_.remove(queue);
  Tenant& tenant = queue.tenant();
  if (--tenant.queues != 0) return;
  std::erase_if(tenants_, [&](const auto& entry) { return &entry.second == &tenant; });
}

unsigned QueuePoller::poll() {
  stock_.begin_turn(reactor_.turn_began_tsc());
  const bool sweep = --until_sweep_ == 0;
  if (sweep) until_sweep_ = kTurnsPerSweep;
  unsigned done = hot_.poll(sweep);
  if (until_sweep_ % kTurnsPerLookAside == 0) done += aside_.poll(sweep);
  return done;
}

// A queue that is armed stays so until it has something to take: with many guests, turning the notifications of all of
// them off would be most of what waking up costs.
bool QueuePoller::arm() {
  if (hot_.arm() && aside_.arm()) return true;
  until_sweep_ = 1;
  return false;
}

Result<std::unique_ptr<Placement>> Placement::make(reactor::ReactorGroup& reactors) {
  std::unique_ptr<Placement> placement(new Placement);
  for (std::size_t i = 0; i < reactors.size(); ++i) {
    auto signaller = Signaller::make();
    if (!signaller) return fail(std::move(signaller.error()));
    auto poller = std::make_unique<QueuePoller>(reactors.at(i), std::move(*signaller));
    run_on(reactors.at(i), [&] { reactors.at(i).add_poller(*poller); });
    placement->pollers_.push_back(std::move(poller));
    placement->loads_.push_back(0);
  }
  return placement;
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
