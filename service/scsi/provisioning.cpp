// UNMAP (SBC-4 5.35), WRITE SAME (5.54, 5.55), GET LBA STATUS (5.6).
//
// LBPRZ promises zeros after an UNMAP, which a device's own unmap does not; so blocks are unmapped by writing zeroes
// with leave to free the space instead.

#include <algorithm>
#include <array>
#include <cstring>

#include "base/units.h"
#include "scsi/block_range.h"
#include "scsi/bytes.h"
#include "scsi/handlers.h"
#include "scsi/limits.h"
#include "scsi/mode_pages.h"
#include "scsi/reply.h"
#include "scsi/scratch.h"
#include "scsi/tenant.h"

namespace pollux::scsi {

namespace {

constexpr std::uint8_t kWriteSame16 = 0x93;
constexpr std::uint8_t kUnmapBit = 0x08;
constexpr std::uint8_t kNoDataOutBit = 0x01;
constexpr std::size_t kUnmapHeaderBytes = 8;
constexpr std::size_t kUnmapDescriptorBytes = 16;
constexpr std::size_t kMaxUnmapListBytes = kUnmapHeaderBytes + kMaxUnmapDescriptors * kUnmapDescriptorBytes;
static_assert(kMaxUnmapListBytes <= kScratchBytes);

struct UnmapDescriptor {
  std::uint64_t lba;
  std::uint32_t blocks;
};
UnmapDescriptor unmap_descriptor(Task& task, std::uint64_t index) {
  const std::uint8_t* at = task.work.scratch->data() + kUnmapHeaderBytes + index * kUnmapDescriptorBytes;
  return {get_be64(at), get_be32(at + 8)};
}

void aim_zeroes(const LunChannel& channel, Task& task, std::uint64_t lba, std::uint64_t blocks, bool may_unmap) {
  Task::Io& io = task.work.io;
  io.op = bdev::IoOp::kWriteZeroes;
  io.flags = may_unmap ? bdev::IoRequest::kMayUnmap : 0;
  if (!channel.unit().mode_pages().write_cache()) io.flags |= bdev::IoRequest::kFua;
  io.offset_bytes = lba << channel.unit().block_shift();
  io.length_bytes = blocks << channel.unit().block_shift();
  io.iov = nullptr;
  io.iov_count = 0;
}

// work.done_blocks counts descriptors here, of which there are work.step_blocks.
void unmap_next(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  while (work.done_blocks < work.step_blocks) {
    const UnmapDescriptor descriptor = unmap_descriptor(task, work.done_blocks++);
    if (descriptor.blocks == 0) continue;
    aim_zeroes(channel, task, descriptor.lba, descriptor.blocks, /*may_unmap=*/true);
    channel.to_device(task, &unmap_next);
    return;
  }
  finish_good(channel, task, get_be16(task.cdb.data() + 7));
}

// Everything is checked before anything is unmapped.
void start_unmap(LunChannel& channel, Task& task) {
  const std::size_t length = get_be16(task.cdb.data() + 7);
  std::uint8_t* list = task.work.scratch->data();
  if (!copy_parameters(channel, task, 7, {list, std::min(length, kMaxUnmapListBytes)})) return;
  const std::size_t data_length = get_be16(list);
  const std::size_t descriptors_length = get_be16(list + 2);
  if (kUnmapHeaderBytes + descriptors_length > length) {
    return finish_with_sense(channel, task, sense::kParameterListLength);
  }
  if (data_length < descriptors_length + 6) return finish_invalid_parameter(channel, task, 0);
  // SBC-4 5.35.2: an incomplete descriptor at the end is ignored.
  const std::size_t count = descriptors_length / kUnmapDescriptorBytes;
  if (count > kMaxUnmapDescriptors) return finish_invalid_parameter(channel, task, 2);
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const UnmapDescriptor descriptor = unmap_descriptor(task, i);
    const auto at = static_cast<std::uint16_t>(kUnmapHeaderBytes + i * kUnmapDescriptorBytes);
    if (!range_fits(descriptor.lba, descriptor.blocks, channel.unit().size_blocks())) {
      return finish_with_sense(channel, task, sense::kLbaOutOfRange);
    }
    total += descriptor.blocks;
    if (total > kMaxUnmapBlocks) return finish_invalid_parameter(channel, task, static_cast<std::uint16_t>(at + 8));
  }
  task.work.step_blocks = count;
  unmap_next(channel, task);
}

void write_next_same(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  const std::uint32_t shift = channel.unit().block_shift();
  work.done_blocks += work.step_blocks;
  if (work.done_blocks == work.blocks) return finish_good(channel, task, channel.unit().block_bytes());
  work.step_blocks = std::min<std::uint64_t>(work.blocks - work.done_blocks, kScratchBytes >> shift);
  work.piece = {work.scratch->data(), work.step_blocks << shift};
  work.io.op = bdev::IoOp::kWrite;
  work.io.flags = channel.unit().mode_pages().write_cache() ? 0 : bdev::IoRequest::kFua;
  if (work.done_blocks != 0) work.io.flags |= bdev::IoRequest::kContinues;
  work.io.offset_bytes = (work.lba + work.done_blocks) << shift;
  work.io.length_bytes = work.piece.iov_len;
  work.io.iov = &work.piece;
  work.io.iov_count = 1;
  channel.to_device(task, &write_next_same);
}

void start_write_same(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  const std::uint32_t block_bytes = channel.unit().block_bytes();
  std::uint8_t* pattern = work.scratch->data();
  if (!copy_parameters(channel, task, 1, {pattern, block_bytes})) return;
  if (std::all_of(pattern, pattern + block_bytes, [](std::uint8_t byte) { return byte == 0; })) {
    aim_zeroes(channel, task, work.lba, work.blocks, (task.cdb[1] & kUnmapBit) != 0);
    return channel.to_device_and_finish(task, block_bytes);
  }
  const std::uint64_t copies = std::min<std::uint64_t>(work.blocks, kScratchBytes / block_bytes);
  for (std::uint64_t i = 1; i < copies; ++i) std::memcpy(pattern + i * block_bytes, pattern, block_bytes);
  work.step_blocks = 0;
  write_next_same(channel, task);
}

// SBC-4 5.6.2: the parameter data, and in its one descriptor the provisioning status: 0h mapped or unknown, 1h
// deallocated.
void finish_lba_status(LunChannel& channel, Task& task, std::uint64_t blocks, bool mapped) {
  std::array<std::uint8_t, 24> bytes{};
  put_be32(bytes.data(), static_cast<std::uint32_t>(bytes.size() - 4));
  put_be64(bytes.data() + 8, get_be64(task.cdb.data() + 2));
  put_be32(bytes.data() + 16, static_cast<std::uint32_t>(blocks));
  bytes[20] = mapped ? 0 : 1;
  finish_with_data(channel, task, bytes, get_be32(task.cdb.data() + 10));
}

void answer_lba_status(LunChannel& channel, Task& task) {
  const Task::Io& io = task.work.io;
  finish_lba_status(channel, task, io.length_bytes >> channel.unit().block_shift(),
                    (io.flags & bdev::IoRequest::kMapped) != 0);
}

}  // namespace

