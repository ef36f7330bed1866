#pragma once
// Disk: reads, writes and flushes as requests of one of the two transports. BlkDisk speaks virtio-blk, ScsiDisk
// virtio-scsi to one logical unit.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "initiator/front_end.h"

namespace pollux::initiator {

// What status bytes hold before the answer: the service never writes it.
inline constexpr std::uint8_t kNoAnswer = 0xee;

enum class Op : std::uint8_t { kRead, kWrite, kFlush, kDiscard, kWriteZeroes };

// Guest memory for one request at a time.
struct IoSlot {
  IoSlot(GuestRam& ram, std::uint32_t data_bytes);
  std::byte* header;
  std::byte* answer;
  std::byte* data;
  std::uint32_t data_bytes;
};

class Disk {
 public:
  virtual ~Disk() = default;
  // The first virtqueue that takes requests.
  virtual std::uint16_t first_queue() const = 0;
  // Fills header and answer of the slot, and says which segments make the request. Data go in pieces of `piece_bytes`
  // (0: one).
  virtual std::vector<Segment> build(GuestRam& ram, IoSlot& slot, Op op, std::uint64_t offset_bytes,
                                     std::uint32_t bytes, std::uint32_t piece_bytes) const = 0;
  // Empty when the answer in the slot says that all is well, else what it says.
  virtual std::string verdict(const IoSlot& slot) const = 0;
};

class BlkDisk final : public Disk {
 public:
  std::uint16_t first_queue() const override { return 0; }
  std::vector<Segment> build(GuestRam& ram, IoSlot& slot, Op op, std::uint64_t offset_bytes, std::uint32_t bytes,
                             std::uint32_t piece_bytes) const override;
  std::string verdict(const IoSlot& slot) const override;
};

class ScsiDisk final : public Disk {
 public:
  ScsiDisk(std::uint8_t target, std::uint16_t lun, std::uint32_t block_bytes)
      : target_(target), lun_(lun), block_bytes_(block_bytes) {}
  std::uint16_t first_queue() const override { return 2; }
  std::vector<Segment> build(GuestRam& ram, IoSlot& slot, Op op, std::uint64_t offset_bytes, std::uint32_t bytes,
                             std::uint32_t piece_bytes) const override;
  std::string verdict(const IoSlot& slot) const override;

  // Any CDB: the segments for it, data after what build() would put there.
  std::vector<Segment> command(GuestRam& ram, IoSlot& slot, std::span<const std::uint8_t> cdb, std::uint32_t out_bytes,
                               std::uint32_t in_bytes, std::uint32_t piece_bytes = 0) const;
  static const ScsiResponse& answer(const IoSlot& slot) { return *reinterpret_cast<const ScsiResponse*>(slot.answer); }

 private:
  std::uint8_t target_;
  std::uint16_t lun_;
  std::uint32_t block_bytes_;
};

// Shows the request to the device and waits for its answer; returns the bytes that the device says it wrote. Nothing
// else may be in flight on the queue. Throws after the deadline.
std::uint32_t run_request(FrontEnd& front_end, std::uint16_t queue, std::span<const Segment> segments,
                          int deadline_ms = 30000);
// build() and run_request(); the verdict.
std::string run_io(FrontEnd& front_end, std::uint16_t queue, const Disk& disk, IoSlot& slot, Op op,
                   std::uint64_t offset_bytes, std::uint32_t bytes, std::uint32_t piece_bytes = 0);

}  // namespace pollux::initiator
