#pragma once
// The vhost-user protocol as bytes: requests, feature bits and payloads of its specification ("Vhost-user Protocol",
// QEMU documentation), with their later names. The service and the front ends of its tests share it; protocol_test.cpp
// compares it with the numbers of the specification. A message is checked where it is handled, in vhost/session*.cpp.

#include <cstdint>

namespace pollux::protocol {

enum class VhostUserRequest : std::uint32_t {
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

// A request of the back end, on its own channel.
inline constexpr std::uint32_t kBackendConfigChange = 2;

struct VhostUserHeader {
  std::uint32_t request;
  std::uint32_t flags;
  // Of the payload that follows.
  std::uint32_t size_bytes;
};
static_assert(sizeof(VhostUserHeader) == 12);

// Flags of the header.
inline constexpr std::uint32_t kVersionMask = 0x3;
inline constexpr std::uint32_t kVersion = 0x1;
inline constexpr std::uint32_t kFlagReply = 1U << 2;
inline constexpr std::uint32_t kFlagNeedReply = 1U << 3;

constexpr std::uint64_t bit(unsigned number) {
  return std::uint64_t{1} << number;
}

// Protocol features.
inline constexpr std::uint64_t kProtocolMq = bit(0);
inline constexpr std::uint64_t kProtocolLogShmfd = bit(1);
inline constexpr std::uint64_t kProtocolReplyAck = bit(3);
inline constexpr std::uint64_t kProtocolBackendReq = bit(5);
inline constexpr std::uint64_t kProtocolConfig = bit(9);
inline constexpr std::uint64_t kProtocolInflightShmfd = bit(12);
inline constexpr std::uint64_t kProtocolConfigureMemSlots = bit(15);

// Feature bits that are not a device's own (VIRTIO 1.2 6; VHOST_F_LOG_ALL and bit 30 are vhost-user's).
inline constexpr std::uint64_t kFeatureLogAll = bit(26);
inline constexpr std::uint64_t kFeatureIndirectDesc = bit(28);
inline constexpr std::uint64_t kFeatureEventIdx = bit(29);
inline constexpr std::uint64_t kFeatureProtocolFeatures = bit(30);
inline constexpr std::uint64_t kFeatureVersion1 = bit(32);
inline constexpr std::uint64_t kFeatureRingPacked = bit(34);

struct VringState {
  std::uint32_t index;
  std::uint32_t num;
};
static_assert(sizeof(VringState) == 8);

struct VringAddr {
  static constexpr std::uint32_t kFlagLog = 1;
  std::uint32_t index;
  std::uint32_t flags;
  std::uint64_t desc_user_addr;
  std::uint64_t used_user_addr;
  std::uint64_t avail_user_addr;
  std::uint64_t log_guest_addr;
};
static_assert(sizeof(VringAddr) == 40);

// SET_VRING_KICK, _CALL and _ERR: the index, and whether a descriptor comes with it.
inline constexpr std::uint64_t kVringIndexMask = 0xff;
inline constexpr std::uint64_t kVringNoFd = 0x100;

struct MemoryRegion {
  std::uint64_t guest_addr;
  std::uint64_t size_bytes;
  std::uint64_t user_addr;
  std::uint64_t mmap_offset;
};
static_assert(sizeof(MemoryRegion) == 32);

struct MemTableHeader {
  std::uint32_t count;
  std::uint32_t padding;
};
inline constexpr std::uint32_t kMaxMemTableRegions = 8;

struct MemReg {
  std::uint64_t padding;
  MemoryRegion region;
};
static_assert(sizeof(MemReg) == 40);

struct LogArea {
  std::uint64_t size_bytes;
  std::uint64_t offset;
};
static_assert(sizeof(LogArea) == 16);

struct ConfigHeader {
  std::uint32_t offset;
  std::uint32_t size;
  std::uint32_t flags;
};
static_assert(sizeof(ConfigHeader) == 12);
inline constexpr std::uint32_t kMaxConfigBytes = 256;

struct Inflight {
  std::uint64_t mmap_size;
  std::uint64_t mmap_offset;
  std::uint16_t queues;
  std::uint16_t queue_size;
  std::uint32_t padding;
};
static_assert(sizeof(Inflight) == 24);
// The structure without its padding: what some front ends send.
inline constexpr std::uint32_t kInflightMinBytes = 20;

}  // namespace pollux::protocol
