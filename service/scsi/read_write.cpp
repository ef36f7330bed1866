// READ, WRITE (SBC-4 5.14 to 5.17, 5.46 to 5.50), SYNCHRONIZE CACHE, PRE-FETCH.

#include <algorithm>
#include <cassert>

#include "base/units.h"
#include "scsi/block_range.h"
#include "scsi/handlers.h"
#include "scsi/limits.h"
#include "scsi/mode_pages.h"
#include "scsi/reply.h"

namespace pollux::scsi {

namespace {

constexpr std::uint8_t kFuaBit = 0x08;

bool has_fua(const Task& task) {
  // The 6-byte commands have address bits there.
  return task.cdb[0] >> 5 != 0 && (task.cdb[1] & kFuaBit) != 0;
}

inline void aim(const LunChannel& channel, Task& task, bdev::IoOp op) {
  Task::Io& io = task.work.io;
  io.op = op;
  io.offset_bytes = task.work.lba << channel.unit().block_shift();
  io.length_bytes = task.work.blocks << channel.unit().block_shift();
}

// A command of more than kStepBytes. Work::step_blocks is the step under way, data_offset what the last piece of its
// list has beyond it.
struct List {
  iovec*& pieces;
  std::uint32_t& count;
};
List list_of(Task& task) {
  const bool reads = task.work.io.op == bdev::IoOp::kRead;
  return reads ? List{task.data_in, task.data_in_count} : List{task.data_out, task.data_out_count};
}

void step_done(LunChannel& channel, Task& task);

void next_step(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  const std::uint32_t shift = channel.unit().block_shift();
  const List list = list_of(task);
  work.step_blocks = std::min<std::uint64_t>(work.blocks - work.done_blocks, kStepBytes >> shift);
  if (work.done_blocks != 0) work.io.flags |= bdev::IoRequest::kContinues;
  work.io.offset_bytes = (work.lba + work.done_blocks) << shift;
  work.io.length_bytes = work.step_blocks << shift;
  work.io.iov = list.pieces;
  work.io.iov_count = 0;
  std::uint64_t covered = 0;
  while (covered < work.io.length_bytes) covered += list.pieces[work.io.iov_count++].iov_len;
  work.data_offset = covered - work.io.length_bytes;
  list.pieces[work.io.iov_count - 1].iov_len -= work.data_offset;
  channel.to_device(task, &step_done);
}

void step_done(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  work.done_blocks += work.step_blocks;
  if (work.done_blocks == work.blocks) {
    return finish_good(channel, task, work.blocks << channel.unit().block_shift());
  }
  const List list = list_of(task);
  list.pieces += work.io.iov_count;
  list.count -= work.io.iov_count;
  if (work.data_offset != 0) {
    iovec& last = *--list.pieces;
    ++list.count;
    last.iov_base = static_cast<std::uint8_t*>(last.iov_base) + last.iov_len;
    last.iov_len = work.data_offset;
  }
  next_step(channel, task);
}

[[gnu::always_inline]] inline void read_here(LunChannel& channel, Task& task) {
  Task::Io& io = task.work.io;
  aim(channel, task, bdev::IoOp::kRead);
  if (io.length_bytes > kStepBytes) [[unlikely]]
    return next_step(channel, task);
  if (task.data_in_bytes != io.length_bytes) trim(task.data_in, task.data_in_count, io.length_bytes);
  assert(task.data_in_count <= UINT16_MAX);
  io.iov = task.data_in;
  io.iov_count = static_cast<std::uint16_t>(task.data_in_count);
  channel.to_device_and_finish(task, io.length_bytes);
}

void read_now(LunChannel& channel, Task& task) {
  read_here(channel, task);
}

[[gnu::always_inline]] inline bool accept_here(LunChannel& channel, Task& task, const BlockRange& range) {
  if (!range_fits(range.lba, range.blocks, channel.unit().size_blocks())) [[unlikely]] {
    finish_with_sense(channel, task, sense::kLbaOutOfRange);
    return false;
  }
  task.work.lba = range.lba;
  task.work.blocks = range.blocks;
  return true;
}

// A transfer whose data the task's buffer of `buffer_bytes` holds.
[[gnu::always_inline]] inline bool prepare_transfer(LunChannel& channel, Task& task, std::uint64_t buffer_bytes) {
  const BlockRange range = decode_range(task.cdb.data());
  if (!accept_here(channel, task, range)) [[unlikely]]
    return false;
  const std::uint64_t bytes = range.blocks << channel.unit().block_shift();
  if (bytes <= std::min(buffer_bytes, kMaxTransferBytes)) [[likely]]
    return true;
  if (check_transfer_length(channel, task, range)) finish_overrun(channel, task, range.length_byte);
  return false;
}

}  // namespace

bool accept_range(LunChannel& channel, Task& task, const BlockRange& range) {
  return accept_here(channel, task, range);
}

bool check_transfer_length(LunChannel& channel, Task& task, const BlockRange& range) {
  if (range.blocks <= max_transfer_blocks(channel.unit())) return true;
  finish_invalid_cdb(channel, task, range.length_byte);
  return false;
}

bool prepare_range(LunChannel& channel, Task& task) {
  return accept_range(channel, task, decode_range(task.cdb.data()));
}

bool prepare_read(LunChannel& channel, Task& task) {
  return prepare_transfer(channel, task, task.data_in_bytes);
}

bool prepare_write(LunChannel& channel, Task& task) {
  return prepare_transfer(channel, task, task.data_out_bytes);
}

void read(LunChannel& channel, Task& task) {
  if (task.work.blocks == 0) return finish_good(channel, task);
  if (!has_fua(task)) [[likely]]
    return read_here(channel, task);
  // SBC-4 4.15.2: what a read with FUA returns is on the medium.
  task.work.io.op = bdev::IoOp::kFlush;
  task.work.io.length_bytes = 0;
  task.work.io.iov_count = 0;
  channel.to_device(task, &read_now);
}

void write(LunChannel& channel, Task& task) {
  if (task.work.blocks == 0) return finish_good(channel, task);
  Task::Io& io = task.work.io;
  aim(channel, task, bdev::IoOp::kWrite);
  if (has_fua(task) || !channel.unit().mode_pages().write_cache()) io.flags = bdev::IoRequest::kFua;
  if (io.length_bytes > kStepBytes) [[unlikely]]
    return next_step(channel, task);
  if (task.data_out_bytes != io.length_bytes) trim(task.data_out, task.data_out_count, io.length_bytes);
  assert(task.data_out_count <= UINT16_MAX);
  io.iov = task.data_out;
  io.iov_count = static_cast<std::uint16_t>(task.data_out_count);
  channel.to_device_and_finish(task, io.length_bytes);
}

// The whole device, whatever the range; IMMED asks for no more than that.
void synchronize_cache(LunChannel& channel, Task& task) {
  task.work.io.op = bdev::IoOp::kFlush;
  task.work.io.offset_bytes = 0;
  task.work.io.length_bytes = 0;
  task.work.io.iov_count = 0;
  channel.to_device_and_finish(task, 0);
}

// SBC-4 5.10: GOOD rather than CONDITION MET, since not all of it need be in a cache.
void pre_fetch(LunChannel& channel, Task& task) {
  finish_good(channel, task);
}

}  // namespace pollux::scsi
