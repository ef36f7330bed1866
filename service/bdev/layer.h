#pragma once
// Layer: a block device that stands on another one, to whose channels its own submit. What is asked about it the one
// below answers; a layer overrides what it changes.

#include <memory>
#include <utility>

#include "bdev/bdev.h"

namespace pollux::bdev {

class Layer : public Bdev {
 public:
  // own_frame_bytes: the most that the layer pushes on one request.
  Layer(std::shared_ptr<Bdev> below, std::uint32_t own_frame_bytes)
      : below_(std::move(below)), own_frame_bytes_(own_frame_bytes) {}

  const std::string& name() const override { return below_->name(); }
  std::uint64_t size_bytes() const override { return below_->size_bytes(); }
  std::uint32_t block_bytes() const override { return below_->block_bytes(); }
  std::uint32_t optimal_io_bytes() const override { return below_->optimal_io_bytes(); }
  bool read_only() const override { return below_->read_only(); }
  bool supports_unmap() const override { return below_->supports_unmap(); }
  std::uint32_t unmap_granularity_bytes() const override { return below_->unmap_granularity_bytes(); }
  bool reports_extents() const override { return below_->reports_extents(); }
  std::uint32_t frame_bytes() const override { return below_->frame_bytes() + own_frame_bytes_; }
  const std::string& exclusive_name() const override { return below_->exclusive_name(); }
  reactor::Task<Status> reserve(reactor::Reactor& reactor, std::uint64_t offset_bytes,
                                std::uint64_t length_bytes) override {
    return below_->reserve(reactor, offset_bytes, length_bytes);
  }
  void stop_writing() override { below_->stop_writing(); }
  void refresh_size() override { below_->refresh_size(); }
  ResizeToken on_resize(std::function<void(std::uint64_t size_bytes)> callback) override {
    return below_->on_resize(std::move(callback));
  }

 protected:
  Bdev& below() const { return *below_; }

 private:
  const std::shared_ptr<Bdev> below_;
  const std::uint32_t own_frame_bytes_;
};

}  // namespace pollux::bdev
