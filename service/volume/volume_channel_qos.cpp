// How a volume's limits hold requests back. The rest of VolumeChannel is in volume_channel.cpp.

#include <algorithm>

#include "base/clock.h"
#include "volume/volume_channel.h"

namespace pollux::volume {

namespace {

// How late a change of the limits is noticed by requests that wait under the old ones.
constexpr std::uint64_t kLongestNapNs = 20'000'000;

}  // namespace

void VolumeChannel::hold(bdev::IoRequest& request) {
  // A flush waits for nothing that has not been answered yet, and what fails needs no turn.
  if (request.op == bdev::IoOp::kFlush || progress(request).status != bdev::IoStatus::kOk) return cut(request);
  request.device_next = nullptr;
  (held_tail_ == nullptr ? held_head_ : held_tail_->device_next) = &request;
  held_tail_ = &request;
  if (!releasing_ && !throttle_.running()) release_held();
}

void VolumeChannel::expedite() {
  if (releasing_ || held_head_ == nullptr) return;
  throttle_.cancel();
  release_held(/*all=*/true);
}

void VolumeChannel::release_held(bool all) {
  releasing_ = true;
  while (true) {
    bdev::IoRequest& request = *held_head_;
    const std::uint64_t now_ns = monotonic_ns();
    // What may go at once is booked, too: a guest that resets its queues over and over gets no more than its limit.
    if (const std::uint64_t generation = limiter_.generation(); !booked_ || generation != booked_generation_) {
      due_ns_ = limiter_.book(request, now_ns);
      booked_generation_ = generation;
      booked_ = true;
    }
    if (!all && due_ns_ > now_ns) {
      throttle_.start(lane_.reactor(), std::min(due_ns_ - now_ns, kLongestNapNs) / 1000 + 1);
      break;
    }
    booked_ = false;
    held_head_ = request.device_next;
    if (held_head_ == nullptr) {
      // Its completion may end this channel.
      held_tail_ = nullptr;
      releasing_ = false;
      return cut(request);
    }
    cut(request);
  }
  releasing_ = false;
}

}  // namespace pollux::volume
