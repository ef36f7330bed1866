// The room's definitions beside those that others have published: the numbers of the vhost-user specification, written
// out here, and the kernel's own headers of virtio. The service and the front end of its tests both use this room, so
// that a wrong number in it would agree with itself everywhere else.

#define VIRTIO_RING_NO_LEGACY
#include <linux/vhost_types.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_scsi.h>

#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "protocol/vhost_user.h"
#include "protocol/virtio_blk.h"
#include "protocol/virtio_ring.h"
#include "protocol/virtio_scsi.h"

using namespace pollux::protocol;

namespace {

template <typename T>
constexpr std::uint64_t number(T value) {
  return static_cast<std::uint64_t>(value);
}

}  // namespace

#define TEST_SIZE(type, bytes) BOOST_TEST(sizeof(type) == std::size_t{bytes})
// The member begins at that byte and is that large.
#define TEST_MEMBER(type, member, offset, bytes)             \
  BOOST_TEST(offsetof(type, member) == std::size_t{offset}); \
  BOOST_TEST(sizeof(std::declval<type>().member) == std::size_t{bytes})
// The member lies where the kernel's does.
#define TEST_SAME(type, member, theirs, their_member)                   \
  BOOST_TEST(offsetof(type, member) == offsetof(theirs, their_member)); \
  BOOST_TEST(sizeof(std::declval<type>().member) == sizeof(std::declval<theirs>().their_member))

// "Front-end message types" and "Back-end message types".
BOOST_AUTO_TEST_CASE(vhost_user_requests_have_the_numbers_of_the_specification) {
  using R = VhostUserRequest;
  const struct {
    R request;
    std::uint32_t id;
  } table[] = {{R::kGetFeatures, 1},
               {R::kSetFeatures, 2},
               {R::kSetOwner, 3},
               {R::kResetOwner, 4},
               {R::kSetMemTable, 5},
               {R::kSetLogBase, 6},
               {R::kSetLogFd, 7},
               {R::kSetVringNum, 8},
               {R::kSetVringAddr, 9},
               {R::kSetVringBase, 10},
               {R::kGetVringBase, 11},
               {R::kSetVringKick, 12},
               {R::kSetVringCall, 13},
               {R::kSetVringErr, 14},
               {R::kGetProtocolFeatures, 15},
               {R::kSetProtocolFeatures, 16},
               {R::kGetQueueNum, 17},
               {R::kSetVringEnable, 18},
               {R::kSetBackendReqFd, 21},
               {R::kGetConfig, 24},
               {R::kSetConfig, 25},
               {R::kGetInflightFd, 31},
               {R::kSetInflightFd, 32},
               {R::kGetMaxMemSlots, 36},
               {R::kAddMemReg, 37},
               {R::kRemMemReg, 38}};
  for (const auto& entry : table) BOOST_TEST(number(entry.request) == entry.id);
  BOOST_TEST(kBackendConfigChange == 2u);
}

// "Message Specification".
BOOST_AUTO_TEST_CASE(vhost_user_messages_are_laid_out_as_the_specification_has_them) {
  TEST_SIZE(VhostUserHeader, 12);
  TEST_MEMBER(VhostUserHeader, request, 0, 4);
  TEST_MEMBER(VhostUserHeader, flags, 4, 4);
  TEST_MEMBER(VhostUserHeader, size_bytes, 8, 4);
  BOOST_TEST(kVersionMask == 3u);
  BOOST_TEST(kVersion == 1u);
  BOOST_TEST(kFlagReply == 4u);
  BOOST_TEST(kFlagNeedReply == 8u);

  TEST_SIZE(VringState, 8);
  TEST_SAME(VringState, index, vhost_vring_state, index);
  TEST_SAME(VringState, num, vhost_vring_state, num);
  TEST_SIZE(VringAddr, 40);
  TEST_SAME(VringAddr, index, vhost_vring_addr, index);
  TEST_SAME(VringAddr, flags, vhost_vring_addr, flags);
  TEST_SAME(VringAddr, desc_user_addr, vhost_vring_addr, desc_user_addr);
  TEST_SAME(VringAddr, used_user_addr, vhost_vring_addr, used_user_addr);
  TEST_SAME(VringAddr, avail_user_addr, vhost_vring_addr, avail_user_addr);
  TEST_SAME(VringAddr, log_guest_addr, vhost_vring_addr, log_guest_addr);
  BOOST_TEST(VringAddr::kFlagLog == 1u << VHOST_VRING_F_LOG);
  BOOST_TEST(kVringIndexMask == 0xffu);
  BOOST_TEST(kVringNoFd == 0x100u);

  TEST_SIZE(MemTableHeader, 8);
  TEST_MEMBER(MemTableHeader, count, 0, 4);
  BOOST_TEST(kMaxMemTableRegions == 8u);
  TEST_SIZE(MemoryRegion, 32);
  TEST_MEMBER(MemoryRegion, guest_addr, 0, 8);
  TEST_MEMBER(MemoryRegion, size_bytes, 8, 8);
  TEST_MEMBER(MemoryRegion, user_addr, 16, 8);
  TEST_MEMBER(MemoryRegion, mmap_offset, 24, 8);
  TEST_SIZE(MemReg, 40);
  TEST_MEMBER(MemReg, region, 8, 32);

  TEST_SIZE(LogArea, 16);
  TEST_MEMBER(LogArea, size_bytes, 0, 8);
  TEST_MEMBER(LogArea, offset, 8, 8);
  TEST_SIZE(ConfigHeader, 12);
  TEST_MEMBER(ConfigHeader, offset, 0, 4);
  TEST_MEMBER(ConfigHeader, size, 4, 4);
  TEST_MEMBER(ConfigHeader, flags, 8, 4);
  BOOST_TEST(kMaxConfigBytes == 256u);
  // Four fields of 20 bytes; compilers round the structure up.
  BOOST_TEST(kInflightMinBytes == 20u);
  TEST_SIZE(Inflight, 24);
  TEST_MEMBER(Inflight, mmap_size, 0, 8);
  TEST_MEMBER(Inflight, mmap_offset, 8, 8);
  TEST_MEMBER(Inflight, queues, 16, 2);
  TEST_MEMBER(Inflight, queue_size, 18, 2);
}

