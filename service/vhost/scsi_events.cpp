#include "vhost/scsi_events.h"

#include <algorithm>

#include "vhost/pieces.h"

namespace pollux::vhost {

std::shared_ptr<ScsiEventInbox> ScsiEventInboxes::open(reactor::Reactor& reactor) {
  auto inbox = std::make_shared<ScsiEventInbox>(reactor);
  std::lock_guard lock(mutex_);
  std::erase_if(inboxes_, [](const auto& other) { return other.expired(); });
  inboxes_.push_back(inbox);
  return inbox;
}

bool ScsiEventInboxes::any() const {
  std::lock_guard lock(mutex_);
  return std::any_of(inboxes_.begin(), inboxes_.end(), [](const auto& inbox) { return !inbox.expired(); });
}

void ScsiEventInboxes::raise(const ScsiEvent& event) {
  std::lock_guard lock(mutex_);
  for (const auto& weak : inboxes_) {
    auto inbox = weak.lock();
    if (!inbox) continue;
    inbox->reactor.post([inbox, event] {
      if (inbox->waiting.size() < ScsiEventInbox::kMaxWaiting) {
        inbox->waiting.push_back(event);
      } else {
        inbox->missed = true;
      }
    });
  }
}

void ScsiEventQueue::take(const virtio::Chain& chain, virtio::IovecList& pieces) {
  begin();
  const Pieces writable{pieces.items + chain.readable, chain.writable};
  if (chain.faulty || writable.bytes() < sizeof(ScsiEvent)) {
    finish(chain.id, chain.entries, 0);
    return;
  }
  ScsiEvent event{};
  if (!inbox_->waiting.empty()) {
    event = inbox_->waiting.front();
    inbox_->waiting.pop_front();
  }
  if (inbox_->missed) {
    event.event |= ScsiEvent::kMissed;
    inbox_->missed = false;
  }
  writable.put(&event, sizeof(event));
  if (ring().logging()) ring().log_writes(writable.items, writable.count);
  finish(chain.id, chain.entries, sizeof(event));
}

}  // namespace pollux::vhost
