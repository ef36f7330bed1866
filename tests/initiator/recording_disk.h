#pragma once
// A RAM disk that remembers what it was asked to do, for tests.

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "bdev/layer.h"

namespace pollux::initiator {

class RecordingDisk final : public bdev::Layer {
 public:
  struct Seen {
    bdev::IoOp op;
    std::uint8_t flags;
  };

  explicit RecordingDisk(std::shared_ptr<bdev::Bdev> under) : Layer(std::move(under), 0) {}
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    auto channel = co_await below().open_channel(reactor);
    if (!channel) co_return fail(std::move(channel.error()));
    co_return std::make_unique<RecordingChannel>(*this, std::move(*channel));
  }

  // All since the last call.
  std::vector<Seen> take_seen() {
    std::lock_guard lock(mutex_);
    return std::exchange(seen_, {});
  }

 private:
  class RecordingChannel final : public bdev::Channel {
   public:
    RecordingChannel(RecordingDisk& disk, std::unique_ptr<bdev::Channel> under)
        : disk_(disk), under_(std::move(under)) {}
    void submit(bdev::IoRequest& request) override {
      {
        std::lock_guard lock(disk_.mutex_);
        disk_.seen_.push_back({request.op, request.flags});
      }
      under_->submit(request);
    }

   private:
    RecordingDisk& disk_;
    std::unique_ptr<bdev::Channel> under_;
  };

  std::mutex mutex_;
  std::vector<Seen> seen_;
};

}  // namespace pollux::initiator
