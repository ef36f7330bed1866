#pragma once
// A disk that grows when it is told to, for tests.

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "bdev/bdev.h"

namespace pollux::initiator {

// A RAM disk of which only the beginning is shown at first.
class GrowingDisk final : public bdev::Bdev {
 public:
  GrowingDisk(std::shared_ptr<bdev::Bdev> whole, std::uint64_t size_bytes)
      : whole_(std::move(whole)), size_bytes_(size_bytes) {}
  const std::string& name() const override { return whole_->name(); }
  std::uint64_t size_bytes() const override { return size_bytes_; }
  std::uint32_t block_bytes() const override { return whole_->block_bytes(); }
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    return whole_->open_channel(reactor);
  }
  void grow(std::uint64_t size_bytes) {
    size_bytes_ = size_bytes;
    notify_resized();
  }

 private:
  std::shared_ptr<bdev::Bdev> whole_;
  std::atomic<std::uint64_t> size_bytes_;
};

}  // namespace pollux::initiator
