#pragma once
// DiskChannels: a block device opened on every reactor, so that whichever of them gets a queue finds its channel there.

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bdev/bdev.h"
#include "reactor/task.h"
#include "vhost/hop.h"
#include "vhost/queue_poller.h"

namespace pollux::vhost {

// Made and destroyed on a control thread; nothing may be in flight on destruction.
class DiskChannels {
 public:
  // What check_stack() and open_channel() say. kRetry: not all are open after `patience`; those that open later are
  // closed then.
  static Result<std::unique_ptr<DiskChannels>> open(const std::shared_ptr<bdev::Bdev>& bdev, Placement& placement,
                                                    std::chrono::milliseconds patience) {
    using Call = reactor::Call<std::unique_ptr<bdev::Channel>>;
    POLLUX_TRY(bdev::check_stack(*bdev));
    std::vector<std::unique_ptr<Call>> calls;
    for (std::size_t i = 0; i < placement.size(); ++i) {
      reactor::Reactor& reactor = placement.at(i).reactor();
      calls.push_back(std::make_unique<Call>(reactor, bdev::open_channel(bdev, reactor)));
    }
    const auto deadline = Call::Clock::now() + patience;
    std::unique_ptr<DiskChannels> channels(new DiskChannels);
    Status all;
    for (std::size_t i = 0; i < calls.size(); ++i) {
      auto opened = calls[i]->wait_until(deadline);
      if (!opened) opened = calls[i]->give_up();
      if (!opened) {
        all = fail(ErrorCode::kRetry, bdev->name() + " did not open within " + std::to_string(patience.count()) +
                                          " ms: its device does not answer; repeat the request");
      } else if (!*opened) {
        all = fail(std::move(opened->error()));
      } else {
        channels->entries_.push_back({&placement.at(i).reactor(), std::move(**opened)});
      }
    }
    if (!all) return fail(std::move(all.error()));
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

  bdev::Channel& on(const reactor::Reactor& reactor) { return *entry(reactor).channel; }
  // From here on it is the caller's.
  std::unique_ptr<bdev::Channel> take(const reactor::Reactor& reactor) { return std::move(entry(reactor).channel); }

 private:
  struct Entry {
    reactor::Reactor* reactor;
    std::unique_ptr<bdev::Channel> channel;
  };
  DiskChannels() = default;
  // Every reactor of the placement has one.
  Entry& entry(const reactor::Reactor& reactor) {
    return *std::ranges::find(entries_, &reactor, [](const Entry& each) { return each.reactor; });
  }
  std::vector<Entry> entries_;
};

}  // namespace pollux::vhost
