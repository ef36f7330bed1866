#pragma once
// A RAM disk that remembers what it was asked to do, for tests.

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bdev/bdev.h"

namespace pollux::initiator {

class RecordingDisk final : public bdev::Bdev {
 public:
  struct Seen {
    bdev::IoOp op;
    std::uint8_t flags;
  };

  explicit RecordingDisk(std::shared_ptr<bdev::Bdev> under) : under_(std::move(under)) {}
  const std::string& name() const override { return under_->name(); }
  std::uint64_t size_bytes() const override { return under_->size_bytes(); }
  std::uint32_t block_bytes() const override { return under_->block_bytes(); }
  bool supports_unmap() const override { return under_->supports_unmap(); }
  std::uint32_t unmap_granularity_bytes() const override { return under_->unmap_granularity_bytes(); }
  Result<std::unique_ptr<bdev::Channel>> open_channel(reactor::Reactor& reactor) override {
    auto channel = under_->open_channel(reactor);
    if (!channel) return fail(std::move(channel.error()));
    return std::make_unique<RecordingChannel>(*this, std::move(*channel));
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

  const std::shared_ptr<bdev::Bdev> under_;
  std::mutex mutex_;
  std::vector<Seen> seen_;
};

}  // namespace pollux::initiator
