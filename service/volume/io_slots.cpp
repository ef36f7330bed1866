#include "volume/io_slots.h"

#include "volume/volume_channel.h"

namespace pollux::volume {

namespace {

constexpr std::size_t kSlots = 512;
constexpr std::size_t kLargeSlices = 32;

}  // namespace

IoSlots::IoSlots(blob::Lane& lane) : lane_(lane), slots_(kSlots), large_(kLargeSlices) {
  for (auto& slot : slots_) {
    slot.owner = this;
    slot.device.slot = &slot;
    slot.home.slot = &slot;
    slot.flush.slot = &slot;
    slot.next = free_;
    free_ = &slot;
  }
  free_large_.reserve(kLargeSlices);
  for (auto& slice : large_) free_large_.push_back(&slice);
}

IoSlots& IoSlots::of(blob::Lane& lane) {
  if (!lane.extension) lane.extension = std::make_unique<IoSlots>(lane);
  return static_cast<IoSlots&>(*lane.extension);
}

void IoSlots::wait(bdev::IoRequest& request) {
  request.device_next = nullptr;
  (waiting_tail_ == nullptr ? waiting_head_ : waiting_tail_->device_next) = &request;
  waiting_tail_ = &request;
}

void IoSlots::drive_waiting() {
  // Not nested: a piece that completes at once comes back here.
  if (waking_) return;
  waking_ = true;
  while (waiting_head_ != nullptr && free_ != nullptr && !free_large_.empty()) {
    bdev::IoRequest* request = waiting_head_;
    waiting_head_ = request->device_next;
    if (waiting_head_ == nullptr) waiting_tail_ = nullptr;
    VolumeChannel::drive(*request);
  }
  waking_ = false;
}

}  // namespace pollux::volume
