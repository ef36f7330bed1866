#pragma once
// DiskChannels: a block device opened on every reactor, so that whichever of them gets a queue finds its channel there.

#include <memory>
#include <vector>

#include "bdev/bdev.h"
#include "reactor/task.h"
#include "vhost/hop.h"
#include "vhost/queue_poller.h"

namespace pollux::vhost {

// Made and destroyed on a control thread; nothing may be in flight on destruction.
class DiskChannels {
 public:
  static Result<std::unique_ptr<DiskChannels>> open(bdev::Bdev& bdev, Placement& placement) {
    std::unique_ptr<DiskChannels> channels(new DiskChannels);
    for (std::size_t i = 0; i < placement.size(); ++i) {
      reactor::Reactor& reactor = placement.at(i).reactor();
      auto opened = run_on(reactor, [&] { return bdev.open_channel(reactor); });
      if (!opened) return fail(std::move(opened.error()));
      channels->entries_.push_back({&reactor, std::move(*opened)});
    }
    return channels;
  }
  ~DiskChannels() {
    for (Entry& entry : entries_) run_on(*entry.reactor, [&] { entry.channel.reset(); });
  }
  DiskChannels(const DiskChannels&) = delete;
  DiskChannels& operator=(const DiskChannels&) = delete;

  // On a control thread; returns when what was written before is durable, or with the device's error. The guest hears
  // no answer.
  Status flush() const {
    const auto flush_on = [](bdev::Channel& channel) -> reactor::Task<Status> {
      co_return bdev::to_status(co_await bdev::flush(channel, bdev::IoRequest::kAside), "flush");
    };
    return reactor::call(*entries_.front().reactor, flush_on(*entries_.front().channel));
  }

  bdev::Channel& on(const reactor::Reactor& reactor) const {
    for (const Entry& entry : entries_) {
      if (entry.reactor == &reactor) return *entry.channel;
    }
    std::abort();  // every reactor of the placement has one
  }

 private:
  struct Entry {
    reactor::Reactor* reactor;
    std::unique_ptr<bdev::Channel> channel;
  };
  DiskChannels() = default;
  std::vector<Entry> entries_;
};

}  // namespace pollux::vhost
