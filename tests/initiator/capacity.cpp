#include "initiator/capacity.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "initiator/disk.h"

namespace pollux::initiator {
namespace {

// A new connection has a few unit attentions to tell; each ends one command.
constexpr int kAttempts = 8;

std::uint64_t big_endian(const std::byte* bytes, unsigned count) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < count; ++i) value = value << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  return value;
}

}  // namespace

Capacity scsi_capacity(FrontEnd& front_end, unsigned target) {
  const ScsiDisk disk(static_cast<std::uint8_t>(target), 0, 512);
  IoSlot slot(front_end.ram(), 4096);
  std::uint8_t cdb[16] = {0x9e, 0x10};
  cdb[13] = 32;
  std::string verdict;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const auto segments = disk.command(front_end.ram(), slot, cdb, 0, 32);
    run_request(front_end, disk.first_queue(), segments);
    verdict = disk.verdict(slot);
    if (verdict.empty()) {
      const auto block = static_cast<std::uint32_t>(big_endian(slot.data + 8, 4));
      return {(big_endian(slot.data, 8) + 1) * block, block};
    }
  }
  throw std::runtime_error("READ CAPACITY(16): " + verdict);
}

std::uint64_t blk_capacity(FrontEnd& front_end) {
  std::uint64_t sectors = 0;
  const auto bytes = front_end.config(0, sizeof(sectors));
  std::memcpy(&sectors, bytes.data(), sizeof(sectors));
  return sectors * 512;
}

}  // namespace pollux::initiator
