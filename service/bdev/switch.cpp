#include "bdev/switch.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"

namespace pollux::bdev {

// On a channel's reactor, with requests in flight below it: waits for their end, or for its time to be over.
class Switch::Drain {
 public:
  explicit Drain(SwitchChannel& channel) : channel_(channel) {}
  // Whether they have ended.
  reactor::Task<bool> wait(reactor::Reactor& reactor, std::uint64_t patience_us) {
    channel_.drain_ = this;
    timer_.start(reactor, patience_us);
    const bool drained = co_await over_;
    // From the completion of the last request, which still has to be told to its caller.
    co_await reactor.yield();
    co_return drained;
  }
  void tell(bool drained) {
    timer_.cancel();
    channel_.drain_ = nullptr;
    over_.set(drained);
  }

 private:
  SwitchChannel& channel_;
  reactor::Completion<bool> over_;
  reactor::Timer timer_{[this] { tell(false); }};
};

namespace {

Status check_room(const Bdev& below) {
  if (below.frame_bytes() <= Switch::kRoomBytes) return {};
  return fail(ErrorCode::kUnsupported, "the layers of " + below.name() + " keep " +
                                           std::to_string(below.frame_bytes()) +
                                           " bytes with each request, and under a switch there is room for " +
                                           std::to_string(Switch::kRoomBytes));
}

}  // namespace

Result<std::shared_ptr<Switch>> Switch::make(std::shared_ptr<Bdev> below, reactor::Reactor& home) {
  POLLUX_TRY(check_room(*below));
  return std::make_shared<Switch>(std::move(below), home);
}

Switch::Switch(std::shared_ptr<Bdev> below, reactor::Reactor& home)
    : home_(home),
      name_(below->name()),
      block_bytes_(below->block_bytes()),
      optimal_io_bytes_(below->optimal_io_bytes()),
      unmap_granularity_bytes_(below->unmap_granularity_bytes()),
      read_only_(below->read_only()),
      supports_unmap_(below->supports_unmap()),
      reports_extents_(below->reports_extents()),
      size_bytes_(0),
      below_(std::move(below)) {
  // Before the size is read, so that no growth is missed.
  resize_token_ = below_->on_resize([this](std::uint64_t) { take_size(); });
  take_size();
}

Switch::~Switch() {
  // Waits for a call under way, which uses the rest.
  resize_token_.reset();
}

std::uint32_t Switch::frame_bytes() const {
  return SwitchChannel::kFrameBytes + kRoomBytes;
}

std::shared_ptr<Bdev> Switch::below() const {
  const std::lock_guard lock(mutex_);
  return below_;
}

// Growth alone: what the next stack has before it is in place counts with the exchange.
void Switch::take_size() {
  const std::uint64_t found = below()->size_bytes();
  std::uint64_t known = size_bytes_.load(std::memory_order_acquire);
  while (found > known) {
    if (size_bytes_.compare_exchange_weak(known, found, std::memory_order_acq_rel)) return notify_resized();
  }
}

reactor::Task<Status> Switch::reserve(reactor::Reactor& reactor, std::uint64_t offset_bytes,
                                      std::uint64_t length_bytes) {
  const auto device = below();
  co_return co_await device->reserve(reactor, offset_bytes, length_bytes);
}

void Switch::stop_writing() {
  std::shared_ptr<Bdev> device;
  {
    const std::lock_guard lock(mutex_);
    writing_stopped_ = true;
    device = below_;
  }
  device->stop_writing();
}

void Switch::refresh_size() {
  below()->refresh_size();
}

Opening Switch::open_channel(reactor::Reactor& reactor) {
  while (true) {
    const auto device = below();
    auto channel = co_await device->open_channel(reactor);
    auto entry = std::make_shared<Entry>();
    entry->reactor = &reactor;
    {
      // In one step: an exchange either has taken place, or finds the entry.
      const std::lock_guard lock(mutex_);
      // Not what is below any more: its channel, or its error, is of no use.
      if (below_ != device) continue;
      if (!channel) co_return fail(std::move(channel.error()));
      entries_.push_back(entry);
    }
    co_return std::make_unique<SwitchChannel>(shared_from_this(), std::move(entry), std::move(*channel));
  }
}

Status Switch::check(const Bdev& next) const {
  POLLUX_TRY(check_room(next));
  const auto refuse = [&](const std::string& why) {
    return fail(ErrorCode::kInvalid, next.name() + " cannot take the place of what is below " + name_ + ": " + why);
  };
  if (next.block_bytes() != block_bytes_) {
    return refuse("its blocks are of " + std::to_string(next.block_bytes()) + " bytes instead of " +
                  std::to_string(block_bytes_));
  }
  if (next.size_bytes() < size_bytes()) {
    return refuse("it has " + std::to_string(next.size_bytes()) + " bytes, fewer than " + std::to_string(size_bytes()));
  }
  if (next.read_only() != read_only_) return refuse("one of the two is read only");
  if (next.supports_unmap() != supports_unmap_) return refuse("one of the two cannot unmap");
  if (next.reports_extents() != reports_extents_) return refuse("one of the two does not report extents");
  return {};
}

std::vector<std::shared_ptr<Switch::Entry>> Switch::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_;
}

std::shared_ptr<Switch::Entry> Switch::first_before(Phase phase) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find_if(entries_, [&](const auto& entry) { return entry->phase < phase; });
  return found == entries_.end() ? nullptr : *found;
}