BOOST_AUTO_TEST_CASE(feature_bits_have_their_published_numbers) {
  // vhost-user's own.
  BOOST_TEST(kFeatureProtocolFeatures == 0x40000000u);
  BOOST_TEST(kProtocolMq == 0x1u);
  BOOST_TEST(kProtocolLogShmfd == 0x2u);
  BOOST_TEST(kProtocolReplyAck == 0x8u);
  BOOST_TEST(kProtocolBackendReq == 0x20u);
  BOOST_TEST(kProtocolConfig == 0x200u);
  BOOST_TEST(kProtocolInflightShmfd == 0x1000u);
  BOOST_TEST(kProtocolConfigureMemSlots == 0x8000u);
  BOOST_TEST(kFeatureLogAll == 1ull << VHOST_F_LOG_ALL);

  BOOST_TEST(kFeatureIndirectDesc == 1ull << VIRTIO_RING_F_INDIRECT_DESC);
  BOOST_TEST(kFeatureEventIdx == 1ull << VIRTIO_RING_F_EVENT_IDX);
  BOOST_TEST(kFeatureVersion1 == 1ull << VIRTIO_F_VERSION_1);
  BOOST_TEST(kFeatureRingPacked == 1ull << VIRTIO_F_RING_PACKED);

  BOOST_TEST(kBlkFeatureSegMax == unsigned{VIRTIO_BLK_F_SEG_MAX});
  BOOST_TEST(kBlkFeatureReadOnly == unsigned{VIRTIO_BLK_F_RO});
  BOOST_TEST(kBlkFeatureBlkSize == unsigned{VIRTIO_BLK_F_BLK_SIZE});
  BOOST_TEST(kBlkFeatureFlush == unsigned{VIRTIO_BLK_F_FLUSH});
  BOOST_TEST(kBlkFeatureTopology == unsigned{VIRTIO_BLK_F_TOPOLOGY});
  BOOST_TEST(kBlkFeatureConfigWce == unsigned{VIRTIO_BLK_F_CONFIG_WCE});
  BOOST_TEST(kBlkFeatureMq == unsigned{VIRTIO_BLK_F_MQ});
  BOOST_TEST(kBlkFeatureDiscard == unsigned{VIRTIO_BLK_F_DISCARD});
  BOOST_TEST(kBlkFeatureWriteZeroes == unsigned{VIRTIO_BLK_F_WRITE_ZEROES});
  BOOST_TEST(kScsiFeatureHotplug == unsigned{VIRTIO_SCSI_F_HOTPLUG});
  BOOST_TEST(kScsiFeatureChange == unsigned{VIRTIO_SCSI_F_CHANGE});
}

