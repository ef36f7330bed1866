#pragma once
// For tests: a guest whose queue is on another reactor than the pool's home, while the test does something else to the
// pool. Several first writes, zeros and reads of the map are under way at a time, each as the data path's: a message home,
// and one back to the lane's reactor. What was answered is compared with what the disk holds.

#include <cstddef>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "blob/lanes.h"
#include "blob/parallel.h"
#include "blob/sim_bdev.h"
#include "blob/store.h"
#include "blob/volume.h"

namespace pollux::blob {

class GuestLoad {
 public:
  static constexpr std::size_t kAtOnce = 4;
  // Of each request, at the begin of a cluster.
  static constexpr std::uint32_t kBytes = 4096;

  // Volume `id` of `store` from reactor `lane`, in an order drawn from the seed.
  GuestLoad(Store& store, const Uuid& id, reactor::Reactor& lane, std::uint64_t seed)
      : store_(store), id_(id), lane_(lane), random_(seed) {}
  GuestLoad(const GuestLoad&) = delete;
  GuestLoad& operator=(const GuestLoad&) = delete;

  // It goes on by itself from here to stop().
  reactor::Task<Status> start() {
    co_await store_.home().enter();
    auto volume = co_await store_.view(id_);
    if (!volume) co_return fail(std::move(volume.error()));
    volume_ = *volume;
    stamps_.assign(volume_->size_bytes / store_.cluster_bytes(), 0);
    reactor::spawn(run(), [this](Status status) { ended_.set(std::move(status)); });
    co_return Status{};
  }
  // Ends when nothing is under way any more. An error: of the request that failed first.
  reactor::Task<Status> stop() {
    co_await lane_.enter();
    stopping_ = true;
    Status status = co_await ended_;
    co_await store_.home().enter();
    store_.unview(*std::exchange(volume_, nullptr));
    co_return status;
  }
  // Requests that were answered.
  std::uint64_t answered() const { return answered_; }

  // After stop(), once the volume's map is flushed: which cluster does not hold what was answered, in words.
  reactor::Task<Result<std::optional<std::string>>> difference(const SimDisk& disk) {
    co_await store_.home().enter();
    auto volume = co_await store_.view(id_);
    if (!volume) co_return fail(std::move(volume.error()));
    const std::vector<std::byte> image = disk.image();
    std::optional<std::string> different;
    for (std::uint32_t index = 0; index < stamps_.size() && !different; ++index) {
      Request load(*this, **volume, HomeIo::Op::kLoad, index);
      load.send(store_.home());
      POLLUX_CO_TRY(bdev::to_status(co_await load.answer, "load of a leaf"));
      const std::uint64_t found = stamp_at(image, **volume, index);
      if (found != stamps_[index])
        different = "cluster " + std::to_string(index) + " holds " + std::to_string(found) + " and not " +
                    std::to_string(stamps_[index]);
    }
    store_.unview(**volume);
    co_return different;
  }

 private:
  // One way to the pool's home and back.
  class Request : public HomeIo {
   public:
    Request(GuestLoad& load, Volume& of, Op what, std::uint32_t cluster) : load_(load) {
      volume = &of;
      op = what;
      index = cluster;
      length = kBytes;
      done = [](HomeIo& io) {
        auto& self = static_cast<Request&>(io);
        self.run = [](reactor::Message& message) {
          auto& mine = static_cast<Request&>(static_cast<HomeIo&>(message));
          mine.answer.set(mine.status);
        };
        self.from_->post(self);
      };
    }
    void write(std::uint64_t stamp) {
      for (std::size_t at = 0; at < kBytes; at += sizeof(stamp)) std::memcpy(bytes_ + at, &stamp, sizeof(stamp));
      piece_ = {bytes_, kBytes};
      iov = &piece_;
      iov_count = 1;
    }
    // On `from`, to which it comes back.
    void send(reactor::Reactor& from) {
      from_ = &from;
      run = [](reactor::Message& message) {
        auto& mine = static_cast<Request&>(static_cast<HomeIo&>(message));
        mine.load_.store_.writer().start(mine);
      };
      load_.store_.home().post(*this);
    }
    reactor::Completion<bdev::IoStatus> answer;

   private:
    GuestLoad& load_;
    reactor::Reactor* from_ = nullptr;
    iovec piece_{};
    std::byte bytes_[kBytes];
  };

  reactor::Task<Status> run() {
    co_await lane_.enter();
    auto lane = co_await store_.lanes().open(lane_);
    if (!lane) co_return fail(std::move(lane.error()));
    co_return co_await parallel(lane_, kAtOnce, kAtOnce, [this](std::size_t part) { return part_of(part); });
  }
  // One request after the other to every kAtOnce-th cluster.
  reactor::Task<Status> part_of(std::size_t part) {
    while (!stopping_) {
      const auto index = static_cast<std::uint32_t>(random_() % (stamps_.size() / kAtOnce) * kAtOnce + part);
      const bool zero = random_() % 4 == 0;
      const std::uint64_t stamp = zero ? 0 : ++last_stamp_;
      Request request(*this, *volume_, zero ? HomeIo::Op::kZero : HomeIo::Op::kWrite, index);
      if (zero) {
        request.length = store_.cluster_bytes();
      } else {
        request.write(stamp);
      }
      request.send(lane_);
      POLLUX_CO_TRY(bdev::to_status(co_await request.answer, "request of a guest"));
      stamps_[index] = stamp;
      ++answered_;
    }
    co_return Status{};
  }
  // Its first block, as the map says where it is; 0: nowhere.
  std::uint64_t stamp_at(const std::vector<std::byte>& image, const Volume& volume, std::uint32_t index) const {
    const LeafTable& table = *volume.view->table.load();
    const std::uint64_t slot = table.slots[index / kLeafEntries].load();
    if (slot == 0) return 0;
    const auto& leaf = *reinterpret_cast<const Leaf*>(slot & ~kClosedTag);
    MapEntry entry;
    bool closed = false;
    if (!leaf.entries[index % kLeafEntries].read(entry, closed) || entry.own == 0) return 0;
    std::uint64_t stamp = 0;
    std::memcpy(&stamp, image.data() + std::uint64_t{entry.own} * store_.cluster_bytes(), sizeof(stamp));
    return stamp;
  }

  Store& store_;
  const Uuid id_;
  reactor::Reactor& lane_;
  std::mt19937_64 random_;
  Volume* volume_ = nullptr;
  bool stopping_ = false;
  std::vector<std::uint64_t> stamps_;
  std::uint64_t last_stamp_ = 0;
  std::uint64_t answered_ = 0;
  reactor::Completion<Status> ended_;
};

}  // namespace pollux::blob
