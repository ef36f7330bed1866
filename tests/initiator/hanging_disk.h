#pragma once
// A disk that keeps requests until it is told to answer: devices that have stopped answering, for tests.

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bdev/bdev.h"
#include "reactor/reactor.h"

namespace pollux::initiator {

class HangingDisk final : public bdev::Bdev {
 public:
  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return 16 << 20; }
  std::uint32_t block_bytes() const override { return 512; }
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    co_return std::make_unique<HangingChannel>(*this, reactor);
  }

  // Any thread. From here on requests are answered at once, and those that it has kept are: all of a reactor in one
  // turn.
  void answer() {
    std::lock_guard lock(mutex_);
    hanging_ = false;
    std::map<reactor::Reactor*, std::vector<bdev::IoRequest*>> by_reactor;
    for (auto& [reactor, request] : kept_) by_reactor[reactor].push_back(request);
    for (auto& [reactor, requests] : by_reactor) {
      reactor->post([requests = std::move(requests)] {
        for (bdev::IoRequest* request : requests) finish(*request);
      });
    }
    kept_.clear();
  }
  std::size_t kept() const {
    std::lock_guard lock(mutex_);
    return kept_.size();
  }
  // Requests that have come, kept or answered.
  std::size_t requests() const {
    std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  class HangingChannel final : public bdev::Channel {
   public:
    HangingChannel(HangingDisk& disk, reactor::Reactor& reactor) : disk_(disk), reactor_(reactor) {}
    void submit(bdev::IoRequest& request) override {
      {
        std::lock_guard lock(disk_.mutex_);
        ++disk_.requests_;
        if (disk_.hanging_) {
          disk_.kept_.emplace_back(&reactor_, &request);
          return;
        }
      }
      finish(request);
    }

   private:
    HangingDisk& disk_;
    reactor::Reactor& reactor_;
  };
  static void finish(bdev::IoRequest& request) {
    request.status = bdev::IoStatus::kOk;
    request.complete(request);
  }

  const std::string name_ = "hanging";
  mutable std::mutex mutex_;
  bool hanging_ = true;
  std::size_t requests_ = 0;
  std::vector<std::pair<reactor::Reactor*, bdev::IoRequest*>> kept_;
};

}  // namespace pollux::initiator
