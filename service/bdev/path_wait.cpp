#include "bdev/path_wait.h"

#include <utility>

#include "base/clock.h"

namespace pollux::bdev {

namespace {

constexpr std::uint64_t kAgainAfterUs = 100'000;

}  // namespace

void PathWait::hold(Request& request) {
  request.path_wait = this;
  request.answer = request.complete;
  request.complete = &PathWait::on_complete;
  request.lost_since_ns = monotonic_ns();
  if (given_up_) return answer(request);
  wait(request);
}

void PathWait::wait(Request& request) {
  request.device_next = nullptr;
  (last_ == nullptr ? first_ : last_->device_next) = &request;
  last_ = &request;
  if (!timer_.running()) timer_.start(reactor_, kAgainAfterUs);
}

void PathWait::submit_again() {
  last_ = nullptr;
  IoRequest* request = std::exchange(first_, nullptr);
  // The completion of the last one may end this.
  while (request != nullptr) {
    IoRequest& now = *request;
    request = now.device_next;
    channel_.submit(now);
  }
}

void PathWait::on_complete(IoRequest& io) {
  auto& request = static_cast<Request&>(io);
  PathWait& self = *request.path_wait;
  const bool waits = request.status == IoStatus::kPathLost && !self.given_up_ &&
                     monotonic_ns() - request.lost_since_ns < self.patience_ns_;
  if (waits) return self.wait(request);
  answer(request);
}

void PathWait::answer(Request& request) {
  request.complete = request.answer;
  if (request.status == IoStatus::kPathLost) request.status = IoStatus::kIoError;
  request.complete(request);
}

void PathWait::give_up() {
  given_up_ = true;
  timer_.cancel();
  last_ = nullptr;
  IoRequest* request = std::exchange(first_, nullptr);
  while (request != nullptr) {
    auto& now = static_cast<Request&>(*request);
    request = now.device_next;
    answer(now);
  }
}

}  // namespace pollux::bdev
