#pragma once
// vhost-user and virtio as a front end and a driver see them, written from the specifications alone: sharing the
// service's own headers would let a wrong layout agree with itself.

#include <cstdint>

namespace pollux::initiator {

// vhost-user requests.
enum class Vu : std::uint32_t {
  kGetFeatures = 1,
  kSetFeatures = 2,
  kSetOwner = 3,
  kResetOwner = 4,
  kSetMemTable = 5,
  kSetLogBase = 6,
  kSetLogFd = 7,
  kSetVringNum = 8,
  kSetVringAddr = 9,
  kSetVringBase = 10,
  kGetVringBase = 11,
  kSetVringKick = 12,
  kSetVringCall = 13,
  kSetVringErr = 14,
  kGetProtocolFeatures = 15,
  kSetProtocolFeatures = 16,
  kGetQueueNum = 17,
  kSetVringEnable = 18,
  kSetBackendReqFd = 21,
  kGetConfig = 24,
  kSetConfig = 25,
  kGetInflightFd = 31,
  kSetInflightFd = 32,
  kGetMaxMemSlots = 36,
  kAddMemReg = 37,
  kRemMemReg = 38,
};

constexpr std::uint64_t feature(unsigned number) {
  return std::uint64_t{1} << number;
}

inline constexpr std::uint64_t kLogAll = feature(26);
inline constexpr std::uint64_t kIndirect = feature(28);
inline constexpr std::uint64_t kEventIdx = feature(29);
inline constexpr std::uint64_t kProtocolFeatures = feature(30);
inline constexpr std::uint64_t kVersion1 = feature(32);
inline constexpr std::uint64_t kPacked = feature(34);

inline constexpr std::uint64_t kProtoMq = feature(0);
inline constexpr std::uint64_t kProtoLogShmfd = feature(1);
inline constexpr std::uint64_t kProtoReplyAck = feature(3);
inline constexpr std::uint64_t kProtoBackendReq = feature(5);
inline constexpr std::uint64_t kProtoConfig = feature(9);
inline constexpr std::uint64_t kProtoInflight = feature(12);
inline constexpr std::uint64_t kProtoMemSlots = feature(15);

struct VuHeader {
  std::uint32_t request;
  std::uint32_t flags;
  std::uint32_t size;
};
struct VuState {
  std::uint32_t index;
  std::uint32_t num;
};
struct VuAddr {
  std::uint32_t index;
  std::uint32_t flags;
  std::uint64_t desc;
  std::uint64_t used;
  std::uint64_t avail;
  std::uint64_t log;
};
struct VuRegion {
  std::uint64_t guest_addr;
  std::uint64_t size;
  std::uint64_t user_addr;
  std::uint64_t offset;
};
struct VuInflight {
  std::uint64_t size;
  std::uint64_t offset;
  std::uint16_t queues;
  std::uint16_t queue_size;
  std::uint32_t padding;
};

// Rings.
struct SplitDescriptor {
  std::uint64_t addr;
  std::uint32_t len;
  std::uint16_t flags;
  std::uint16_t next;
};
struct PackedDescriptor {
  std::uint64_t addr;
  std::uint32_t len;
  std::uint16_t id;
  std::uint16_t flags;
};
inline constexpr std::uint16_t kNext = 1;
inline constexpr std::uint16_t kWrite = 2;
inline constexpr std::uint16_t kTable = 4;
inline constexpr std::uint16_t kPackedAvail = 0x80;
inline constexpr std::uint16_t kPackedUsed = 0x8000;

// virtio-blk.
inline constexpr std::uint32_t kBlkIn = 0;
inline constexpr std::uint32_t kBlkOut = 1;
inline constexpr std::uint32_t kBlkFlush = 4;
inline constexpr std::uint32_t kBlkGetId = 8;
inline constexpr std::uint32_t kBlkDiscard = 11;
inline constexpr std::uint32_t kBlkWriteZeroes = 13;
inline constexpr std::uint8_t kBlkOk = 0;
inline constexpr std::uint8_t kBlkIoError = 1;
inline constexpr std::uint8_t kBlkUnsupported = 2;
// What the service never answers: the value that status bytes hold before.
inline constexpr std::uint8_t kNoAnswer = 0xee;

struct BlkHeader {
  std::uint32_t type;
  std::uint32_t reserved;
  std::uint64_t sector;
};
struct BlkRange {
  std::uint64_t sector;
  std::uint32_t sectors;
  std::uint32_t flags;
};

// virtio-scsi.
struct __attribute__((packed)) ScsiCommand {
  std::uint8_t lun[8];
  std::uint64_t tag;
  std::uint8_t attribute;
  std::uint8_t priority;
  std::uint8_t crn;
  std::uint8_t cdb[32];
};
struct __attribute__((packed)) ScsiAnswer {
  std::uint32_t sense_len;
  std::uint32_t residual;
  std::uint16_t qualifier;
  std::uint8_t status;
  std::uint8_t response;
  std::uint8_t sense[96];
};
static_assert(sizeof(ScsiCommand) == 51 && sizeof(ScsiAnswer) == 108);

}  // namespace pollux::initiator