BOOST_AUTO_TEST_CASE(rings_are_laid_out_as_the_kernel_has_them) {
  TEST_SIZE(SplitDesc, sizeof(vring_desc));
  TEST_SAME(SplitDesc, addr, vring_desc, addr);
  TEST_SAME(SplitDesc, len, vring_desc, len);
  TEST_SAME(SplitDesc, flags, vring_desc, flags);
  TEST_SAME(SplitDesc, next, vring_desc, next);
  TEST_SIZE(UsedElem, sizeof(vring_used_elem));
  TEST_SAME(UsedElem, id, vring_used_elem, id);
  TEST_SAME(UsedElem, len, vring_used_elem, len);
  // With the event index of the other side behind the entries.
  BOOST_TEST(split_desc_bytes(256) == 256 * sizeof(vring_desc));
  BOOST_TEST(split_avail_bytes(256) == offsetof(vring_avail, ring) + 256 * sizeof(__virtio16) + sizeof(__virtio16));
  BOOST_TEST(split_used_bytes(256) == offsetof(vring_used, ring) + 256 * sizeof(vring_used_elem) + sizeof(__virtio16));
  BOOST_TEST(kDescNext == VRING_DESC_F_NEXT);
  BOOST_TEST(kDescWrite == VRING_DESC_F_WRITE);
  BOOST_TEST(kDescIndirect == VRING_DESC_F_INDIRECT);
  BOOST_TEST(kAvailNoInterrupt == VRING_AVAIL_F_NO_INTERRUPT);
  BOOST_TEST(kUsedNoNotify == VRING_USED_F_NO_NOTIFY);

  TEST_SIZE(PackedDesc, sizeof(vring_packed_desc));
  TEST_SAME(PackedDesc, addr, vring_packed_desc, addr);
  TEST_SAME(PackedDesc, len, vring_packed_desc, len);
  TEST_SAME(PackedDesc, id, vring_packed_desc, id);
  TEST_SAME(PackedDesc, flags, vring_packed_desc, flags);
  TEST_SIZE(PackedEvent, sizeof(vring_packed_desc_event));
  TEST_SAME(PackedEvent, offset_wrap, vring_packed_desc_event, off_wrap);
  TEST_SAME(PackedEvent, flags, vring_packed_desc_event, flags);
  BOOST_TEST(kDescAvail == 1 << VRING_PACKED_DESC_F_AVAIL);
  BOOST_TEST(kDescUsed == 1 << VRING_PACKED_DESC_F_USED);
  BOOST_TEST(kPackedEventEnable == VRING_PACKED_EVENT_FLAG_ENABLE);
  BOOST_TEST(kPackedEventDisable == VRING_PACKED_EVENT_FLAG_DISABLE);
  BOOST_TEST(kPackedEventDesc == VRING_PACKED_EVENT_FLAG_DESC);
}

BOOST_AUTO_TEST_CASE(virtio_blk_is_laid_out_as_the_kernel_has_it) {
  TEST_SAME(BlkConfig, capacity_sectors, virtio_blk_config, capacity);
  TEST_SAME(BlkConfig, size_max, virtio_blk_config, size_max);
  TEST_SAME(BlkConfig, seg_max, virtio_blk_config, seg_max);
  TEST_SAME(BlkConfig, cylinders, virtio_blk_config, geometry.cylinders);
  TEST_SAME(BlkConfig, heads, virtio_blk_config, geometry.heads);
  TEST_SAME(BlkConfig, sectors, virtio_blk_config, geometry.sectors);
  TEST_SAME(BlkConfig, blk_size, virtio_blk_config, blk_size);
  TEST_SAME(BlkConfig, physical_block_exp, virtio_blk_config, physical_block_exp);
  TEST_SAME(BlkConfig, alignment_offset, virtio_blk_config, alignment_offset);
  TEST_SAME(BlkConfig, min_io_blocks, virtio_blk_config, min_io_size);
  TEST_SAME(BlkConfig, opt_io_blocks, virtio_blk_config, opt_io_size);
  TEST_SAME(BlkConfig, writeback, virtio_blk_config, wce);
  TEST_SAME(BlkConfig, num_queues, virtio_blk_config, num_queues);
  TEST_SAME(BlkConfig, max_discard_sectors, virtio_blk_config, max_discard_sectors);
  TEST_SAME(BlkConfig, max_discard_seg, virtio_blk_config, max_discard_seg);
  TEST_SAME(BlkConfig, discard_sector_alignment, virtio_blk_config, discard_sector_alignment);
  TEST_SAME(BlkConfig, max_write_zeroes_sectors, virtio_blk_config, max_write_zeroes_sectors);
  TEST_SAME(BlkConfig, max_write_zeroes_seg, virtio_blk_config, max_write_zeroes_seg);
  TEST_SAME(BlkConfig, write_zeroes_may_unmap, virtio_blk_config, write_zeroes_may_unmap);
  BOOST_TEST(kBlkIn == unsigned{VIRTIO_BLK_T_IN});
  BOOST_TEST(kBlkOut == unsigned{VIRTIO_BLK_T_OUT});
  BOOST_TEST(kBlkFlush == unsigned{VIRTIO_BLK_T_FLUSH});
  BOOST_TEST(kBlkGetId == unsigned{VIRTIO_BLK_T_GET_ID});
  BOOST_TEST(kBlkDiscard == unsigned{VIRTIO_BLK_T_DISCARD});
  BOOST_TEST(kBlkWriteZeroes == unsigned{VIRTIO_BLK_T_WRITE_ZEROES});
  BOOST_TEST(number(kBlkOk) == number(VIRTIO_BLK_S_OK));
  BOOST_TEST(number(kBlkIoError) == number(VIRTIO_BLK_S_IOERR));
  BOOST_TEST(number(kBlkUnsupported) == number(VIRTIO_BLK_S_UNSUPP));
  TEST_SIZE(BlkHeader, sizeof(virtio_blk_outhdr));
  TEST_SAME(BlkHeader, type, virtio_blk_outhdr, type);
  TEST_SAME(BlkHeader, sector, virtio_blk_outhdr, sector);
  TEST_SIZE(BlkRange, sizeof(virtio_blk_discard_write_zeroes));
  TEST_SAME(BlkRange, sector, virtio_blk_discard_write_zeroes, sector);
  TEST_SAME(BlkRange, sectors, virtio_blk_discard_write_zeroes, num_sectors);
  TEST_SAME(BlkRange, flags, virtio_blk_discard_write_zeroes, flags);
  BOOST_TEST(BlkRange::kUnmap == unsigned{VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP});
}

