#pragma once
// ChannelAnchor: how other threads reach a LunChannel that may close meanwhile.

#include <functional>
#include <memory>

#include "reactor/reactor.h"

namespace pollux::scsi {

class LunChannel;

struct ChannelAnchor {
  reactor::Reactor& reactor;
  // The reactor's alone; null once the channel is closed.
  LunChannel* channel = nullptr;
};

// Runs `call` on the anchor's reactor, at once when that is this thread's; with nullptr when the channel is closed.
template <typename Call>
void run_on(const std::shared_ptr<ChannelAnchor>& anchor, Call call) {
  if (anchor->reactor.is_current()) {
    call(anchor->channel);
  } else {
    anchor->reactor.post(std::function<void()>([anchor, call = std::move(call)]() mutable { call(anchor->channel); }));
  }
}

}  // namespace pollux::scsi
