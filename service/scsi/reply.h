#pragma once
// How a command ends its task, and how it gets at the task's buffers. Each finish_* completes the task: it must not be
// touched afterwards.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "scsi/lun_channel.h"
#include "scsi/sense.h"
#include "scsi/task.h"

namespace pollux::scsi {

// GOOD, with `transferred` bytes moved.
void finish_good(LunChannel& channel, Task& task, std::uint64_t transferred_bytes = 0);
// GOOD, with as much of `data` as allocation length and buffer take.
void finish_with_data(LunChannel& channel, Task& task, std::span<const std::uint8_t> data,
                      std::uint64_t allocation_length);
void finish_with_status(LunChannel& channel, Task& task, ScsiStatus status);
// CHECK CONDITION.
void finish_with_sense(LunChannel& channel, Task& task, const SenseCode& code);
void finish_with_sense(LunChannel& channel, Task& task, const SenseData& data);
void finish_invalid_cdb(LunChannel& channel, Task& task, std::uint16_t byte, std::optional<std::uint8_t> bit = {});
void finish_invalid_parameter(LunChannel& channel, Task& task, std::uint16_t byte,
                              std::optional<std::uint8_t> bit = {});
// The buffers hold less than the CDB asks for; `byte` is where it asks.
void finish_overrun(LunChannel& channel, Task& task, std::uint16_t byte);
// task.work.io.status is not kOk.
void finish_device_error(LunChannel& channel, Task& task);

// Copies out of data_out from an offset; false when it does not hold that much.
bool copy_from_data_out(const Task& task, std::uint64_t offset, std::span<std::uint8_t> out);
// Copies to the start of data_in as much as fits; returns how much that was.
std::size_t copy_to_data_in(Task& task, std::span<const std::uint8_t> data);
// Shortens the list in place to exactly `bytes`, which it holds.
void trim(iovec* iov, std::uint32_t& count, std::uint64_t bytes);
// Drops `bytes` from the front, in place.
void drop_front(iovec*& iov, std::uint32_t& count, std::uint64_t bytes);
// The offset of the first byte in which data_out from `offset` differs from `data`, or nothing.
std::optional<std::uint64_t> first_difference(const Task& task, std::uint64_t offset,
                                              std::span<const std::uint8_t> data);

// Copies the parameter list of a command whose CDB names its length at `length_byte`; ends the task and answers false
// when the buffer is shorter. out.size() is that length.
bool copy_parameters(LunChannel& channel, Task& task, std::uint16_t length_byte, std::span<std::uint8_t> out);

}  // namespace pollux::scsi