BOOST_AUTO_TEST_CASE(virtio_scsi_is_laid_out_as_the_kernel_has_it) {
  TEST_SIZE(ScsiConfig, sizeof(virtio_scsi_config));
  TEST_SAME(ScsiConfig, num_queues, virtio_scsi_config, num_queues);
  TEST_SAME(ScsiConfig, seg_max, virtio_scsi_config, seg_max);
  TEST_SAME(ScsiConfig, max_sectors, virtio_scsi_config, max_sectors);
  TEST_SAME(ScsiConfig, cmd_per_lun, virtio_scsi_config, cmd_per_lun);
  TEST_SAME(ScsiConfig, event_info_size, virtio_scsi_config, event_info_size);
  TEST_SAME(ScsiConfig, sense_size, virtio_scsi_config, sense_size);
  TEST_SAME(ScsiConfig, cdb_size, virtio_scsi_config, cdb_size);
  TEST_SAME(ScsiConfig, max_channel, virtio_scsi_config, max_channel);
  TEST_SAME(ScsiConfig, max_target, virtio_scsi_config, max_target);
  TEST_SAME(ScsiConfig, max_lun, virtio_scsi_config, max_lun);

  TEST_SIZE(ScsiRequestHeader, sizeof(virtio_scsi_cmd_req));
  TEST_SAME(ScsiRequestHeader, lun, virtio_scsi_cmd_req, lun);
  TEST_SAME(ScsiRequestHeader, id, virtio_scsi_cmd_req, tag);
  TEST_SAME(ScsiRequestHeader, task_attr, virtio_scsi_cmd_req, task_attr);
  TEST_SAME(ScsiRequestHeader, prio, virtio_scsi_cmd_req, prio);
  TEST_SAME(ScsiRequestHeader, crn, virtio_scsi_cmd_req, crn);
  TEST_SAME(ScsiRequestHeader, cdb, virtio_scsi_cmd_req, cdb);
  TEST_SIZE(ScsiResponse, sizeof(virtio_scsi_cmd_resp));
  TEST_SAME(ScsiResponse, sense_len, virtio_scsi_cmd_resp, sense_len);
  TEST_SAME(ScsiResponse, residual, virtio_scsi_cmd_resp, resid);
  TEST_SAME(ScsiResponse, status_qualifier, virtio_scsi_cmd_resp, status_qualifier);
  TEST_SAME(ScsiResponse, status, virtio_scsi_cmd_resp, status);
  TEST_SAME(ScsiResponse, response, virtio_scsi_cmd_resp, response);
  TEST_SAME(ScsiResponse, sense, virtio_scsi_cmd_resp, sense);
  BOOST_TEST(number(ScsiResponseCode::kOk) == number(VIRTIO_SCSI_S_OK));
  BOOST_TEST(number(ScsiResponseCode::kOverrun) == number(VIRTIO_SCSI_S_OVERRUN));
  BOOST_TEST(number(ScsiResponseCode::kAborted) == number(VIRTIO_SCSI_S_ABORTED));
  BOOST_TEST(number(ScsiResponseCode::kBadTarget) == number(VIRTIO_SCSI_S_BAD_TARGET));
  BOOST_TEST(number(ScsiResponseCode::kReset) == number(VIRTIO_SCSI_S_RESET));
  BOOST_TEST(number(ScsiResponseCode::kFailure) == number(VIRTIO_SCSI_S_FAILURE));
  BOOST_TEST(number(ScsiResponseCode::kFunctionSucceeded) == number(VIRTIO_SCSI_S_FUNCTION_SUCCEEDED));
  BOOST_TEST(number(ScsiResponseCode::kFunctionRejected) == number(VIRTIO_SCSI_S_FUNCTION_REJECTED));
  BOOST_TEST(number(ScsiResponseCode::kIncorrectLun) == number(VIRTIO_SCSI_S_INCORRECT_LUN));

  // The service reads the type before it knows which of these it is.
  constexpr std::size_t kType = sizeof(__virtio32);
  BOOST_TEST(kScsiControlTmf == unsigned{VIRTIO_SCSI_T_TMF});
  BOOST_TEST(kScsiControlAnQuery == unsigned{VIRTIO_SCSI_T_AN_QUERY});
  BOOST_TEST(kScsiControlAnSubscribe == unsigned{VIRTIO_SCSI_T_AN_SUBSCRIBE});
  TEST_SIZE(ScsiTmfRequest, sizeof(virtio_scsi_ctrl_tmf_req) - kType);
  BOOST_TEST(offsetof(ScsiTmfRequest, subtype) + kType == offsetof(virtio_scsi_ctrl_tmf_req, subtype));
  BOOST_TEST(offsetof(ScsiTmfRequest, lun) + kType == offsetof(virtio_scsi_ctrl_tmf_req, lun));
  BOOST_TEST(offsetof(ScsiTmfRequest, id) + kType == offsetof(virtio_scsi_ctrl_tmf_req, tag));
  TEST_SIZE(ScsiAnRequest, sizeof(virtio_scsi_ctrl_an_req) - kType);
  BOOST_TEST(offsetof(ScsiAnRequest, lun) + kType == offsetof(virtio_scsi_ctrl_an_req, lun));
  BOOST_TEST(offsetof(ScsiAnRequest, event_requested) + kType == offsetof(virtio_scsi_ctrl_an_req, event_requested));
  TEST_SIZE(ScsiAnResponse, sizeof(virtio_scsi_ctrl_an_resp));
  TEST_SAME(ScsiAnResponse, event_actual, virtio_scsi_ctrl_an_resp, event_actual);
  TEST_SAME(ScsiAnResponse, response, virtio_scsi_ctrl_an_resp, response);

  TEST_SIZE(ScsiEvent, sizeof(virtio_scsi_event));
  TEST_SAME(ScsiEvent, event, virtio_scsi_event, event);
  TEST_SAME(ScsiEvent, lun, virtio_scsi_event, lun);
  TEST_SAME(ScsiEvent, reason, virtio_scsi_event, reason);
  BOOST_TEST(ScsiEvent::kMissed == unsigned{VIRTIO_SCSI_T_EVENTS_MISSED});
  BOOST_TEST(ScsiEvent::kNone == unsigned{VIRTIO_SCSI_T_NO_EVENT});
  BOOST_TEST(ScsiEvent::kTransportReset == unsigned{VIRTIO_SCSI_T_TRANSPORT_RESET});
  BOOST_TEST(ScsiEvent::kParamChange == unsigned{VIRTIO_SCSI_T_PARAM_CHANGE});
  BOOST_TEST(ScsiEvent::kReasonRescan == unsigned{VIRTIO_SCSI_EVT_RESET_RESCAN});
  BOOST_TEST(ScsiEvent::kReasonRemoved == unsigned{VIRTIO_SCSI_EVT_RESET_REMOVED});
  // SPC-5: CAPACITY DATA HAS CHANGED is 2Ah/09h; the event has the additional sense code in the low byte.
  BOOST_TEST(ScsiEvent::kReasonCapacityChanged == 0x092au);
  // 5.6.2.
  BOOST_TEST(kScsiControlQueue == 0);
  BOOST_TEST(kScsiEventQueue == 1);
  BOOST_TEST(kScsiFirstRequestQueue == 2);
  BOOST_TEST(kScsiCdbBytes == unsigned{VIRTIO_SCSI_CDB_DEFAULT_SIZE});
  BOOST_TEST(kScsiSenseBytes == unsigned{VIRTIO_SCSI_SENSE_DEFAULT_SIZE});
}