bool prepare_unmap(LunChannel& channel, Task& task) {
  const std::size_t length = get_be16(task.cdb.data() + 7);
  // The ranges are in the parameter list, which is read later: any exclusive range holds it back.
  task.work.lba = 0;
  task.work.blocks = channel.unit().size_blocks();
  if (length == 0) {
    finish_good(channel, task);
    return false;
  }
  if (length < kUnmapHeaderBytes) {
    finish_with_sense(channel, task, sense::kParameterListLength);
    return false;
  }
  if (length > task.data_out_bytes) {
    finish_overrun(channel, task, 7);
    return false;
  }
  return true;
}

void unmap(LunChannel& channel, Task& task) {
  channel.tenant().acquire_scratch(task, &start_unmap);
}

bool prepare_write_same(LunChannel& channel, Task& task) {
  const BlockRange range = decode_range(task.cdb.data());
  const bool no_data_out = task.cdb[0] == kWriteSame16 && (task.cdb[1] & kNoDataOutBit) != 0;
  if (!accept_range(channel, task, range)) return false;
  // WSNZ in VPD page B0h: zero blocks, which would mean all to the end, are refused.
  if (range.blocks == 0 || range.blocks > kMaxWriteSameBlocks) {
    finish_invalid_cdb(channel, task, range.length_byte);
    return false;
  }
  if ((task.cdb[1] & kUnmapBit) != 0 && !channel.unit().bdev().supports_unmap()) {
    finish_invalid_cdb(channel, task, 1, 3);
    return false;
  }
  // One block; a CDB with another length is the initiator's mistake.
  if (!no_data_out && task.data_out_bytes != channel.unit().block_bytes()) {
    finish_invalid_cdb(channel, task, range.length_byte);
    return false;
  }
  return true;
}

void write_same(LunChannel& channel, Task& task) {
  if (task.cdb[0] == kWriteSame16 && (task.cdb[1] & kNoDataOutBit) != 0) {
    aim_zeroes(channel, task, task.work.lba, task.work.blocks, (task.cdb[1] & kUnmapBit) != 0);
    return channel.to_device_and_finish(task, 0);
  }
  channel.tenant().acquire_scratch(task, &start_write_same);
}

// One descriptor is enough (SBC-4 5.6.2); who wants to know more asks again where it ends. All of a device that does
// not say what it has counts as mapped, which is a correct answer for blocks that may hold data.
void get_lba_status(LunChannel& channel, Task& task) {
  const std::uint64_t lba = get_be64(task.cdb.data() + 2);
  const std::uint64_t size = channel.unit().size_blocks();
  if (lba >= size) return finish_with_sense(channel, task, sense::kLbaOutOfRange);
  const std::uint64_t blocks = std::min<std::uint64_t>(size - lba, UINT32_MAX);
  if (!channel.unit().bdev().reports_extents()) return finish_lba_status(channel, task, blocks, /*mapped=*/true);
  Task::Io& io = task.work.io;
  io.op = bdev::IoOp::kExtent;
  io.flags = 0;
  io.offset_bytes = lba << channel.unit().block_shift();
  io.length_bytes = blocks << channel.unit().block_shift();
  io.iov = nullptr;
  io.iov_count = 0;
  channel.to_device(task, &answer_lba_status);
}

}  // namespace pollux::scsi
