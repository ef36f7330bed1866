// VERIFY (SBC-4 5.36 to 5.38) and WRITE AND VERIFY (5.51 to 5.53).
//
// What the medium holds is read into scratch memory, piece by piece, and compared there. With BYTCHK 00b the read is
// all there is to it: the device checks what it stores. WRITE AND VERIFY goes in steps of kStepBytes, each of which is written
// and verified before the next; Work::data_offset is where in the command's data the step under way begins, and with it
// what is left of data_out.

#include <algorithm>
#include <utility>

#include "scsi/block_range.h"
#include "scsi/handlers.h"
#include "scsi/limits.h"
#include "scsi/reply.h"
#include "scsi/scratch.h"
#include "scsi/tenant.h"

namespace pollux::scsi {

namespace {

enum ByteCheck : std::uint8_t { kMediumOnly = 0, kAllBlocks = 1, kReserved = 2, kOneBlock = 3 };

ByteCheck byte_check(const Task& task) {
  return static_cast<ByteCheck>(task.cdb[1] >> 1 & 3);
}

bool is_write_and_verify(const Task& task) {
  return (task.cdb[0] & 0x1f) == 0x0e;
}

// Bytes of data_out that the command uses.
std::uint64_t data_out_bytes(const LunChannel& channel, const Task& task) {
  const std::uint64_t all = task.work.blocks << channel.unit().block_shift();
  if (is_write_and_verify(task)) return all;
  switch (byte_check(task)) {
    case kAllBlocks:
      return all;
    case kOneBlock:
      return task.work.blocks == 0 ? 0 : channel.unit().block_bytes();
    default:
      return 0;
  }
}

void read_piece(LunChannel& channel, Task& task);
void write_step(LunChannel& channel, Task& task);

// Nothing, or the offset in data_out of the first byte that is not what the medium holds.
std::optional<std::uint64_t> find_difference(const LunChannel& channel, Task& task) {
  const std::uint32_t shift = channel.unit().block_shift();
  const std::span<const std::uint8_t> piece(task.work.scratch->data(), task.work.step_blocks << shift);
  switch (byte_check(task)) {
    case kAllBlocks: {
      const std::uint64_t offset = task.work.done_blocks << shift;
      const auto at = first_difference(task, offset - task.work.data_offset, piece);
      return at ? std::optional(offset + *at) : std::nullopt;
    }
    case kOneBlock:
      for (std::uint64_t block = 0; block < task.work.step_blocks; ++block) {
        if (const auto at = first_difference(task, 0, piece.subspan(block << shift, 1u << shift))) return at;
      }
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

// The block before which there is something to verify now.
std::uint64_t verified_until(const LunChannel& channel, const Task& task) {
  if (!is_write_and_verify(task)) return task.work.blocks;
  return std::min(task.work.blocks, (task.work.data_offset + kStepBytes) >> channel.unit().block_shift());
}

void check_piece(LunChannel& channel, Task& task) {
  if (const auto at = find_difference(channel, task)) {
    return finish_with_sense(channel, task, SenseData{.code = sense::kMiscompareDuringVerify, .information = *at});
  }
  task.work.done_blocks += task.work.step_blocks;
  read_piece(channel, task);
}

void read_piece(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  const std::uint32_t shift = channel.unit().block_shift();
  if (work.done_blocks == work.blocks) return finish_good(channel, task, data_out_bytes(channel, task));
  const std::uint64_t end = verified_until(channel, task);
  if (work.done_blocks == end) {
    const std::uint64_t step_bytes = (end << shift) - work.data_offset;
    drop_front(task.data_out, task.data_out_count, step_bytes);
    work.data_offset += step_bytes;
    return write_step(channel, task);
  }
  work.step_blocks = std::min<std::uint64_t>(end - work.done_blocks, kScratchBytes >> shift);
  work.piece = {work.scratch->data(), work.step_blocks << shift};
  work.io.op = bdev::IoOp::kRead;
  work.io.flags = work.done_blocks == 0 ? 0 : bdev::IoRequest::kContinues;
  work.io.offset_bytes = (work.lba + work.done_blocks) << shift;
  work.io.length_bytes = work.piece.iov_len;
  work.io.iov = &work.piece;
  work.io.iov_count = 1;
  channel.to_device(task, &check_piece);
}

void verify_written(LunChannel& channel, Task& task) {
  // The step's last piece in full again.
  task.data_out[task.work.io.iov_count - 1].iov_len += std::exchange(task.work.piece, {}).iov_len;
  if (task.work.scratch != nullptr) return read_piece(channel, task);
  channel.tenant().acquire_scratch(task, &read_piece);
}

void write_step(LunChannel& channel, Task& task) {
  Task::Work& work = task.work;
  const std::uint32_t shift = channel.unit().block_shift();
  work.io.op = bdev::IoOp::kWrite;
  // What is verified is what the medium holds, so it has to be there.
  work.io.flags = bdev::IoRequest::kFua;
  if (work.data_offset != 0) work.io.flags |= bdev::IoRequest::kContinues;
  work.io.offset_bytes = (work.lba << shift) + work.data_offset;
  work.io.length_bytes = (verified_until(channel, task) << shift) - work.data_offset;
  work.io.iov = task.data_out;
  work.io.iov_count = 0;
  std::uint64_t covered = 0;
  while (covered < work.io.length_bytes) covered += task.data_out[work.io.iov_count++].iov_len;
  // What the last piece has beyond the step.
  work.piece = {nullptr, covered - work.io.length_bytes};
  task.data_out[work.io.iov_count - 1].iov_len -= work.piece.iov_len;
  channel.to_device(task, &verify_written);
}

}  // namespace

bool prepare_verify(LunChannel& channel, Task& task) {
  const BlockRange range = decode_range(task.cdb.data());
  if (byte_check(task) == kReserved) {
    finish_invalid_cdb(channel, task, 1, 2);
    return false;
  }
  if (!accept_range(channel, task, range)) return false;
  if (byte_check(task) == kAllBlocks && !check_transfer_length(channel, task, range)) return false;
  if (data_out_bytes(channel, task) <= task.data_out_bytes) return true;
  finish_overrun(channel, task, range.length_byte);
  return false;
}

bool prepare_write_and_verify(LunChannel& channel, Task& task) {
  // SBC-4 5.51: 00b checks the medium, 01b the bytes; the others are reserved.
  if (byte_check(task) == kReserved || byte_check(task) == kOneBlock) {
    finish_invalid_cdb(channel, task, 1, 2);
    return false;
  }
  return prepare_write(channel, task);
}

void verify(LunChannel& channel, Task& task) {
  if (task.work.blocks == 0) return finish_good(channel, task);
  channel.tenant().acquire_scratch(task, &read_piece);
}

void write_and_verify(LunChannel& channel, Task& task) {
  if (task.work.blocks == 0) return finish_good(channel, task);
  write_step(channel, task);
}

}  // namespace pollux::scsi
