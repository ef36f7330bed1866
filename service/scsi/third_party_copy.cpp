// EXTENDED COPY (LID1) (SPC-4 6.4) and RECEIVE COPY RESULTS (6.18, 6.21), within one logical unit.
//
// The parameter list stays in the front of the task's scratch buffer, the data goes through the rest of it. A copy runs
// to its end before the command answers, so its status is always a final one.

#include <algorithm>
#include <array>
#include <mutex>

#include "scsi/bytes.h"
#include "scsi/copy_list.h"
#include "scsi/handlers.h"
#include "scsi/mode_pages.h"
#include "scsi/reply.h"
#include "scsi/scratch.h"
#include "scsi/tenant.h"

namespace pollux::scsi {

namespace {

// Where data begins in the scratch buffer: past the list, aligned for the device.
constexpr std::size_t kDataOffset = 4096;
static_assert(kMaxCopyListBytes <= kDataOffset);
constexpr std::size_t kDataBytes = kScratchBytes - kDataOffset;

std::uint32_t list_length(const Task& task) {
  return get_be32(task.cdb.data() + 10);
}

CopyList list_of(Task& task) {
  return CopyList({task.work.scratch->data(), list_length(task)});
}

void keep_status(LunChannel& channel, Task& task, bool failed) {
  const CopyList list = list_of(task);
  if (!list.keeps_status()) return;
  std::lock_guard lock(channel.unit().mutex());
  channel.nexus().copy_results().keep(
      {.list_id = list.list_id(), .failed = failed, .segments = task.work.step, .bytes = task.work.data_offset});
}

// Where the next piece of the segment lies. Backwards when the destination overlaps the end of the source, so that no
// block is overwritten before it was read.
std::uint64_t piece_offset(const CopySegment& segment, const Task::Work& work) {
  const bool backwards =
      segment.destination_lba > segment.source_lba && segment.destination_lba < segment.source_lba + segment.blocks;
  return backwards ? segment.blocks - work.done_blocks - work.step_blocks : work.done_blocks;
}

void aim(const LunChannel& channel, Task& task, bdev::IoOp op, std::uint64_t lba) {
  Task::Work& work = task.work;
  const std::uint32_t shift = channel.unit().block_shift();
  work.piece = {work.scratch->data() + kDataOffset, work.step_blocks << shift};
  work.io.op = op;
  work.io.flags = 0;
  if (op == bdev::IoOp::kWrite && !channel.unit().mode_pages().write_cache()) work.io.flags = bdev::IoRequest::kFua;
  if (work.done_blocks != 0) work.io.flags |= bdev::IoRequest::kContinues;
  work.io.offset_bytes = lba << shift;
  work.io.length_bytes = work.piece.iov_len;
  work.io.iov = &work.piece;
  work.io.iov_count = 1;
}

void copy_next(LunChannel& channel, Task& task);

void piece_written(LunChannel& channel, Task& task) {
  task.work.done_blocks += task.work.step_blocks;
  task.work.data_offset += task.work.step_blocks << channel.unit().block_shift();
  copy_next(channel, task);
}

void piece_read(LunChannel& channel, Task& task) {
  const CopySegment segment = list_of(task).segment(task.work.step);
  aim(channel, task, bdev::IoOp::kWrite, segment.destination_lba + piece_offset(segment, task.work));
  channel.to_device(task, &piece_written);
}

// work.step is the segment, work.done_blocks what is done of it, work.data_offset the bytes copied in all.
void copy_next(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  const CopyList list = list_of(task);
  while (work.step < list.segment_count()) {
    const CopySegment segment = list.segment(work.step);
    if (work.done_blocks == segment.blocks) {
      ++work.step;
      work.done_blocks = 0;
      continue;
    }
    work.step_blocks =
        std::min<std::uint64_t>(segment.blocks - work.done_blocks, kDataBytes >> channel.unit().block_shift());
    aim(channel, task, bdev::IoOp::kRead, segment.source_lba + piece_offset(segment, work));
    channel.to_device(task, &piece_read);
    return;
  }
  keep_status(channel, task, /*failed=*/false);
  finish_good(channel, task, list_length(task));
}

void start_copy(LunChannel& channel, Task& task) {
  if (!copy_parameters(channel, task, 10, {task.work.scratch->data(), list_length(task)})) return;
  if (const auto wrong = list_of(task).check(channel.unit())) return finish_with_sense(channel, task, *wrong);
  // Says "failed" until the copy has come to its end: a device error ends the task elsewhere.
  keep_status(channel, task, /*failed=*/true);
  copy_next(channel, task);
}

}  // namespace

bool prepare_extended_copy(LunChannel& channel, Task& task) {
  const std::uint32_t length = list_length(task);
  // The ranges are in the parameter list, which is read later: any exclusive range holds it back.
  task.work.lba = 0;
  task.work.blocks = channel.unit().size_blocks();
  if (length == 0) {
    finish_good(channel, task);
    return false;
  }
  if (length < kCopyHeaderBytes || length > kMaxCopyListBytes) {
    finish_with_sense(channel, task, sense::kParameterListLength);
    return false;
  }
  if (length > task.data_out_bytes) {
    finish_overrun(channel, task, 10);
    return false;
  }
  return true;
}

void extended_copy(LunChannel& channel, Task& task) {
  channel.tenant().acquire_scratch(task, &start_copy);
}

// SPC-4 6.18: a status is told once.
void receive_copy_status(LunChannel& channel, Task& task) {
  const std::uint8_t list_id = task.cdb[2];
  std::optional<CopyResult> result;
  {
    std::lock_guard lock(channel.unit().mutex());
    result = channel.nexus().copy_results().pop(list_id);
  }
  if (!result) return finish_invalid_cdb(channel, task, 2);
  std::array<std::uint8_t, 12> bytes{};
  put_be32(bytes.data(), 8);
  bytes[4] = result->failed ? 0x02 : 0x01;
  put_be16(bytes.data() + 5, result->segments);
  // TRANSFER COUNT in bytes, KiB, MiB: the first that fits 32 bits.
  std::uint64_t count = result->bytes;
  for (; count > UINT32_MAX; count >>= 10) ++bytes[7];
  put_be32(bytes.data() + 8, static_cast<std::uint32_t>(count));
  finish_with_data(channel, task, bytes, list_length(task));
}

void receive_copy_parameters(LunChannel& channel, Task& task) {
  std::array<std::uint8_t, 46> bytes{};
  put_be32(bytes.data(), static_cast<std::uint32_t>(bytes.size() - 4));
  put_be16(bytes.data() + 8, kMaxCopyTargets);
  put_be16(bytes.data() + 10, kMaxCopySegments);
  put_be32(bytes.data() + 12, kMaxCopyDescriptorBytes);
  put_be32(bytes.data() + 16, UINT16_MAX << channel.unit().block_shift());
  put_be16(bytes.data() + 34, kScratchBuffers);
  bytes[36] = kScratchBuffers;
  bytes[37] = static_cast<std::uint8_t>(channel.unit().block_shift());
  bytes[43] = 2;
  bytes[44] = kBlockToBlock;
  bytes[45] = kIdentificationTarget;
  finish_with_data(channel, task, bytes, list_length(task));
}

}  // namespace pollux::scsi
