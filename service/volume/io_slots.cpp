#include "volume/io_slots.h"

#include <new>

#include "base/units.h"
#include "volume/volume_channel.h"

namespace pollux::volume {

namespace {

constexpr std::size_t kSlots = 512;
constexpr std::size_t kLargeSlices = 32;
constexpr std::size_t kBlockParts = 64;
// Of all volumes of the lane together.
constexpr std::uint32_t kClearsPerTurn = 64;

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
  next_turn_.slots = this;
  next_turn_.run = [](reactor::Message& message) { static_cast<NextTurn&>(message).slots->begin_turn(); };
  free_large_.reserve(kLargeSlices);
  for (auto& slice : large_) free_large_.push_back(&slice);
  const std::size_t block_bytes = lane.lanes().data_device().block_bytes();
  if (block_bytes <= kSectorBytes) return;
  part_blocks_.reset(memory::allocate(kBlockParts * block_bytes, block_bytes));
  if (!part_blocks_) throw std::bad_alloc();
  parts_.resize(kBlockParts);
  free_parts_.reserve(kBlockParts);
  for (std::size_t i = 0; i < kBlockParts; ++i) {
    parts_[i].block = static_cast<std::byte*>(part_blocks_.get()) + i * block_bytes;
    parts_[i].whole = {parts_[i].block, block_bytes};
    free_parts_.push_back(&parts_[i]);
  }
}

IoSlots& IoSlots::of(blob::Lane& lane) {
  if (!lane.extension) lane.extension = std::make_unique<IoSlots>(lane);
  return static_cast<IoSlots&>(*lane.extension);
}

void IoSlots::drive_waiting() {
  // Not nested: a piece that completes at once comes back here.
  if (waking_) return;
  waking_ = true;
  while (!waiting_.empty() && free_ != nullptr && !free_large_.empty() && (parts_.empty() || !free_parts_.empty())) {
    VolumeChannel::drive(waiting_.pop());
  }
  waking_ = false;
}

bool IoSlots::take_clear() {
  if (clears_taken_ == kClearsPerTurn) return false;
  if (clears_taken_++ == 0) lane_.reactor().next_turn(next_turn_);
  return true;
}

void IoSlots::begin_turn() {
  clears_taken_ = 0;
  while (!waiting_for_clear_.empty() && clears_taken_ < kClearsPerTurn) {
    VolumeChannel::drive(waiting_for_clear_.pop());
  }
}

}  // namespace pollux::volume
