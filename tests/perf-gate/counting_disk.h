#pragma once
// CountingDisk: memory that answers only while the reactor sleeps, and counts. Each wait of the reactor for its device
// is one sleep this way, whatever the machine does: so the counts of a store on it are the same in every run.
//
// For one channel.

#include <sys/eventfd.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bdev/bdev.h"
#include "reactor/reactor.h"

namespace pollux::gate {

// Since the disk was made.
struct DiskCounts {
  std::uint64_t operations = 0;
  // Among them, flushes, and changes that are durable on their own: what waits for the medium.
  std::uint64_t stable = 0;
};

class CountingDisk final : public bdev::Bdev {
 public:
  explicit CountingDisk(std::shared_ptr<bdev::Bdev> memory) : memory_(std::move(memory)) {}
  const std::string& name() const override { return memory_->name(); }
  std::uint64_t size_bytes() const override { return memory_->size_bytes(); }
  std::uint32_t block_bytes() const override { return memory_->block_bytes(); }
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    auto channel = co_await memory_->open_channel(reactor);
    if (!channel) co_return fail(std::move(channel.error()));
    const int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake < 0) co_return fail(ErrorCode::kInternal, "no eventfd");
    auto counting = std::make_unique<CountingChannel>(*this, std::move(*channel), reactor, wake);
    POLLUX_CO_TRY(reactor.watch(wake));
    co_return counting;
  }
  // On the channel's reactor.
  const DiskCounts& counts() const { return counts_; }

 private:
  class CountingChannel final : public bdev::Channel, public reactor::Poller {
   public:
    // Owns `wake`.
    CountingChannel(CountingDisk& disk, std::unique_ptr<bdev::Channel> memory, reactor::Reactor& reactor, int wake)
        : disk_(disk), memory_(std::move(memory)), reactor_(reactor), wake_(wake) {
      reactor_.add_poller(*this);
    }
    ~CountingChannel() override {
      reactor_.remove_poller(*this);
      reactor_.unwatch(wake_);
      close(wake_);
    }
    void submit(bdev::IoRequest& request) override {
      ++disk_.counts_.operations;
      if (request.op == bdev::IoOp::kFlush || request.durable_change()) ++disk_.counts_.stable;
      waiting_.push_back(&request);
    }
    unsigned poll() override {
      if (!std::exchange(slept_, false)) return 0;
      const auto answered = std::exchange(waiting_, {});
      for (bdev::IoRequest* request : answered) memory_->submit(*request);
      return static_cast<unsigned>(answered.size());
    }
    bool arm() override {
      if (waiting_.empty()) return true;
      slept_ = true;
      return eventfd_write(wake_, 1) == 0;
    }

   private:
    CountingDisk& disk_;
    std::unique_ptr<bdev::Channel> memory_;
    reactor::Reactor& reactor_;
    const int wake_;
    std::vector<bdev::IoRequest*> waiting_;
    bool slept_ = false;
  };

  const std::shared_ptr<bdev::Bdev> memory_;
  DiskCounts counts_;
};

}  // namespace pollux::gate
