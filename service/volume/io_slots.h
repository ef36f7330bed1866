#pragma once
// IoSlots: the preallocated memory of the data path, one set a lane (a pool on a reactor), shared by all volumes of the
// pool there. A guest request that is cut at cluster borders, or that goes to the home reactor, takes a slot for each
// piece; when none is left the request waits here and goes on when one comes back, the volumes in turns. So does one that
// gives space back: a single request may do that in thousands of clusters, each done at once. On the lane's reactor.

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/memory.h"
#include "bdev/bdev.h"
#include "bdev/fair_queue.h"
#include "blob/home_io.h"
#include "blob/journal.h"
#include "blob/lanes.h"

namespace pollux::volume {

class IoSlots;
class VolumeChannel;

// A front end's request has at most 256 iovecs; cutting one at both ends adds none.
inline constexpr std::size_t kMaxIovecs = 258;
inline constexpr std::size_t kSmallSlice = 8;

struct LargeSlice {
  std::array<iovec, kMaxIovecs> iov;
};

// For a read of less than a block of the device: the whole block, and what of it goes where.
struct BlockPart {
  std::byte* block = nullptr;
  iovec whole{};
  std::uint32_t offset = 0;
  std::uint32_t length = 0;
  const iovec* iov = nullptr;
  std::uint16_t iov_count = 0;
};

// One piece of a guest's request.
struct IoSlot {
  struct Device : bdev::IoRequest {
    IoSlot* slot = nullptr;
  } device;
  struct Home : blob::HomeIo {
    IoSlot* slot = nullptr;
  } home;
  struct Flush : blob::Journal::Waiter {
    IoSlot* slot = nullptr;
  } flush;
  IoSlots* owner = nullptr;
  bdev::IoRequest* parent = nullptr;
  unsigned epoch = 0;
  bool resumes = false;  // the parent is cut further when this is done
  LargeSlice* large = nullptr;
  BlockPart* part = nullptr;
  IoSlot* next = nullptr;
  std::array<iovec, kSmallSlice> small;
};

class IoSlots : public blob::LaneExtension {
 public:
  explicit IoSlots(blob::Lane& lane);

  static IoSlots& of(blob::Lane& lane);

  blob::Lane& lane() { return lane_; }
  // nullptr: none left.
  IoSlot* take() {
    IoSlot* slot = free_;
    if (slot != nullptr) free_ = slot->next;
    return slot;
  }
  LargeSlice* take_large() {
    if (free_large_.empty()) return nullptr;
    LargeSlice* slice = free_large_.back();
    free_large_.pop_back();
    return slice;
  }
  // nullptr: none left. There are none at all where no volume can have smaller blocks than the device.
  BlockPart* take_part() {
    if (free_parts_.empty()) return nullptr;
    BlockPart* part = free_parts_.back();
    free_parts_.pop_back();
    return part;
  }
  void give_back_part(BlockPart& part) { free_parts_.push_back(&part); }
  void give_back(IoSlot& slot) {
    if (slot.large != nullptr) [[unlikely]]
      free_large_.push_back(std::exchange(slot.large, nullptr));
    slot.next = free_;
    free_ = &slot;
  }
  // For a channel: its requests are one of the streams that take turns. 0 is the pool's own.
  std::uint8_t next_stream() { return last_stream_ = static_cast<std::uint8_t>(last_stream_ % kLastStream + 1); }
  // The request goes on, by VolumeChannel::drive, when a slot or slice has come back.
  void wait(bdev::IoRequest& request) { waiting_.push(request); }
  void wake_waiting() {
    if (!waiting_.empty()) [[unlikely]]
      drive_waiting();
  }
  // Whether one more cluster may be cleared in this turn of the reactor.
  bool take_clear();
  // After take_clear() said no: the request goes on in a later turn, by VolumeChannel::drive.
  void wait_for_clear(bdev::IoRequest& request) { waiting_for_clear_.push(request); }

 private:
  void drive_waiting();
  void begin_turn();

  blob::Lane& lane_;
  memory::Vector<IoSlot> slots_;
  memory::Vector<LargeSlice> large_;
  IoSlot* free_ = nullptr;
  std::vector<LargeSlice*> free_large_;
  std::unique_ptr<void, memory::Release> part_blocks_;
  std::vector<BlockPart> parts_;
  std::vector<BlockPart*> free_parts_;
  static constexpr std::uint8_t kLastStream = bdev::FairQueue::kStreams - 1;
  std::uint8_t last_stream_ = 0;
  bdev::FairQueue waiting_;
  bool waking_ = false;
  // Posted while some of a turn's clears are taken.
  struct NextTurn : reactor::Message {
    IoSlots* slots = nullptr;
  } next_turn_;
  std::uint32_t clears_taken_ = 0;
  bdev::FairQueue waiting_for_clear_;
};

}  // namespace pollux::volume
