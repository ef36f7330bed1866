#include "initiator/disk.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

namespace pollux::initiator {
namespace {

void add_data(std::vector<Segment>& segments, std::uint64_t guest_addr, std::uint32_t bytes, bool device_writes,
              std::uint32_t piece_bytes) {
  if (piece_bytes == 0) piece_bytes = bytes;
  for (std::uint32_t done = 0; done < bytes; done += piece_bytes) {
    segments.push_back({guest_addr + done, std::min(piece_bytes, bytes - done), device_writes});
  }
}

void put_be(std::uint8_t* to, std::uint64_t value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) to[i] = static_cast<std::uint8_t>(value >> (8 * (bytes - 1 - i)));
}

}  // namespace

IoSlot::IoSlot(GuestRam& ram, std::uint32_t size)
    : header(ram.allocate(64)),
      answer(ram.allocate(sizeof(ScsiResponse))),
      data(size ? ram.allocate(size, 4096) : nullptr),
      data_bytes(size) {}

std::vector<Segment> BlkDisk::build(GuestRam& ram, IoSlot& slot, Op op, std::uint64_t offset_bytes, std::uint32_t bytes,
                                    std::uint32_t piece_bytes) const {
  BlkHeader header{kBlkFlush, 0, 0};
  std::vector<Segment> segments{{ram.guest_addr(slot.header), sizeof(header), false}};
  switch (op) {
    case Op::kRead:
    case Op::kWrite:
      header = {op == Op::kRead ? kBlkIn : kBlkOut, 0, offset_bytes / 512};
      add_data(segments, ram.guest_addr(slot.data), bytes, op == Op::kRead, piece_bytes);
      break;
    case Op::kFlush:
      break;
    case Op::kDiscard:
    case Op::kWriteZeroes: {
      header.type = op == Op::kDiscard ? kBlkDiscard : kBlkWriteZeroes;
      const BlkRange range{offset_bytes / 512, bytes / 512, 0};
      std::memcpy(slot.data, &range, sizeof(range));
      add_data(segments, ram.guest_addr(slot.data), sizeof(range), false, 0);
      break;
    }
  }
  std::memcpy(slot.header, &header, sizeof(header));
  slot.answer[0] = std::byte{kNoAnswer};
  segments.push_back({ram.guest_addr(slot.answer), 1, true});
  return segments;
}

std::string BlkDisk::verdict(const IoSlot& slot) const {
  const auto status = std::to_integer<unsigned>(slot.answer[0]);
  return status == kBlkOk ? "" : "virtio-blk status " + std::to_string(status);
}

std::vector<Segment> ScsiDisk::command(GuestRam& ram, IoSlot& slot, std::span<const std::uint8_t> cdb,
                                       std::uint32_t out_bytes, std::uint32_t in_bytes,
                                       std::uint32_t piece_bytes) const {
  ScsiRequestHeader command{};
  command.lun[0] = 1;
  command.lun[1] = target_;
  command.lun[2] = static_cast<std::uint8_t>(0x40 | lun_ >> 8);
  command.lun[3] = static_cast<std::uint8_t>(lun_);
  command.id = ram.guest_addr(slot.header);
  std::copy(cdb.begin(), cdb.end(), command.cdb.begin());
  std::memcpy(slot.header, &command, sizeof(command));
  ScsiResponse answer{};
  answer.response = kNoAnswer;
  std::memcpy(slot.answer, &answer, sizeof(answer));
  std::vector<Segment> segments{{ram.guest_addr(slot.header), sizeof(command), false}};
  if (out_bytes) add_data(segments, ram.guest_addr(slot.data), out_bytes, false, piece_bytes);
  segments.push_back({ram.guest_addr(slot.answer), sizeof(ScsiResponse), true});
  if (in_bytes) add_data(segments, ram.guest_addr(slot.data), in_bytes, true, piece_bytes);
  return segments;
}

std::vector<Segment> ScsiDisk::build(GuestRam& ram, IoSlot& slot, Op op, std::uint64_t offset_bytes,
                                     std::uint32_t bytes, std::uint32_t piece_bytes) const {
  std::uint8_t cdb[16] = {};
  const std::uint64_t lba = offset_bytes / block_bytes_;
  const std::uint32_t blocks = bytes / block_bytes_;
  switch (op) {
    case Op::kRead:
    case Op::kWrite:
      cdb[0] = op == Op::kRead ? 0x88 : 0x8a;  // READ(16), WRITE(16)
      put_be(cdb + 2, lba, 8);
      put_be(cdb + 10, blocks, 4);
      return command(ram, slot, cdb, op == Op::kWrite ? bytes : 0, op == Op::kRead ? bytes : 0, piece_bytes);
    case Op::kFlush:
      cdb[0] = 0x35;  // SYNCHRONIZE CACHE(10), whole medium
      return command(ram, slot, std::span(cdb, 10), 0, 0);
    case Op::kDiscard: {
      cdb[0] = 0x42;  // UNMAP, one descriptor
      put_be(cdb + 7, 24, 2);
      std::uint8_t list[24] = {};
      put_be(list, 22, 2);
      put_be(list + 2, 16, 2);
      put_be(list + 8, lba, 8);
      put_be(list + 16, blocks, 4);
      std::memcpy(slot.data, list, sizeof(list));
      return command(ram, slot, std::span(cdb, 10), sizeof(list), 0);
    }
    case Op::kWriteZeroes:
      cdb[0] = 0x93;  // WRITE SAME(16) of a zero block
      put_be(cdb + 2, lba, 8);
      put_be(cdb + 10, blocks, 4);
      std::memset(slot.data, 0, block_bytes_);
      return command(ram, slot, cdb, block_bytes_, 0);
  }
  throw std::logic_error("unknown operation");
}

std::string ScsiDisk::verdict(const IoSlot& slot) const {
  const ScsiResponse& said = answer(slot);
  if (said.response != 0) return "virtio-scsi response " + std::to_string(said.response);
  if (said.status != 0) {
    return "SCSI status " + std::to_string(said.status) + ", sense key " + std::to_string(said.sense[2] & 0xf) +
           " asc " + std::to_string(said.sense[12]) + " ascq " + std::to_string(said.sense[13]);
  }
  return "";
}

std::uint32_t run_request(FrontEnd& front_end, std::uint16_t queue, std::span<const Segment> segments,
                          int deadline_ms) {
  DriverRing& ring = front_end.ring(queue);
  if (!ring.add(segments, 0)) throw std::runtime_error("no room in the ring");
  if (ring.show()) front_end.kick(queue);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(deadline_ms);
  while (std::chrono::steady_clock::now() < deadline) {
    if (auto done = ring.take()) return done->written;
    if (ring.want_call()) front_end.wait_call(queue, 100);
  }
  throw std::runtime_error("no answer on queue " + std::to_string(queue));
}

std::string run_io(FrontEnd& front_end, std::uint16_t queue, const Disk& disk, IoSlot& slot, Op op,
                   std::uint64_t offset_bytes, std::uint32_t bytes, std::uint32_t piece_bytes) {
  const auto segments = disk.build(front_end.ram(), slot, op, offset_bytes, bytes, piece_bytes);
  run_request(front_end, queue, segments);
  return disk.verdict(slot);
}

}  // namespace pollux::initiator
