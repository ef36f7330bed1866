#include "volume/limits.h"

#include <algorithm>

#include "base/clock.h"

namespace pollux::volume {

namespace {

// How late a change of the limits is noticed by requests that wait under the old ones.
constexpr std::uint64_t kLongestNapNs = 20'000'000;

}  // namespace

Limits::Limits(std::shared_ptr<bdev::Bdev> below) : Layer(std::move(below), LimitsChannel::kFrameBytes) {}

bdev::Opening Limits::open_channel(reactor::Reactor& reactor) {
  auto channel = co_await below().open_channel(reactor);
  if (!channel) co_return fail(std::move(channel.error()));
  co_return std::make_unique<LimitsChannel>(shared_from_this(), reactor, std::move(*channel));
}

LimitsChannel::~LimitsChannel() {
  timer_.cancel();
}

void LimitsChannel::hold(bdev::IoRequest& request) {
  if (request.op == bdev::IoOp::kFlush) return below_->submit(request);
  request.push_frame(Held{.complete = request.complete, .came_ns = monotonic_ns(), .held_ns = 0});
  request.device_next = nullptr;
  (last_ == nullptr ? first_ : last_->device_next) = &request;
  last_ = &request;
  if (!releasing_ && !timer_.running()) release(Release::kDue);
}

void LimitsChannel::expedite() {
  // First, for the completion of what is released here may end this channel.
  below_->expedite();
  if (releasing_ || first_ == nullptr) return;
  timer_.cancel();
  release(Release::kAll);
}

void LimitsChannel::release(Release which) {
  releasing_ = true;
  while (true) {
    bdev::IoRequest& request = *first_;
    const std::uint64_t now_ns = monotonic_ns();
    // What may go at once is booked, too: a guest that resets its queues over and over gets no more than its limit.
    if (const std::uint64_t generation = limiter_.generation(); !booked_ || generation != booked_generation_) {
      due_ns_ = limiter_.book(request, now_ns);
      booked_generation_ = generation;
      booked_ = true;
    }
    if (which != Release::kAll && due_ns_ > now_ns) {
      timer_.start(reactor_, std::min(due_ns_ - now_ns, kLongestNapNs) / 1000 + 1);
      break;
    }
    booked_ = false;
    first_ = request.device_next;
    if (first_ == nullptr) {
      // Its completion may end this channel.
      last_ = nullptr;
      releasing_ = false;
      return pass(request, now_ns);
    }
    pass(request, now_ns);
  }
  releasing_ = false;
}

void LimitsChannel::pass(bdev::IoRequest& request, std::uint64_t now_ns) {
  auto& held = request.top_frame<Held>();
  held.held_ns = now_ns - held.came_ns;
  request.held_ns += held.held_ns;
  request.complete = &LimitsChannel::on_complete;
  below_->submit(request);
}

void LimitsChannel::on_complete(bdev::IoRequest& request) {
  const Held& was = request.pop_frame<Held>();
  request.held_ns -= was.held_ns;
  request.complete = was.complete;
  request.complete(request);
}

}  // namespace pollux::volume