reactor::Task<Status> Switch::exchange(std::shared_ptr<Bdev> next, std::uint64_t patience_us) {
  const auto self = shared_from_this();
  co_await home_.enter();
  const auto guard = co_await exchanging_.lock();
  POLLUX_CO_TRY(check(*next));
  auto token = next->on_resize([this](std::uint64_t) { take_size(); });
  const std::uint64_t deadline_ns = monotonic_ns() + patience_us * 1000;
  do {
    const Status prepared = co_await prepare(*next, deadline_ns);
    if (!prepared) {
      co_await give_up();
      co_await home_.enter();
      co_return prepared;
    }
  } while (!commit(next, token));
  // What was below until now goes with `next` and `token`, which are no longer under the lock.
  token.reset();
  co_await go_on();
  co_await home_.enter();
  take_size();
  co_return Status{};
}

// All channels that there are, one step after the other, so that requests are held back for as short as can be.
reactor::Task<Status> Switch::prepare(Bdev& next, std::uint64_t deadline_ns) {
  for (const Phase to : {Phase::kOpened, Phase::kHeld, Phase::kDrained}) {
    while (true) {
      const auto entry = first_before(to);
      if (!entry) break;
      co_await entry->reactor->enter();
      POLLUX_CO_TRY(co_await advance(*entry, to, next, deadline_ns));
      co_await home_.enter();
    }
  }
  co_return Status{};
}

// On the entry's reactor.
reactor::Task<Status> Switch::advance(Entry& entry, Phase to, Bdev& next, std::uint64_t deadline_ns) {
  if (entry.channel != nullptr && !entry.next) {
    auto opened = co_await next.open_channel(*entry.reactor);
    if (!opened) co_return fail(std::move(opened.error()));
    // Not for a channel that was closed meanwhile.
    if (entry.channel != nullptr) entry.next = std::move(*opened);
  }
  if (entry.channel != nullptr && to >= Phase::kHeld) entry.channel->holding_ = true;
  if (to == Phase::kDrained && !co_await drain(entry, deadline_ns)) {
    co_return fail(ErrorCode::kBusy, "requests of " + name_ + " do not end; nothing was exchanged");
  }
  entry.phase = to;
  co_return Status{};
}

reactor::Task<bool> Switch::drain(Entry& entry, std::uint64_t deadline_ns) {
  const auto busy = [&entry] { return entry.channel != nullptr && entry.channel->in_flight_ != 0; };
  if (!busy()) co_return true;
  // Not from within a completion, which may have brought the exchange here. Each may end the channel.
  co_await entry.reactor->yield();
  if (busy()) entry.channel->below_->expedite();
  if (!busy()) co_return true;
  const std::uint64_t now_ns = monotonic_ns();
  Drain drain(*entry.channel);
  co_return co_await drain.wait(*entry.reactor, deadline_ns > now_ns ? (deadline_ns - now_ns) / 1000 : 0);
}

reactor::Task<void> Switch::give_up() {
  for (const auto& entry : entries()) {
    co_await entry->reactor->enter();
    entry->phase = Phase::kNone;
    entry->next.reset();
    if (entry->channel != nullptr) entry->channel->go_on();
  }
}

bool Switch::commit(std::shared_ptr<Bdev>& next, ResizeToken& token) {
  const std::lock_guard lock(mutex_);
  if (!std::ranges::all_of(entries_, [](const auto& entry) { return entry->phase == Phase::kDrained; })) return false;
  if (writing_stopped_) next->stop_writing();
  below_.swap(next);
  resize_token_.swap(token);
  return true;
}

reactor::Task<void> Switch::go_on() {
  for (const auto& entry : entries()) {
    co_await entry->reactor->enter();
    entry->phase = Phase::kNone;
    if (entry->channel == nullptr || !entry->next) continue;
    entry->channel->below_ = std::move(entry->next);
    entry->channel->go_on();
  }
}

SwitchChannel::SwitchChannel(std::shared_ptr<Switch> layer, std::shared_ptr<Switch::Entry> entry,
                             std::unique_ptr<Channel> below)
    : switch_(std::move(layer)), entry_(std::move(entry)), below_(std::move(below)) {
  entry_->channel = this;
}

SwitchChannel::~SwitchChannel() {
  // An exchange that has opened a channel for this one's sake comes back and finds neither.
  entry_->channel = nullptr;
  entry_->next.reset();
  const std::lock_guard lock(switch_->mutex_);
  std::erase(switch_->entries_, entry_);
}

void SwitchChannel::keep(IoRequest& request) {
  request.device_next = nullptr;
  (last_ == nullptr ? first_ : last_->device_next) = &request;
  last_ = &request;
}

void SwitchChannel::pass(IoRequest& request) {
  request.push_frame(Frame{this, request.complete});
  request.complete = &SwitchChannel::on_complete;
  ++in_flight_;
  below_->submit(request);
}

void SwitchChannel::on_complete(IoRequest& request) {
  const Frame& was = request.pop_frame<Frame>();
  SwitchChannel& self = *was.channel;
  request.complete = was.complete;
  if (--self.in_flight_ == 0 && self.drain_ != nullptr) [[unlikely]]
    self.drain_->tell(true);
  // It may end this channel.
  request.complete(request);
}

void SwitchChannel::go_on() {
  holding_ = false;
  last_ = nullptr;
  IoRequest* request = std::exchange(first_, nullptr);
  // The completion of the last one may end this channel.
  while (request != nullptr) {
    IoRequest& now = *request;
    request = now.device_next;
    pass(now);
  }
}

}  // namespace pollux::bdev
