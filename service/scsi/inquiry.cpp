// INQUIRY: standard data and vital product data (SPC-5 6.6, 7.7; SBC-4 6.6).

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "scsi/bytes.h"
#include "scsi/copy_list.h"
#include "scsi/designators.h"
#include "scsi/handlers.h"
#include "scsi/inquiry.h"
#include "scsi/limits.h"
#include "scsi/reply.h"

namespace pollux::scsi {

namespace {

// Page codes, ascending, as page 00h lists them.
constexpr std::uint8_t kSupportedPages = 0x00;
constexpr std::uint8_t kSerialNumber = 0x80;
constexpr std::uint8_t kDeviceIdentification = 0x83;
constexpr std::uint8_t kExtendedInquiry = 0x86;
constexpr std::uint8_t kThirdPartyCopy = 0x8f;
constexpr std::uint8_t kBlockLimits = 0xb0;
constexpr std::uint8_t kBlockCharacteristics = 0xb1;
constexpr std::uint8_t kLogicalBlockProvisioning = 0xb2;
constexpr std::array<std::uint8_t, 8> kPages{
    kSupportedPages, kSerialNumber, kDeviceIdentification, kExtendedInquiry,
    kThirdPartyCopy, kBlockLimits,  kBlockCharacteristics, kLogicalBlockProvisioning};

// Left-aligned ASCII, padded with spaces (SPC-5 4.3.1).
void put_text(std::uint8_t* at, std::size_t length, const std::string& text) {
  std::memset(at, ' ', length);
  std::memcpy(at, text.data(), std::min(length, text.size()));
}

// A page under construction: its four-byte header, and what follows it.
class Page {
 public:
  explicit Page(std::uint8_t code) { bytes_[1] = code; }
  std::uint8_t* extend(std::size_t length) {
    std::uint8_t* at = bytes_.data() + length_;
    length_ += length;
    put_be16(bytes_.data() + 2, static_cast<std::uint16_t>(length_ - 4));
    return at;
  }
  std::span<const std::uint8_t> bytes() const { return std::span(bytes_).first(length_); }

