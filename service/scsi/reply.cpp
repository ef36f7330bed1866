#include "scsi/reply.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "scsi/mode_pages.h"

namespace pollux::scsi {

void finish_good(LunChannel& channel, Task& task, std::uint64_t transferred_bytes) {
  task.status = ScsiStatus::kGood;
  task.transferred_bytes = transferred_bytes;
  channel.complete(task);
}

void finish_with_data(LunChannel& channel, Task& task, std::span<const std::uint8_t> data,
                      std::uint64_t allocation_length) {
  const std::size_t length = std::min<std::uint64_t>(data.size(), allocation_length);
  const std::size_t copied = copy_to_data_in(task, data.first(length));
  finish_good(channel, task, copied);
}

void finish_with_status(LunChannel& channel, Task& task, ScsiStatus status) {
  task.status = status;
  channel.complete(task);
}

void finish_with_sense(LunChannel& channel, Task& task, const SenseData& data) {
  task.status = ScsiStatus::kCheckCondition;
  task.sense_length =
      static_cast<std::uint8_t>(encode_sense(data, channel.unit().mode_pages().descriptor_sense(), task.sense));
  channel.complete(task);
}

void finish_with_sense(LunChannel& channel, Task& task, const SenseCode& code) {
  finish_with_sense(channel, task, SenseData{.code = code});
}

void finish_invalid_cdb(LunChannel& channel, Task& task, std::uint16_t byte, std::optional<std::uint8_t> bit) {
  finish_with_sense(channel, task,
                    SenseData{.code = sense::kInvalidFieldInCdb, .field = FieldPointer{true, byte, bit}});
}

void finish_invalid_parameter(LunChannel& channel, Task& task, std::uint16_t byte, std::optional<std::uint8_t> bit) {
  finish_with_sense(channel, task,
                    SenseData{.code = sense::kInvalidFieldInParameters, .field = FieldPointer{false, byte, bit}});
}

void finish_overrun(LunChannel& channel, Task& task, std::uint16_t byte) {
  task.outcome = Outcome::kOverrun;
  finish_invalid_cdb(channel, task, byte);
}

void finish_device_error(LunChannel& channel, Task& task) {
  const Task::Io& io = task.work.io;
  task.transferred_bytes = 0;
  finish_with_sense(channel, task, to_sense(io.status, io.op));
}

bool copy_from_data_out(const Task& task, std::uint64_t offset, std::span<std::uint8_t> out) {
  std::size_t copied = 0;
  for (std::uint32_t i = 0; i < task.data_out_count && copied < out.size(); ++i) {
    const iovec& piece = task.data_out[i];
    if (offset >= piece.iov_len) {
      offset -= piece.iov_len;
      continue;
    }
    const std::size_t now = std::min<std::size_t>(piece.iov_len - offset, out.size() - copied);
    std::memcpy(out.data() + copied, static_cast<const std::uint8_t*>(piece.iov_base) + offset, now);
    copied += now;
    offset = 0;
  }
  return copied == out.size();
}

std::size_t copy_to_data_in(Task& task, std::span<const std::uint8_t> data) {
  std::size_t copied = 0;
  for (std::uint32_t i = 0; i < task.data_in_count && copied < data.size(); ++i) {
    const std::size_t now = std::min<std::size_t>(task.data_in[i].iov_len, data.size() - copied);
    std::memcpy(task.data_in[i].iov_base, data.data() + copied, now);
    copied += now;
  }
  return copied;
}

void trim(iovec* iov, std::uint32_t& count, std::uint64_t bytes) {
  std::uint32_t kept = 0;
  while (bytes > 0) {
    assert(kept < count);
    iov[kept].iov_len = std::min<std::uint64_t>(iov[kept].iov_len, bytes);
    bytes -= iov[kept].iov_len;
    ++kept;
  }
  count = kept;
}

void drop_front(iovec*& iov, std::uint32_t& count, std::uint64_t bytes) {
  while (count > 0 && bytes >= iov->iov_len) {
    bytes -= iov->iov_len;
    ++iov;
    --count;
  }
  if (bytes > 0) {
    assert(count > 0);
    iov->iov_base = static_cast<std::uint8_t*>(iov->iov_base) + bytes;
    iov->iov_len -= bytes;
  }
}

std::optional<std::uint64_t> first_difference(const Task& task, std::uint64_t offset,
                                              std::span<const std::uint8_t> data) {
  std::uint64_t compared = 0;
  for (std::uint32_t i = 0; i < task.data_out_count && compared < data.size(); ++i) {
    const iovec& piece = task.data_out[i];
    if (offset >= piece.iov_len) {
      offset -= piece.iov_len;
      continue;
    }
    const auto* at = static_cast<const std::uint8_t*>(piece.iov_base) + offset;
    const std::size_t now = std::min<std::uint64_t>(piece.iov_len - offset, data.size() - compared);
    if (std::memcmp(at, data.data() + compared, now) != 0) {
      // The buffer may change meanwhile: then there is no byte left that differs, and the answer is still "differs".
      std::size_t same = 0;
      while (same + 1 < now && at[same] == data[compared + same]) ++same;
      return compared + same;
    }
    compared += now;
    offset = 0;
  }
  if (compared < data.size()) return compared;
  return std::nullopt;
}

bool copy_parameters(LunChannel& channel, Task& task, std::uint16_t length_byte, std::span<std::uint8_t> out) {
  if (copy_from_data_out(task, 0, out)) return true;
  finish_overrun(channel, task, length_byte);
  return false;
}

}  // namespace pollux::scsi
