#pragma once
// For tests: a layer that answers reads and writes as lost while its path is away.

#include <atomic>
#include <memory>
#include <utility>

#include "bdev/layer.h"

namespace pollux::bdev::test {

class LosingPath final : public Layer {
 public:
  explicit LosingPath(std::shared_ptr<Bdev> below) : Layer(std::move(below), 0) {}
  Opening open_channel(reactor::Reactor& reactor) override {
    auto channel = co_await below().open_channel(reactor);
    if (!channel) co_return fail(std::move(channel.error()));
    co_return std::make_unique<LosingChannel>(*this, std::move(*channel));
  }

  // What they are answered with; kOk: they go to the device.
  std::atomic<IoStatus> answer{IoStatus::kPathLost};
  // Answered so.
  std::atomic<unsigned> lost{0};

 private:
  class LosingChannel final : public Channel {
   public:
    LosingChannel(LosingPath& layer, std::unique_ptr<Channel> below) : layer_(layer), below_(std::move(below)) {}
    void submit(IoRequest& request) override {
      const IoStatus answer = layer_.answer;
      if (answer == IoStatus::kOk || (request.op != IoOp::kRead && request.op != IoOp::kWrite)) {
        return below_->submit(request);
      }
      ++layer_.lost;
      request.status = answer;
      request.complete(request);
    }

   private:
    LosingPath& layer_;
    std::unique_ptr<Channel> below_;
  };
};

}  // namespace pollux::bdev::test
