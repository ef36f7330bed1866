#pragma once
// The driver's side of a virtio-scsi event queue (VIRTIO 1.2 5.6.6.3).

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstring>
#include <optional>
#include <span>

#include "initiator/front_end.h"

namespace pollux::initiator {

// Lends event buffers and hands out what arrives in them.
class ScsiEvents {
 public:
  explicit ScsiEvents(FrontEnd& front_end, unsigned buffers = 8) : front_end_(front_end) {
    for (unsigned i = 0; i < buffers; ++i) lend(front_end.ram().allocate(sizeof(ScsiEvent)));
  }
  std::optional<ScsiEvent> next(int deadline_ms = 10000) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(deadline_ms);
    while (true) {
      if (auto done = front_end_.ring(kScsiEventQueue).take()) {
        auto* buffer = reinterpret_cast<std::byte*>(done->cookie);
        ScsiEvent event{};
        std::memcpy(&event, buffer, sizeof(event));
        lend(buffer);
        return event;
      }
      if (std::chrono::steady_clock::now() > deadline) return std::nullopt;
      if (front_end_.ring(kScsiEventQueue).want_call()) front_end_.wait_call(kScsiEventQueue, 50);
    }
  }

 private:
  void lend(std::byte* buffer) {
    const Segment segment{front_end_.ram().guest_addr(buffer), sizeof(ScsiEvent), true};
    BOOST_REQUIRE(
        front_end_.ring(kScsiEventQueue).add(std::span(&segment, 1), reinterpret_cast<std::uint64_t>(buffer)));
    if (front_end_.ring(kScsiEventQueue).show()) front_end_.kick(kScsiEventQueue);
  }
  FrontEnd& front_end_;
};

}  // namespace pollux::initiator
