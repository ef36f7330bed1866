#pragma once
// Switch: the top of a stack under which the stack can be exchanged for another while it is in use: a volume that moves
// to another pool, a layer that comes or goes. To its users it stays the same device; they see requests that take a
// little longer.
//
// An exchange opens the new stack's channels beside the old ones, then holds back new requests on every reactor, waits
// until nothing is in flight below any of the channels, and only then lets all of them go on, on the new stack. At no
// time are requests under way below both. What fails or takes too long before that leaves the old stack in place.
//
// The new stack has to be what the users were told of: see exchange(). Hints (optimal_io_bytes, unmap granularity) stay
// as they were first told.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bdev/bdev.h"
#include "reactor/mutex.h"
#include "reactor/reactor.h"

namespace pollux::bdev {

class SwitchChannel;

class Switch final : public Bdev, public std::enable_shared_from_this<Switch> {
 public:
  // Of frames that any stack under the switch may need: the layers above count with as many.
  static constexpr std::uint32_t kRoomBytes = 128;

  // Exchanges run on `home`, one after the other. kUnsupported: `below` needs more than kRoomBytes.
  static Result<std::shared_ptr<Switch>> make(std::shared_ptr<Bdev> below, reactor::Reactor& home);
  Switch(std::shared_ptr<Bdev> below, reactor::Reactor& home);
  ~Switch() override;

  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return size_bytes_.load(std::memory_order_acquire); }
  std::uint32_t block_bytes() const override { return block_bytes_; }
  std::uint32_t optimal_io_bytes() const override { return optimal_io_bytes_; }
  bool read_only() const override { return read_only_; }
  bool supports_unmap() const override { return supports_unmap_; }
  std::uint32_t unmap_granularity_bytes() const override { return unmap_granularity_bytes_; }
  bool reports_extents() const override { return reports_extents_; }
  std::uint32_t frame_bytes() const override;
  reactor::Task<Status> reserve(reactor::Reactor& reactor, std::uint64_t offset_bytes,
                                std::uint64_t length_bytes) override;
  void stop_writing() override;
  void refresh_size() override;
  Opening open_channel(reactor::Reactor& reactor) override;

  // Any reactor; goes on on `home`. Puts `next` in the place of the whole stack below. kInvalid: its block size or what
  // it supports differs, it is smaller, or one of the two is read only. kUnsupported: it needs more than kRoomBytes.
  // Errors of next->open_channel(). kBusy: requests below do not end within patience_us. After an error nothing has
  // changed.
  reactor::Task<Status> exchange(std::shared_ptr<Bdev> next, std::uint64_t patience_us);

 private:
  friend class SwitchChannel;
  class Drain;
  // How far an exchange has come with a channel. New ones begin at the first.
  enum class Phase : std::uint8_t { kNone, kOpened, kHeld, kDrained };
  // A channel in the list of all. What is in it is used on its reactor, but for `phase`, which is the exchange's.
  struct Entry {
    reactor::Reactor* reactor = nullptr;
    SwitchChannel* channel = nullptr;  // null: it is gone
    std::unique_ptr<Channel> next;
    Phase phase = Phase::kNone;
  };

  std::shared_ptr<Bdev> below() const;
  void take_size();
  Status check(const Bdev& next) const;
  std::vector<std::shared_ptr<Entry>> entries() const;
  std::shared_ptr<Entry> first_before(Phase phase) const;
  reactor::Task<Status> prepare(Bdev& next, std::uint64_t deadline_ns);
  reactor::Task<Status> advance(Entry& entry, Phase to, Bdev& next, std::uint64_t deadline_ns);
  // Whether nothing is in flight below the channel by then.
  static reactor::Task<bool> drain(Entry& entry, std::uint64_t deadline_ns);
  reactor::Task<void> give_up();
  // The moment of the exchange: from here on channels are opened on `next`. False: a channel came meanwhile.
  bool commit(std::shared_ptr<Bdev>& next, ResizeToken& token);
  reactor::Task<void> go_on();

  reactor::Reactor& home_;
  const std::string name_;
  const std::uint32_t block_bytes_;
  const std::uint32_t optimal_io_bytes_;
  const std::uint32_t unmap_granularity_bytes_;
  const bool read_only_;
  const bool supports_unmap_;
  const bool reports_extents_;
  std::atomic<std::uint64_t> size_bytes_;
  reactor::AsyncMutex exchanging_;

  mutable std::mutex mutex_;  // what follows; never on the data path
  std::shared_ptr<Bdev> below_;
  ResizeToken resize_token_;
  bool writing_stopped_ = false;
  std::vector<std::shared_ptr<Entry>> entries_;
};

class SwitchChannel final : public Channel {
  struct Frame {
    SwitchChannel* channel;
    void (*complete)(IoRequest&);
  };

 public:
  static constexpr std::uint32_t kFrameBytes = sizeof(Frame);

  SwitchChannel(std::shared_ptr<Switch> layer, std::shared_ptr<Switch::Entry> entry, std::unique_ptr<Channel> below);
  ~SwitchChannel() override;

  void submit(IoRequest& request) override {
    if (holding_) [[unlikely]]
      return keep(request);
    pass(request);
  }
  void expedite() override { below_->expedite(); }

 private:
  friend class Switch;
  void keep(IoRequest& request);
  void pass(IoRequest& request);
  static void on_complete(IoRequest& request);
  void go_on();

  const std::shared_ptr<Switch> switch_;
  const std::shared_ptr<Switch::Entry> entry_;
  std::unique_ptr<Channel> below_;
  bool holding_ = false;
  std::uint32_t in_flight_ = 0;
  IoRequest* first_ = nullptr;
  IoRequest* last_ = nullptr;
  // Who waits until nothing is in flight.
  Switch::Drain* drain_ = nullptr;
};

}  // namespace pollux::bdev
