#pragma once
// Limits: the layer of a stack that holds requests back while they come faster than a QosLimiter allows. The limiter
// belongs to the layer and is shared by its channels on all reactors; without limits in force a request passes at once.
//
// Requests that are held back leave in the order in which they came. A flush is never held: it waits for nothing that
// has not been answered yet.

#include <cstdint>
#include <memory>
#include <utility>

#include "bdev/layer.h"
#include "reactor/reactor.h"
#include "volume/qos.h"

namespace pollux::volume {

class Limits final : public bdev::Layer, public std::enable_shared_from_this<Limits> {
 public:
  explicit Limits(std::shared_ptr<bdev::Bdev> below);

  bdev::Opening open_channel(reactor::Reactor& reactor) override;

  QosLimiter& limiter() { return limiter_; }

 private:
  QosLimiter limiter_;
};

class LimitsChannel final : public bdev::Channel {
  // Of a request that is held back, and until it is complete.
  struct Held {
    void (*complete)(bdev::IoRequest&);
    std::uint64_t came_ns;
    std::uint64_t held_ns;
  };

 public:
  static constexpr std::uint32_t kFrameBytes = sizeof(Held);

  LimitsChannel(std::shared_ptr<Limits> layer, reactor::Reactor& reactor, std::unique_ptr<bdev::Channel> below)
      : limiter_(layer->limiter()), below_(std::move(below)), layer_(std::move(layer)), reactor_(reactor) {}
  ~LimitsChannel() override;

  void submit(bdev::IoRequest& request) override {
    if (limiter_.active()) [[unlikely]]
      return hold(request);
    below_->submit(request);
  }
  void expedite() override;

 private:
  void hold(bdev::IoRequest& request);
  // Submits what is held for as long as the limits allow, or all of it.
  enum class Release : std::uint8_t { kDue, kAll };
  void release(Release which);
  void pass(bdev::IoRequest& request, std::uint64_t now_ns);
  static void on_complete(bdev::IoRequest& request);

  QosLimiter& limiter_;
  const std::unique_ptr<bdev::Channel> below_;
  const std::shared_ptr<Limits> layer_;
  reactor::Reactor& reactor_;
  // In order. The first has booked its place, unless the limits changed since.
  bdev::IoRequest* first_ = nullptr;
  bdev::IoRequest* last_ = nullptr;
  bool booked_ = false;
  bool releasing_ = false;
  std::uint64_t booked_generation_ = 0;
  std::uint64_t due_ns_ = 0;
  reactor::Timer timer_{[this] { release(Release::kDue); }};
};

}  // namespace pollux::volume
