#pragma once
// The part of the NBD protocol that the data sockets speak: fixed newstyle negotiation, simple and structured replies,
// and the metadata context base:allocation. Clauses are those of the protocol's description, doc/proto.md of the nbd
// project. All numbers on the wire are big-endian.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pollux::control::nbd {

// "Newstyle negotiation"
inline constexpr std::uint64_t kServerMagic = 0x4e42444d41474943;  // NBDMAGIC
inline constexpr std::uint64_t kOptionMagic = 0x49484156454f5054;  // IHAVEOPT
inline constexpr std::uint64_t kOptionReplyMagic = 0x0003e889045565a9;
inline constexpr std::uint16_t kFlagFixedNewstyle = 1;
inline constexpr std::uint16_t kFlagNoZeroes = 2;
inline constexpr std::size_t kExportNameZeroes = 124;

// "Option types"
inline constexpr std::uint32_t kOptExportName = 1;
inline constexpr std::uint32_t kOptAbort = 2;
inline constexpr std::uint32_t kOptList = 3;
inline constexpr std::uint32_t kOptInfo = 6;
inline constexpr std::uint32_t kOptGo = 7;
inline constexpr std::uint32_t kOptStructuredReply = 8;
inline constexpr std::uint32_t kOptListMetaContext = 9;
inline constexpr std::uint32_t kOptSetMetaContext = 10;

// "Option reply types"
inline constexpr std::uint32_t kRepAck = 1;
inline constexpr std::uint32_t kRepServer = 2;
inline constexpr std::uint32_t kRepInfo = 3;
inline constexpr std::uint32_t kRepMetaContext = 4;
inline constexpr std::uint32_t kRepErrUnsupported = (1U << 31) + 1;
inline constexpr std::uint32_t kRepErrInvalid = (1U << 31) + 3;
inline constexpr std::uint32_t kRepErrUnknown = (1U << 31) + 6;
inline constexpr std::uint32_t kRepErrTooBig = (1U << 31) + 9;

// "NBD_OPT_INFO and NBD_OPT_GO": information types
inline constexpr std::uint16_t kInfoExport = 0;
inline constexpr std::uint16_t kInfoBlockSize = 3;

// "Transmission flags"
inline constexpr std::uint16_t kHasFlags = 1 << 0;
inline constexpr std::uint16_t kReadOnly = 1 << 1;
inline constexpr std::uint16_t kSendFlush = 1 << 2;
inline constexpr std::uint16_t kSendFua = 1 << 3;
inline constexpr std::uint16_t kSendTrim = 1 << 5;
inline constexpr std::uint16_t kSendWriteZeroes = 1 << 6;
inline constexpr std::uint16_t kSendDf = 1 << 7;
inline constexpr std::uint16_t kCanMultiConn = 1 << 8;

// "Request message", "Simple reply message"
inline constexpr std::uint32_t kRequestMagic = 0x25609513;
inline constexpr std::uint32_t kSimpleReplyMagic = 0x67446698;
inline constexpr std::size_t kRequestBytes = 28;
inline constexpr std::size_t kSimpleReplyBytes = 16;

// "Structured reply chunk message"
inline constexpr std::uint32_t kStructuredReplyMagic = 0x668e33ef;
inline constexpr std::size_t kChunkHeaderBytes = 20;
inline constexpr std::uint16_t kChunkDone = 1 << 0;
inline constexpr std::uint16_t kChunkOffsetData = 1;
inline constexpr std::uint16_t kChunkBlockStatus = 5;
inline constexpr std::uint16_t kChunkError = (1 << 15) + 1;

// "Metadata querying", and what "base:allocation" says of an extent
inline constexpr const char* kAllocationContext = "base:allocation";
inline constexpr std::uint32_t kAllocationContextId = 1;
inline constexpr std::uint32_t kStateHole = 1 << 0;
inline constexpr std::uint32_t kStateZero = 1 << 1;

// "Request types"
inline constexpr std::uint16_t kCmdRead = 0;
inline constexpr std::uint16_t kCmdWrite = 1;
inline constexpr std::uint16_t kCmdDisconnect = 2;
inline constexpr std::uint16_t kCmdFlush = 3;
inline constexpr std::uint16_t kCmdTrim = 4;
inline constexpr std::uint16_t kCmdWriteZeroes = 6;
inline constexpr std::uint16_t kCmdBlockStatus = 7;

// "Command flags"
inline constexpr std::uint16_t kCmdFlagFua = 1 << 0;
inline constexpr std::uint16_t kCmdFlagNoHole = 1 << 1;
inline constexpr std::uint16_t kCmdFlagDf = 1 << 2;
inline constexpr std::uint16_t kCmdFlagReqOne = 1 << 3;

// "Error values"
inline constexpr std::uint32_t kOk = 0;
inline constexpr std::uint32_t kEperm = 1;
inline constexpr std::uint32_t kEio = 5;
inline constexpr std::uint32_t kEnomem = 12;
inline constexpr std::uint32_t kEinval = 22;
inline constexpr std::uint32_t kEnospc = 28;
inline constexpr std::uint32_t kEoverflow = 75;
inline constexpr std::uint32_t kEshutdown = 108;

// "Size constraints": the data of one request. What clients that ask for constraints are told, and what those that do
// not ask may rely on.
inline constexpr std::uint32_t kMaxPayloadBytes = 32U << 20;

template <std::unsigned_integral T>
T get(const std::uint8_t* bytes) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(std::uint64_t{value} << 8 | bytes[i]);
  return value;
}
template <std::unsigned_integral T>
void put(std::uint8_t* bytes, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) bytes[i] = static_cast<std::uint8_t>(value >> (8 * (sizeof(T) - 1 - i)));
}
template <std::unsigned_integral T>
void append(std::vector<std::uint8_t>& bytes, T value) {
  bytes.resize(bytes.size() + sizeof(T));
  put(bytes.data() + bytes.size() - sizeof(T), value);
}

}  // namespace pollux::control::nbd
