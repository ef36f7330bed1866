#pragma once
// For tests: a layer that passes everything on, and that says how much it keeps with a request.

#include <memory>

#include "bdev/layer.h"

namespace pollux::bdev::test {

class Deep final : public Layer {
 public:
  using Layer::Layer;
  Opening open_channel(reactor::Reactor& reactor) override {
    return below().open_channel(reactor);
  }
};

// More than a request has room for.
inline std::shared_ptr<Bdev> make_too_deep(std::shared_ptr<Bdev> below) {
  return std::make_shared<Deep>(std::move(below), IoRequest::kFrameBytes + 8);
}

}  // namespace pollux::bdev::test
