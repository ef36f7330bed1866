#pragma once
// For tests: a layer whose channels do not open until they may.

#include <atomic>
#include <memory>
#include <utility>

#include "bdev/layer.h"
#include "reactor/reactor.h"

namespace pollux::bdev::test {

class HeldOpening final : public Layer {
 public:
  explicit HeldOpening(std::shared_ptr<Bdev> below, bool held_from_the_start = true)
      : Layer(std::move(below), 0), held(held_from_the_start) {}
  Opening open_channel(reactor::Reactor& reactor) override {
    ++begun;
    while (held) co_await reactor.sleep_us(200);
    co_return co_await below().open_channel(reactor);
  }

  std::atomic<bool> held;
  std::atomic<unsigned> begun{0};
};

}  // namespace pollux::bdev::test
