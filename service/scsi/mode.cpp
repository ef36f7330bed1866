// MODE SENSE and MODE SELECT, 6 and 10 (SPC-5 6.11 to 6.14; SBC-4 6.5.1 for the device-specific parameter).

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>

#include "scsi/bytes.h"
#include "scsi/handlers.h"
#include "scsi/mode_pages.h"
#include "scsi/reply.h"
#include "scsi/settings.h"

namespace pollux::scsi {

namespace {

constexpr std::uint8_t kModeSense10 = 0x5a;
constexpr std::uint8_t kModeSelect10 = 0x55;
constexpr std::uint8_t kWriteProtected = 0x80;
constexpr std::uint8_t kDpoFua = 0x10;
constexpr std::size_t kShortDescriptorBytes = 8;
constexpr std::size_t kLongDescriptorBytes = 16;
// More than all pages with a long block descriptor.
constexpr std::size_t kMaxParameterBytes = 256;

std::size_t put_block_descriptor(const LogicalUnit& unit, bool long_lba, std::uint8_t* at) {
  const std::uint64_t blocks = unit.size_blocks();
  if (long_lba) {
    put_be64(at, blocks);
    put_be32(at + 12, unit.block_bytes());
    return kLongDescriptorBytes;
  }
  // The density code is byte 0 in neither case: SBC-4 6.5.2 has 32 bits of block count there.
  put_be32(at, static_cast<std::uint32_t>(std::min<std::uint64_t>(blocks, UINT32_MAX)));
  put_be32(at + 4, unit.block_bytes());
  return kShortDescriptorBytes;
}

// The parameters are durable, or could not be made so.
void mode_parameters_kept(LunChannel& channel, Task& task, bool kept, bool to_medium, std::size_t list_bytes) {
  if (!kept) return finish_with_sense(channel, task, sense::kInternalTargetFailure);
  if (!to_medium) return finish_good(channel, task, list_bytes);
  // A guest that has turned the cache off sends no SYNCHRONIZE CACHE any more: what the cache holds goes first.
  task.work.io.op = bdev::IoOp::kFlush;
  // An error fails this command, and does not reach the programs of the guest that wait for their next flush.
  task.work.io.flags = bdev::IoRequest::kAside;
  task.work.io.offset_bytes = 0;
  task.work.io.length_bytes = 0;
  task.work.io.iov_count = 0;
  channel.to_device_and_finish(task, list_bytes);
}

}  // namespace

void mode_sense(LunChannel& channel, Task& task) {
  const LogicalUnit& unit = channel.unit();
  const bool ten = task.cdb[0] == kModeSense10;
  const bool no_descriptors = (task.cdb[1] & 0x08) != 0;
  const bool long_lba = ten && (task.cdb[1] & 0x10) != 0;
  const auto control = static_cast<ModePages::Control>(task.cdb[2] >> 6);
  const std::uint8_t page = task.cdb[2] & 0x3f;
  const std::uint8_t subpage = task.cdb[3];
  const std::uint64_t allocation_length = ten ? get_be16(task.cdb.data() + 7) : task.cdb[4];
  if (control == ModePages::Control::kSaved) return finish_with_sense(channel, task, sense::kSavingNotSupported);

  std::array<std::uint8_t, kMaxParameterBytes> bytes{};
  const std::size_t header = ten ? 8 : 4;
  std::size_t length = header;
  if (!no_descriptors) length += put_block_descriptor(unit, long_lba, bytes.data() + header);
  const std::size_t descriptors = length - header;
  const auto pages = channel.unit().mode_pages().sense(control, page, subpage, std::span(bytes).subspan(length));
  if (!pages) {
    if (subpage != 0x00 && subpage != 0xff) return finish_invalid_cdb(channel, task, 3);
    return finish_invalid_cdb(channel, task, 2, 5);
  }
  length += *pages;

  std::uint8_t device_specific = kDpoFua;
  if ((channel.nexus().gate() & Nexus::kGateWriteProtect) != 0) device_specific |= kWriteProtected;
  if (ten) {
    put_be16(bytes.data(), static_cast<std::uint16_t>(length - 2));
    bytes[3] = device_specific;
    bytes[4] = descriptors != 0 && long_lba ? 1 : 0;
    put_be16(bytes.data() + 6, static_cast<std::uint16_t>(descriptors));
  } else {
    bytes[0] = static_cast<std::uint8_t>(length - 1);
    bytes[2] = device_specific;
    bytes[3] = static_cast<std::uint8_t>(descriptors);
  }
  finish_with_data(channel, task, std::span(bytes).first(length), allocation_length);
}

void mode_select(LunChannel& channel, Task& task) {
  LogicalUnit& unit = channel.unit();
  const bool ten = task.cdb[0] == kModeSelect10;
  const std::uint16_t length_byte = ten ? 7 : 4;
  const std::size_t length = ten ? get_be16(task.cdb.data() + 7) : task.cdb[4];
  // SP: nothing is saved. PF 0: pages in a vendor's own format, which there is none of; without pages it does no harm.
  if ((task.cdb[1] & 0x01) != 0) return finish_invalid_cdb(channel, task, 1, 0);
  if (length == 0) return finish_good(channel, task);
  if ((task.cdb[1] & 0x10) == 0) return finish_invalid_cdb(channel, task, 1, 4);
  const std::size_t header = ten ? 8 : 4;
  std::array<std::uint8_t, kMaxParameterBytes> bytes{};
  if (length < header || length > bytes.size()) {
    return finish_with_sense(channel, task, sense::kParameterListLength);
  }
  if (!copy_parameters(channel, task, length_byte, std::span(bytes).first(length))) return;

  // MODE DATA LENGTH is reserved here, and so is the medium type (0); the device-specific parameter is ignored.
  const std::size_t medium_type = ten ? 2 : 1;
  if (bytes[medium_type] != 0) return finish_invalid_parameter(channel, task, static_cast<std::uint16_t>(medium_type));
  const bool long_lba = ten && (bytes[4] & 0x01) != 0;
  const std::size_t descriptors = ten ? get_be16(bytes.data() + 6) : bytes[3];
  const std::size_t descriptor_bytes = long_lba ? kLongDescriptorBytes : kShortDescriptorBytes;
  const auto descriptors_byte = static_cast<std::uint16_t>(ten ? 6 : 3);
  if (descriptors != 0 && descriptors != descriptor_bytes) {
    return finish_invalid_parameter(channel, task, descriptors_byte);
  }
  if (header + descriptors > length) return finish_with_sense(channel, task, sense::kParameterListLength);
  if (descriptors != 0) {
    // Size and block length stay what they are; 0 and FFFFFFFFh blocks mean that too.
    std::array<std::uint8_t, kLongDescriptorBytes> now{};
    put_block_descriptor(unit, long_lba, now.data());
    const std::uint8_t* given = bytes.data() + header;
    const std::size_t count_bytes = long_lba ? 8 : 4;
    const bool all_zero = std::all_of(given, given + count_bytes, [](std::uint8_t b) { return b == 0; });
    const bool all_ones = std::all_of(given, given + count_bytes, [](std::uint8_t b) { return b == 0xff; });
    if (!all_zero && !all_ones && std::memcmp(given, now.data(), count_bytes) != 0) {
      return finish_invalid_parameter(channel, task, static_cast<std::uint16_t>(header));
    }
    const std::size_t length_at = descriptor_bytes - 4;
    if (std::memcmp(given + length_at, now.data() + length_at, 4) != 0) {
      return finish_invalid_parameter(channel, task, static_cast<std::uint16_t>(header + length_at));
    }
  }

  const std::size_t pages_at = header + descriptors;
  ModePages::Change change;
  {
    std::lock_guard lock(unit.mutex());
    const bool cached = unit.mode_pages().write_cache();
    change = unit.mode_pages().select(std::span(bytes).subspan(pages_at, length - pages_at));
    if (change.changed) {
      unit.update_gates();
      for (Nexus* nexus : unit.nexuses()) {
        if (nexus != &channel.nexus()) nexus->raise(UnitAttention::kModeParametersChanged);
      }
    }
    // Also without a change: this guest may ask for what another has asked for and not been answered yet.
    if (!change.truncated && !change.refused && (change.changed || unit.settings().keeping_modes())) {
      const bool to_medium = cached && !unit.mode_pages().write_cache();
      unit.settings().keep_modes([&channel, &task, home = &channel.reactor(), to_medium, length](Status kept) {
        home->post([&channel, &task, kept = kept.has_value(), to_medium, length] {
          mode_parameters_kept(channel, task, kept, to_medium, length);
        });
      });
      return;
    }
  }
  if (change.truncated) return finish_with_sense(channel, task, sense::kParameterListLength);
  if (change.refused) {
    return finish_invalid_parameter(channel, task, static_cast<std::uint16_t>(pages_at + change.refused->byte),
                                    change.refused->bit);
  }
  finish_good(channel, task, length);
}

}  // namespace pollux::scsi
