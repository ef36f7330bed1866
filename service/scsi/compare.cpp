// COMPARE AND WRITE (SBC-4 5.3) and ORWRITE (5.8): read, look or merge, write, with the range exclusively
// else from the read to the end of the write.

#include <algorithm>

#include "scsi/block_range.h"
#include "scsi/bytes.h"
#include "scsi/exclusive.h"
#include "scsi/handlers.h"
#include "scsi/limits.h"
#include "scsi/mode_pages.h"
#include "scsi/reply.h"
#include "scsi/scratch.h"
#include "scsi/tenant.h"

namespace pollux::scsi {

namespace {

constexpr std::uint8_t kFuaBit = 0x08;

void aim_scratch(const LunChannel& channel, Task& task, bdev::IoOp op, std::uint64_t lba, std::uint64_t blocks) {
  Task::Work& work = task.work;
  const std::uint32_t shift = channel.unit().block_shift();
  work.piece = {work.scratch->data(), blocks << shift};
  work.io.op = op;
  work.io.flags = 0;
  work.io.offset_bytes = lba << shift;
  work.io.length_bytes = work.piece.iov_len;
  work.io.iov = &work.piece;
  work.io.iov_count = 1;
}

std::uint8_t write_flags(const LunChannel& channel, const Task& task) {
  const bool durable = (task.cdb[1] & kFuaBit) != 0 || !channel.unit().mode_pages().write_cache();
  return durable ? bdev::IoRequest::kFua : 0;
}

void get_scratch(LunChannel& channel, Task& task);

void compare_then_write(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  const std::uint64_t half = work.blocks << channel.unit().block_shift();
  if (const auto at = first_difference(task, 0, {work.scratch->data(), half})) {
    return finish_with_sense(channel, task, SenseData{.code = sense::kMiscompareDuringVerify, .information = *at});
  }
  drop_front(task.data_out, task.data_out_count, half);
  trim(task.data_out, task.data_out_count, half);
  work.io.op = bdev::IoOp::kWrite;
  work.io.flags = write_flags(channel, task);
  work.io.iov = task.data_out;
  work.io.iov_count = static_cast<std::uint16_t>(task.data_out_count);
  channel.to_device_and_finish(task, 2 * half);
}

void read_to_compare(LunChannel& channel, Task& task) {
  aim_scratch(channel, task, bdev::IoOp::kRead, task.work.lba, task.work.blocks);
  channel.to_device(task, &compare_then_write);
}

void read_to_merge(LunChannel& channel, Task& task);

void merged(LunChannel& channel, Task& task) {
  task.work.done_blocks += task.work.step_blocks;
  read_to_merge(channel, task);
}

void merge(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  const std::uint32_t shift = channel.unit().block_shift();
  std::uint64_t skip = work.done_blocks << shift;
  std::uint8_t* to = work.scratch->data();
  std::uint64_t left = work.step_blocks << shift;
  for (std::uint32_t i = 0; i < task.data_out_count && left > 0; ++i) {
    const iovec& piece = task.data_out[i];
    if (skip >= piece.iov_len) {
      skip -= piece.iov_len;
      continue;
    }
    const auto* from = static_cast<const std::uint8_t*>(piece.iov_base) + skip;
    const std::uint64_t now = std::min<std::uint64_t>(piece.iov_len - skip, left);
    for (std::uint64_t byte = 0; byte < now; ++byte) to[byte] |= from[byte];
    to += now;
    left -= now;
    skip = 0;
  }
  aim_scratch(channel, task, bdev::IoOp::kWrite, work.lba + work.done_blocks, work.step_blocks);
  work.io.flags = write_flags(channel, task);
  channel.to_device(task, &merged);
}

void read_to_merge(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  const std::uint32_t shift = channel.unit().block_shift();
  if (work.done_blocks == work.blocks) return finish_good(channel, task, work.blocks << shift);
  work.step_blocks = std::min<std::uint64_t>(work.blocks - work.done_blocks, kScratchBytes >> shift);
  aim_scratch(channel, task, bdev::IoOp::kRead, work.lba + work.done_blocks, work.step_blocks);
  channel.to_device(task, &merge);
}

// The range first, scratch memory after: who waits for a range holds nothing that others need to give it up.
void get_scratch(LunChannel& channel, Task& task) {
  constexpr std::uint8_t kCompareAndWrite = 0x89;
  channel.tenant().acquire_scratch(task, task.cdb[0] == kCompareAndWrite ? &read_to_compare : &read_to_merge);
}

}  // namespace

bool prepare_compare_and_write(LunChannel& channel, Task& task) {
  constexpr std::uint16_t kBlocksByte = 13;
  const BlockRange range{get_be64(task.cdb.data() + 2), task.cdb[kBlocksByte], kBlocksByte};
  if (!accept_range(channel, task, range)) return false;
  if (range.blocks > max_compare_blocks(channel.unit())) {
    finish_invalid_cdb(channel, task, kBlocksByte);
    return false;
  }
  if (2 * range.blocks << channel.unit().block_shift() > task.data_out_bytes) {
    finish_overrun(channel, task, kBlocksByte);
    return false;
  }
  return true;
}

void compare_and_write(LunChannel& channel, Task& task) {
  if (task.work.blocks == 0) return finish_good(channel, task);
  channel.unit().exclusive_ranges().acquire(task, &get_scratch);
}

void or_write(LunChannel& channel, Task& task) {
  if (task.work.blocks == 0) return finish_good(channel, task);
  channel.unit().exclusive_ranges().acquire(task, &get_scratch);
}

}  // namespace pollux::scsi