 private:
  std::array<std::uint8_t, 256> bytes_{};
  std::size_t length_ = 4;
};

void add_supported_pages(Page& page) {
  std::memcpy(page.extend(kPages.size()), kPages.data(), kPages.size());
}

void add_serial_number(Page& page, const LogicalUnit& unit) {
  std::memcpy(page.extend(unit.serial().size()), unit.serial().data(), unit.serial().size());
}

void add_designator(Page& page, const Designator& designator) {
  std::uint8_t* at = page.extend(4 + designator.bytes.size());
  at[0] = designator.code_set;
  at[1] = static_cast<std::uint8_t>(designator.association << 4 | designator.type);
  at[3] = static_cast<std::uint8_t>(designator.bytes.size());
  std::copy(designator.bytes.begin(), designator.bytes.end(), at + 4);
}

// SPC-5 7.7.6. One UUID, in the forms that initiators look for.
void add_device_identification(Page& page, const LogicalUnit& unit, const Nexus& nexus) {
  const Uuid& uuid = unit.options().uuid;
  if (nexus.options().names == Names::kQemu) {
    // What else there is would be preferred, and the guest's names be other ones.
    std::array<std::uint8_t, 36> serial;
    put_text(serial.data(), serial.size(), unit.serial());
    add_designator(page, {.code_set = 2, .type = kVendorSpecificDesignator, .bytes = serial});
  } else {
    add_designator(page, {.type = kNaaDesignator, .bytes = naa_designator(uuid)});
    // The vendor, then what is unique within it.
    std::array<std::uint8_t, 8 + 36> vendor;
    put_text(vendor.data(), 8, unit.options().vendor);
    put_text(vendor.data() + 8, 36, unit.serial());
    add_designator(page, {.code_set = 2, .type = kT10VendorDesignator, .bytes = vendor});
  }
  add_designator(page, {.type = kUuidDesignator, .bytes = uuid_designator(uuid)});
  std::array<std::uint8_t, 4> port{};
  put_be16(port.data() + 2, nexus.options().relative_target_port);
  add_designator(page, {.association = 1, .type = kRelativeTargetPortDesignator, .bytes = port});
}

// SPC-4 7.8.17: what EXTENDED COPY can do, each descriptor a multiple of four bytes.
void add_third_party_copy(Page& page, const LogicalUnit& unit) {
  // Supported commands: 83h with service action 00h, 84h with 00h and 03h.
  constexpr std::array<std::uint8_t, 8> kCommands{7, 0x83, 1, 0x00, 0x84, 2, 0x00, 0x03};
  std::uint8_t* at = page.extend(4 + kCommands.size());
  put_be16(at, 0x0001);
  put_be16(at + 2, kCommands.size());
  std::copy(kCommands.begin(), kCommands.end(), at + 4);
  // Parameter data.
  at = page.extend(4 + 28);
  put_be16(at, 0x0004);
  put_be16(at + 2, 28);
  put_be16(at + 8, kMaxCopyTargets);
  put_be16(at + 10, kMaxCopySegments);
  put_be32(at + 12, kMaxCopyDescriptorBytes);
  // Supported descriptors.
  at = page.extend(4 + 4);
  put_be16(at, 0x0008);
  put_be16(at + 2, 4);
  at[4] = 2;
  at[5] = kBlockToBlock;
  at[6] = kIdentificationTarget;
  // General copy operations: how many at once, the longest segment, granularity of data as a power of two.
  at = page.extend(4 + 32);
  put_be16(at, 0x8001);
  put_be16(at + 2, 32);
  put_be32(at + 4, kScratchBuffers);
  put_be32(at + 8, kScratchBuffers);
  put_be32(at + 12, UINT16_MAX << unit.block_shift());
  at[16] = static_cast<std::uint8_t>(unit.block_shift());
}

void add_extended_inquiry(Page& page) {
  std::uint8_t* at = page.extend(60) - 4;
  at[5] = 0x07;  // HEADSUP, ORDSUP, SIMPSUP
}

void add_block_limits(Page& page, const LogicalUnit& unit) {
  const std::uint32_t shift = unit.block_shift();
  std::uint8_t* at = page.extend(60) - 4;
  at[4] = 0x01;  // WSNZ: WRITE SAME of zero blocks, which would reach to the end, is refused
  at[5] = static_cast<std::uint8_t>(max_compare_blocks(unit));
  put_be16(at + 6,
           static_cast<std::uint16_t>(std::min<std::uint32_t>(unit.bdev().optimal_io_bytes() >> shift, 0xffff)));
  put_be32(at + 8, max_transfer_blocks(unit));
  if (!unit.bdev().supports_unmap()) {
    put_be64(at + 36, kMaxWriteSameBlocks);
    return;
  }
  put_be32(at + 20, kMaxUnmapBlocks);
  put_be32(at + 24, kMaxUnmapDescriptors);
  put_be32(at + 28, unit.bdev().unmap_granularity_bytes() >> shift);
  put_be32(at + 32, 0x80000000);  // UGAVALID: aligned to block 0
  put_be64(at + 36, kMaxWriteSameBlocks);
}

void add_block_characteristics(Page& page) {
  std::uint8_t* at = page.extend(60) - 4;
  put_be16(at + 4, 1);  // does not rotate
}

void add_logical_block_provisioning(Page& page, const LogicalUnit& unit) {
  std::uint8_t* at = page.extend(4) - 4;
  if (!unit.bdev().supports_unmap()) return;
  at[5] = 0x80 | 0x40 | 0x20 | 0x04;  // LBPU, LBPWS, LBPWS10, LBPRZ 001b
  at[6] = 0x02;                       // thin provisioned
}

}  // namespace

std::size_t standard_inquiry(const LogicalUnitOptions& options, std::span<std::uint8_t> out) {
  // Versions of the standards, SPC-5 table of version descriptor values: SAM-5, SPC-3, SBC-3.
  constexpr std::array<std::uint16_t, 3> kVersions{0x00a0, 0x0300, 0x04c0};
  std::uint8_t* at = out.data();
  std::memset(at, 0, kStandardInquiryBytes);
  at[2] = 0x05;  // SPC-3: what EXTENDED COPY keeps to; what later standards added is there beside it
  at[3] = 0x12;  // HISUP; response data format 2
  at[4] = kStandardInquiryBytes - 5;
  at[5] = 0x08;  // 3PC
  at[7] = 0x02;  // CMDQUE
  put_text(at + 8, 8, options.vendor);
  put_text(at + 16, 16, options.product);
  put_text(at + 32, 4, options.revision);
  for (std::size_t i = 0; i < kVersions.size(); ++i) put_be16(at + 58 + 2 * i, kVersions[i]);
  return kStandardInquiryBytes;
}

void inquiry(LunChannel& channel, Task& task) {
  const LogicalUnit& unit = channel.unit();
  const bool vital_product_data = (task.cdb[1] & 0x01) != 0;
  const std::uint8_t code = task.cdb[2];
  const std::uint16_t allocation_length = get_be16(task.cdb.data() + 3);
  if (!vital_product_data) {
    if (code != 0) return finish_invalid_cdb(channel, task, 2);
    std::array<std::uint8_t, kStandardInquiryBytes> bytes;
    if (channel.nexus().options().names == Names::kQemu) {
      standard_inquiry(
          LogicalUnitOptions{.vendor = "QEMU", .product = "QEMU HARDDISK", .revision = unit.options().revision}, bytes);
    } else {
      standard_inquiry(unit.options(), bytes);
    }
    return finish_with_data(channel, task, bytes, allocation_length);
  }
  Page page(code);
  switch (code) {
    case kSupportedPages:
      add_supported_pages(page);
      break;
    case kSerialNumber:
      add_serial_number(page, unit);
      break;
    case kDeviceIdentification:
      add_device_identification(page, unit, channel.nexus());
      break;
    case kExtendedInquiry:
      add_extended_inquiry(page);
      break;
    case kThirdPartyCopy:
      add_third_party_copy(page, unit);
      break;
    case kBlockLimits:
      add_block_limits(page, unit);
      break;
    case kBlockCharacteristics:
      add_block_characteristics(page);
      break;
    case kLogicalBlockProvisioning:
      add_logical_block_provisioning(page, unit);
      break;
    default:
      return finish_invalid_cdb(channel, task, 2);
  }
  finish_with_data(channel, task, page.bytes(), allocation_length);
}

}  // namespace pollux::scsi
