#include "blob/lanes.h"

namespace pollux::blob {

void Lane::switch_epoch() {
  // The last round is over, so nothing is counted under the number that now comes into use.
  const unsigned old = epoch_;
  epoch_ ^= 1;
  asked_ = true;
  if (in_flight_[old] == 0) answer();
}

void Lane::answer() {
  asked_ = false;
  lanes_.answered();
}

reactor::Task<Result<Lane*>> Lanes::open(reactor::Reactor& reactor) {
  // Of those who ask for it at one time the first opens it.
  const auto opening = co_await turn_of(reactor).lock();
  if (Lane* const lane = find(reactor)) co_return lane;
  auto channel = co_await device_->open_channel(reactor);
  if (!channel) co_return fail(std::move(channel.error()));
  std::unique_ptr<bdev::Channel> layered;
  if (data_device_ != device_) {
    auto opened = co_await data_device_->open_channel(reactor);
    if (!opened) co_return fail(std::move(opened.error()));
    layered = std::move(*opened);
  }
  std::lock_guard lock(mutex_);
  lanes_.push_back(
      std::make_unique<Lane>(*this, reactor, std::move(*channel), std::move(layered), cluster_shift_));
  co_return lanes_.back().get();
}

Lane* Lanes::find(const reactor::Reactor& reactor) {
  std::lock_guard lock(mutex_);
  for (auto& lane : lanes_) {
    if (&lane->reactor_ == &reactor) return lane.get();
  }
  return nullptr;
}

reactor::AsyncMutex& Lanes::turn_of(const reactor::Reactor& reactor) {
  std::lock_guard lock(mutex_);
  return turns_[&reactor];
}

std::vector<Lane*> Lanes::all() {
  std::lock_guard lock(mutex_);
  std::vector<Lane*> lanes;
  for (auto& lane : lanes_) lanes.push_back(lane.get());
  return lanes;
}

void Lanes::answered() {
  if (missing_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  answered_.lanes = this;
  answered_.run = [](reactor::Message& message) { static_cast<Answered&>(message).lanes->all_answered_->set(true); };
  home_.post(answered_);
}

reactor::Task<void> Lanes::grace() {
  const std::uint64_t before = rounds_;
  auto guard = co_await round_.lock();
  // Somebody else's round, which began after this call.
  if (rounds_ != before) co_return;
  ++rounds_;
  // A lane that is made from here on finds the maps as they are now: the list's mutex orders it after us.
  const auto lanes = all();
  if (lanes.empty()) co_return;
  reactor::Completion<bool> done;
  all_answered_ = &done;
  missing_.store(static_cast<std::uint32_t>(lanes.size()), std::memory_order_release);
  for (Lane* lane : lanes) {
    lane->switch_epoch_.run = [](reactor::Message& message) {
      static_cast<Lane::LaneMessage&>(message).lane->switch_epoch();
    };
    lane->reactor_.post(lane->switch_epoch_);
  }
  co_await done;
}

reactor::Task<void> Lanes::close() {
  std::vector<std::unique_ptr<Lane>> lanes;
  {
    std::lock_guard lock(mutex_);
    lanes.swap(lanes_);
  }
  for (auto& lane : lanes) {
    // By a message, not from within a completion of the channel that goes; and after what the lane's user has put off to
    // the reactor's next turn.
    co_await lane->reactor_.enter();
    co_await lane->reactor_.yield();
    lane.reset();
  }
  co_await home_.enter();
}

}  // namespace pollux::blob
