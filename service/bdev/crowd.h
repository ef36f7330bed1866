#pragma once
// For tests: one user of a channel has many requests at a time, and another has one behind them.

#include <cstddef>
#include <vector>

#include "bdev/bdev.h"
#include "reactor/task.h"

namespace pollux::bdev::test {

class Crowd {
 public:
  static constexpr std::uint32_t kBytes = 4096;

  // The requests are of kBytes each, at offset i * stride_bytes.
  Crowd(IoOp op, std::size_t count, std::uint64_t stride_bytes) : requests_(count + 1), memory_(kBytes) {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      Counted& request = requests_[i];
      request.crowd = this;
      request.piece = {memory_.data(), kBytes};
      request.op = op;
      request.iov = &request.piece;
      request.iov_count = 1;
      request.offset_bytes = i * stride_bytes;
      request.length_bytes = kBytes;
      request.complete = [](IoRequest& answered) {
        auto& self = static_cast<Counted&>(answered);
        self.crowd->answered(self);
      };
    }
    requests_.back().offset_bytes = 0;
  }
  // On the channels' reactor: submits all but the last to `many`, as stream 1, then the last to `one`, as stream 2,
  // where the channel does not say otherwise. How many of the many had been answered when the last was; after all have
  // ended. kIoError: one failed.
  reactor::Task<Result<std::size_t>> run(Channel& many, Channel& one) {
    for (std::size_t i = 0; i + 1 < requests_.size(); ++i) {
      requests_[i].stream = 1;
      many.submit(requests_[i]);
    }
    requests_.back().stream = 2;
    one.submit(requests_.back());
    co_await all_;
    if (failed_) co_return fail(ErrorCode::kIoError, "a request failed");
    co_return before_;
  }

 private:
  struct Counted : IoRequest {
    Crowd* crowd = nullptr;
    iovec piece{};
  };
  void answered(const Counted& request) {
    if (request.status != IoStatus::kOk) failed_ = true;
    if (&request == &requests_.back()) before_ = answered_;
    if (++answered_ == requests_.size()) all_.set(true);
  }

  std::vector<Counted> requests_;
  std::vector<std::byte> memory_;
  std::size_t answered_ = 0;
  std::size_t before_ = 0;
  bool failed_ = false;
  reactor::Completion<bool> all_;
};

}  // namespace pollux::bdev::test
