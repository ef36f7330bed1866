#include "vhost/scsi_events.h"

#include <algorithm>
#include <utility>

#include "vhost/hop.h"
#include "vhost/pieces.h"

namespace pollux::vhost {

using namespace protocol;

void ScsiEventDebt::add(const ScsiEvent& event) {
  if (event.event == ScsiEvent::kParamChange) {
    grown.insert(event.lun);
    return;
  }
  missed = true;
  if (event.reason == ScsiEvent::kReasonRemoved) grown.erase(event.lun);
}

void ScsiEventDebt::add(ScsiEventDebt other) {
  missed = missed || other.missed;
  grown.merge(other.grown);
}

void ScsiEventInbox::add(const ScsiEvent& event) {
  // The guest asks for the capacity when it hears of a change: told once, it knows of all.
  if (event.event == ScsiEvent::kParamChange || waiting.size() == kMaxWaiting) {
    debt.add(event);
    return;
  }
  if (event.reason == ScsiEvent::kReasonRemoved) debt.grown.erase(event.lun);
  waiting.push_back(event);
}

ScsiEvent ScsiEventInbox::pop() {
  ScsiEvent event{};
  if (!waiting.empty()) {
    event = waiting.front();
    waiting.pop_front();
  } else if (!debt.missed) {
    event = {ScsiEvent::kParamChange, *debt.grown.begin(), ScsiEvent::kReasonCapacityChanged};
    debt.grown.erase(debt.grown.begin());
  }
  if (std::exchange(debt.missed, false)) event.event |= ScsiEvent::kMissed;
  return event;
}

void ScsiEventInboxes::owe_rescan() {
  std::lock_guard lock(mutex_);
  had_guest_ = true;
  owed_.missed = true;
}

std::shared_ptr<ScsiEventInbox> ScsiEventInboxes::open(reactor::Reactor& reactor) {
  auto inbox = std::make_shared<ScsiEventInbox>(reactor);
  std::lock_guard lock(mutex_);
  had_guest_ = true;
  inbox->debt = std::exchange(owed_, {});
  inboxes_.push_back(inbox);
  return inbox;
}

void ScsiEventInboxes::close(const std::shared_ptr<ScsiEventInbox>& inbox) {
  {
    std::lock_guard lock(mutex_);
    std::erase(inboxes_, inbox);
  }
  // Behind all that raise() has posted to it.
  ScsiEventDebt left = run_on(inbox->reactor, [&] {
    for (const ScsiEvent& event : inbox->waiting) inbox->debt.add(event);
    return std::move(inbox->debt);
  });
  std::lock_guard lock(mutex_);
  owed_.add(std::move(left));
}

bool ScsiEventInboxes::any() const {
  std::lock_guard lock(mutex_);
  return !inboxes_.empty();
}

void ScsiEventInboxes::raise(const ScsiEvent& event) {
  std::lock_guard lock(mutex_);
  if (inboxes_.empty() && had_guest_) owed_.add(event);
  for (const auto& inbox : inboxes_) {
    inbox->reactor.post([inbox, event] { inbox->add(event); });
  }
}

void ScsiEventQueue::accept(const virtio::Chain& chain, virtio::IovecList& pieces) {
  begin();
  const Pieces writable{pieces.items + chain.readable, chain.writable};
  if (chain.faulty || writable.bytes() < sizeof(ScsiEvent)) {
    finish(chain.id, chain.entries, 0);
    return;
  }
  const ScsiEvent event = inbox_->pop();
  writable.put(&event, sizeof(event));
  if (ring().logging()) ring().log_writes(writable.items, writable.count);
  finish(chain.id, chain.entries, sizeof(event));
}

}  // namespace pollux::vhost
