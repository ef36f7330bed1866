#pragma once
// PackedQueue: the device's side of a packed virtqueue (VIRTIO 1.2 2.8). See virtqueue.h for the contract.

#include "virtio/inflight.h"
#include "virtio/virtqueue.h"

namespace pollux::virtio {

// A position in the ring and the wrap counter that goes with it.
struct PackedCursor {
  std::uint16_t index = 0;
  bool wrap = true;

  void advance(std::uint16_t entries, std::uint16_t size) {
    index += entries;
    if (index >= size) {
      index -= size;
      wrap = !wrap;
    }
  }
  bool operator==(const PackedCursor&) const = default;
};

class PackedQueue final : public Virtqueue {
 public:
  // As Virtqueue::create.
  static Result<std::unique_ptr<Virtqueue>> create(QueueSetup setup);

  unsigned look() override;
  Glance glance() const override;
  bool pop(Chain& chain, IovecList& pieces) override;
  void push(std::uint16_t id, std::uint16_t entries, std::uint32_t written) override;
  bool publish() override;
  void disable_kicks() override;
  bool enable_kicks() override;
  std::uint32_t base() const override;
  Arrival arrival(std::uint16_t id) const override {
    if (!inflight_.active()) return {};
    const std::uint64_t number = inflight_.arrival(id);
    return {number, number < inflight_.first_arrival()};
  }

 private:
  explicit PackedQueue(QueueSetup setup) : Virtqueue(std::move(setup)) {}
  bool available() const;
  bool available(std::uint16_t flags) const;
  const char* gather(Chain& chain, IovecList& pieces);
  const char* gather_again(std::uint16_t entry, Chain& chain, IovecList& pieces);
  const char* gather_indirect(const protocol::PackedDesc& table, ChainBuilder& builder) const;
  void hide_unshown(std::uint16_t entries);
  const char* add(const protocol::PackedDesc& desc, ChainBuilder& builder) const;

  protocol::PackedDesc* descs_ = nullptr;
  protocol::PackedEvent* driver_event_ = nullptr;
  protocol::PackedEvent* device_event_ = nullptr;

  PackedCursor avail_;
  PackedCursor used_;
  // The first entry of the batch being staged; its flags are stored last, which shows the whole batch at once.
  PackedCursor batch_start_;
  std::uint16_t batch_flags_ = 0;
  bool kicks_off_ = false;

  InflightPacked inflight_;
};

}  // namespace pollux::virtio
