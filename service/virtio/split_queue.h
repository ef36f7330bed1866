#pragma once
// SplitQueue: the device's side of a split virtqueue (VIRTIO 1.2 2.7). See virtqueue.h for the contract.

#include "virtio/inflight.h"
#include "virtio/virtqueue.h"

namespace pollux::virtio {

class SplitQueue final : public Virtqueue {
 public:
  // As Virtqueue::create.
  static Result<std::unique_ptr<Virtqueue>> create(QueueSetup setup);

  unsigned look() override;
  Glance glance() const override { return {avail_idx(), next_avail_}; }
  bool pop(Chain& chain, IovecList& pieces) override;
  void push(std::uint16_t id, std::uint16_t entries, std::uint32_t written) override;
  bool publish() override;
  void disable_kicks() override;
  bool enable_kicks() override;
  std::uint32_t base() const override { return next_avail_; }
  Arrival arrival(std::uint16_t id) const override {
    if (!inflight_.active()) return {};
    const std::uint64_t number = inflight_.arrival(id);
    return {number, number < inflight_.first_arrival()};
  }

 private:
  explicit SplitQueue(QueueSetup setup) : Virtqueue(std::move(setup)) {}
  struct Table {
    const protocol::SplitDesc* descs = nullptr;
    std::uint32_t count = 0;
    bool indirect = false;
    // Why there is none, and the queue is broken.
    const char* wrong = nullptr;
  };
  // A chain as nearly all are: nothing is wrong with it, and each descriptor is a piece that lies in one region.
  // False: it is not such a one, and gather() says what it is.
  bool gather_plain(std::uint16_t head, Chain& chain, IovecList& pieces);
  // Any chain. False: the queue is broken.
  bool gather(std::uint16_t head, Chain& chain, IovecList& pieces);
  // nullptr, or why the queue is broken.
  const char* gather_from(std::uint16_t head, Chain& chain, IovecList& pieces);
  Table indirect_table(const protocol::SplitDesc& desc) const;

  // Hints to the processor, nothing more: what they read is read again, and checked, when its turn comes.
  void prefetch_descriptors(unsigned ready) const;
  void prefetch_request() const;

  std::uint16_t mask() const { return setup_.size - 1; }
  std::uint16_t* avail_flags() const { return avail_; }
  std::uint16_t* avail_idx() const { return avail_ + 1; }
  std::uint16_t* avail_ring() const { return avail_ + 2; }
  std::uint16_t* used_event() const { return avail_ + 2 + setup_.size; }
  std::uint16_t* used_flags() const { return used_; }
  std::uint16_t* used_idx() const { return used_ + 1; }
  protocol::UsedElem* used_ring() const { return reinterpret_cast<protocol::UsedElem*>(used_ + 2); }
  std::uint16_t* avail_event() const { return used_ + 2 + 4 * setup_.size; }

  const protocol::SplitDesc* descs_ = nullptr;
  std::uint16_t* avail_ = nullptr;
  std::uint16_t* used_ = nullptr;

  // Free-running: the next entry of the available ring to take, and the next of the used ring to fill.
  std::uint16_t next_avail_ = 0;
  std::uint16_t next_used_ = 0;
  // How far the last look() saw.
  std::uint16_t seen_avail_ = 0;
  bool kicks_off_ = false;

  InflightSplit inflight_;
};

}  // namespace pollux::virtio
