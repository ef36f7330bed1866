#pragma once
// Lanes: one a reactor that does I/O on the pool. A lane has the reactor's way to the device, and counts what is in
// flight, so that the home reactor can wait for a grace period: the moment after which no I/O is under way that looked
// at the maps before grace() was called.
//
// Counting costs the data path two additions on memory of its own: grace() sends each lane a message, the lane then
// counts new I/O under the other of two numbers, and answers when the old one has come down to zero.

#include <bit>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "base/result.h"
#include "bdev/bdev.h"
#include "blob/cluster_io.h"
#include "reactor/mutex.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::blob {

// What a user of the store keeps with a lane (request slots of the data path); destroyed with it, on its reactor.
class LaneExtension {
 public:
  virtual ~LaneExtension() = default;
};

class Lanes;

class Lane {
 public:
  // `layered`: to the device through the pool's data layer; null when it has none.
  Lane(Lanes& lanes, reactor::Reactor& reactor, std::unique_ptr<bdev::Channel> device,
       std::unique_ptr<bdev::Channel> layered, std::uint32_t cluster_shift)
      : lanes_(lanes),
        reactor_(reactor),
        device_(std::move(device)),
        layered_(std::move(layered)),
        data_(layered_ ? *layered_ : *device_, cluster_shift) {
    switch_epoch_.lane = this;
  }

  // All on the lane's reactor.
  ClusterIo& data() { return data_; }
  reactor::Reactor& reactor() { return reactor_; }
  Lanes& lanes() { return lanes_; }
  // Around every I/O: begin() before the map is looked at, end() with begin()'s answer when its last access is over.
  unsigned begin() {
    ++in_flight_[epoch_];
    return epoch_;
  }
  void end(unsigned epoch) {
    if (leave(epoch)) answer();
  }
  // end() in two steps: true when answer() is due, which may come a little later in the same turn.
  bool leave(unsigned epoch) { return --in_flight_[epoch] == 0 && epoch != epoch_ && asked_; }
  void answer();
  std::unique_ptr<LaneExtension> extension;

 private:
  friend class Lanes;
  friend class Store;
  // Metadata alone.
  bdev::Channel& metadata() { return *device_; }
  struct LaneMessage : reactor::Message {
    Lane* lane = nullptr;
  };
  void switch_epoch();

  Lanes& lanes_;
  reactor::Reactor& reactor_;
  std::unique_ptr<bdev::Channel> device_;
  std::unique_ptr<bdev::Channel> layered_;
  ClusterIo data_;
  std::uint64_t in_flight_[2] = {0, 0};
  unsigned epoch_ = 0;
  bool asked_ = false;
  LaneMessage switch_epoch_;
};

class Lanes {
 public:
  Lanes(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& home, const DataLayer& layer)
      : device_(std::move(device)), data_device_(layer ? layer(device_) : device_), home_(home) {}

  // Before the first is opened.
  void set_cluster_bytes(std::uint32_t cluster_bytes) {
    cluster_shift_ = static_cast<std::uint32_t>(std::countr_zero(cluster_bytes));
  }
  // The lane of this reactor, on it; made at first use. Errors are the device's.
  reactor::Task<Result<Lane*>> open(reactor::Reactor& reactor);
  // Home reactor. Rounds run one after the other, and all who wait for one to begin share it.
  reactor::Task<void> grace();
  // Home reactor, with no I/O in flight and no lane being opened: ends all lanes, each on its own reactor.
  reactor::Task<void> close();

  bdev::Bdev& device() { return *device_; }
  // The device as data sees it: with the pool's data layer.
  bdev::Bdev& data_device() { return *data_device_; }
  reactor::Reactor& home() { return home_; }

 private:
  friend class Lane;
  void answered();
  std::vector<Lane*> all();
  // nullptr: there is none.
  Lane* find(const reactor::Reactor& reactor);
  reactor::AsyncMutex& turn_of(const reactor::Reactor& reactor);

  const std::shared_ptr<bdev::Bdev> device_;
  const std::shared_ptr<bdev::Bdev> data_device_;
  reactor::Reactor& home_;
  std::uint32_t cluster_shift_ = 0;
  std::mutex mutex_;  // the list and the map alone; lanes come with channels, never with I/O
  std::vector<std::unique_ptr<Lane>> lanes_;
  // Each used on its reactor.
  std::map<const reactor::Reactor*, reactor::AsyncMutex> turns_;

  reactor::AsyncMutex round_;
  std::uint64_t rounds_ = 0;  // begun so far
  std::atomic<std::uint32_t> missing_{0};
  struct Answered : reactor::Message {
    Lanes* lanes = nullptr;
  } answered_;
  reactor::Completion<bool>* all_answered_ = nullptr;
};

}  // namespace pollux::blob
