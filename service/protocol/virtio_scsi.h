#pragma once
// virtio-scsi as bytes: VIRTIO 1.2 5.6.

#include <array>
#include <cstdint>

namespace pollux::protocol {

inline constexpr std::uint16_t kScsiControlQueue = 0;
inline constexpr std::uint16_t kScsiEventQueue = 1;
inline constexpr std::uint16_t kScsiFirstRequestQueue = 2;

// Feature bits (5.6.3).
inline constexpr unsigned kScsiFeatureHotplug = 1;
inline constexpr unsigned kScsiFeatureChange = 2;

inline constexpr std::uint32_t kScsiCdbBytes = 32;
inline constexpr std::uint32_t kScsiSenseBytes = 96;

// 5.6.4.
struct __attribute__((packed)) ScsiConfig {
  std::uint32_t num_queues;
  std::uint32_t seg_max;
  std::uint32_t max_sectors;
  std::uint32_t cmd_per_lun;
  std::uint32_t event_info_size;
  std::uint32_t sense_size;
  std::uint32_t cdb_size;
  std::uint16_t max_channel;
  std::uint16_t max_target;
  std::uint32_t max_lun;
};
static_assert(sizeof(ScsiConfig) == 36);

using ScsiLunField = std::array<std::uint8_t, 8>;

// 5.6.6.1.
struct __attribute__((packed)) ScsiRequestHeader {
  ScsiLunField lun;
  std::uint64_t id;
  std::uint8_t task_attr;
  std::uint8_t prio;
  std::uint8_t crn;
  std::array<std::uint8_t, kScsiCdbBytes> cdb;
};
static_assert(sizeof(ScsiRequestHeader) == 51);

struct __attribute__((packed)) ScsiResponse {
  std::uint32_t sense_len;
  std::uint32_t residual;
  std::uint16_t status_qualifier;
  std::uint8_t status;
  std::uint8_t response;
  std::array<std::uint8_t, kScsiSenseBytes> sense;
};
static_assert(sizeof(ScsiResponse) == 108);

enum class ScsiResponseCode : std::uint8_t {
  kOk = 0,
  kOverrun = 1,
  kAborted = 2,
  kBadTarget = 3,
  kReset = 4,
  kFailure = 9,
  kFunctionSucceeded = 10,
  kFunctionRejected = 11,
  kIncorrectLun = 12,
};

// 5.6.6.2.
inline constexpr std::uint32_t kScsiControlTmf = 0;
inline constexpr std::uint32_t kScsiControlAnQuery = 1;
inline constexpr std::uint32_t kScsiControlAnSubscribe = 2;

struct __attribute__((packed)) ScsiTmfRequest {
  std::uint32_t subtype;
  ScsiLunField lun;
  std::uint64_t id;
};
static_assert(sizeof(ScsiTmfRequest) == 20);

struct __attribute__((packed)) ScsiAnRequest {
  ScsiLunField lun;
  std::uint32_t event_requested;
};
static_assert(sizeof(ScsiAnRequest) == 12);

struct __attribute__((packed)) ScsiAnResponse {
  std::uint32_t event_actual;
  std::uint8_t response;
};
static_assert(sizeof(ScsiAnResponse) == 5);

// 5.6.6.3.
struct ScsiEvent {
  static constexpr std::uint32_t kMissed = 0x80000000;
  static constexpr std::uint32_t kNone = 0;
  static constexpr std::uint32_t kTransportReset = 1;
  static constexpr std::uint32_t kParamChange = 3;
  static constexpr std::uint32_t kReasonRescan = 1;
  static constexpr std::uint32_t kReasonRemoved = 2;
  // SPC-5: CAPACITY DATA HAS CHANGED; additional sense code in the low byte, qualifier above.
  static constexpr std::uint32_t kReasonCapacityChanged = 0x2a | 0x09 << 8;

  std::uint32_t event;
  ScsiLunField lun;
  std::uint32_t reason;
};
static_assert(sizeof(ScsiEvent) == 16);

}  // namespace pollux::protocol
