#include "scsi/target.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>

#include "scsi/bytes.h"
#include "scsi/command.h"
#include "scsi/handlers.h"
#include "scsi/inquiry.h"
#include "scsi/reply.h"

namespace pollux::scsi {

namespace {

constexpr std::uint8_t kTestUnitReady = 0x00;
constexpr std::uint8_t kRequestSense = 0x03;
constexpr std::uint8_t kInquiry = 0x12;
constexpr std::uint8_t kReportLuns = 0xa0;
constexpr std::uint64_t kReportLunsWellKnown = 0xc101'0000'0000'0000;

// SAM-5 4.7.7: peripheral addressing up to 255, flat above.
std::uint64_t encode_lun(std::uint16_t lun) {
  const std::uint64_t first = lun < 256 ? lun : 0x4000u | lun;
  return first << 48;
}

void begin_answer(Task& task) {
  task.outcome = Outcome::kCompleted;
  task.status = ScsiStatus::kGood;
  task.sense_length = 0;
  task.transferred_bytes = 0;
}

void answer_with_data(Task& task, std::span<const std::uint8_t> data, std::uint64_t allocation_length) {
  const std::size_t length = std::min<std::uint64_t>(data.size(), allocation_length);
  task.transferred_bytes = copy_to_data_in(task, data.first(length));
  task.complete(task);
}

void answer_with_sense(Task& task, const SenseData& data) {
  task.status = ScsiStatus::kCheckCondition;
  task.sense_length = static_cast<std::uint8_t>(encode_sense(data, /*descriptor_format=*/false, task.sense));
  task.complete(task);
}

// Writes the parameter data piece by piece, so that no list of 16384 LUNs is built for it.
class LunListWriter {
 public:
  LunListWriter(Task& task, std::uint64_t allocation_length)
      : task_(task), left_(std::min<std::uint64_t>(allocation_length, task.data_in_bytes)) {}

  void put(std::span<const std::uint8_t> bytes) {
    for (std::uint8_t byte : bytes) {
      if (left_ == 0) return;
      while (offset_ == task_.data_in[piece_].iov_len) {
        ++piece_;
        offset_ = 0;
      }
      static_cast<std::uint8_t*>(task_.data_in[piece_].iov_base)[offset_++] = byte;
      --left_;
      ++written_;
    }
  }
  std::uint64_t written() const { return written_; }

 private:
  Task& task_;
  std::uint64_t left_;
  std::uint32_t piece_ = 0;
  std::size_t offset_ = 0;
  std::uint64_t written_ = 0;
};

// SPC-5 6.34. False: SELECT REPORT asks for what there is not.
template <typename Luns>
bool write_luns(Task& task, const Luns& luns) {
  const std::uint8_t select = task.cdb[2];
  if (select > 2) return false;
  const bool ordinary = select != 1;
  const bool well_known = select != 0;
  const std::size_t count = (ordinary ? luns.size() : 0) + (well_known ? 1 : 0);
  LunListWriter writer(task, get_be32(task.cdb.data() + 6));
  std::array<std::uint8_t, 8> entry{};
  put_be32(entry.data(), static_cast<std::uint32_t>(count * 8));
  writer.put(entry);
  if (ordinary) {
    for (std::uint16_t lun : luns) {
      put_be64(entry.data(), encode_lun(lun));
      writer.put(entry);
    }
  }
  if (well_known) {
    put_be64(entry.data(), kReportLunsWellKnown);
    writer.put(entry);
  }
  task.transferred_bytes = writer.written();
  return true;
}

// The numbers of a target's logical units, to iterate over.
struct TargetLuns {
  const std::vector<std::pair<std::uint16_t, std::unique_ptr<LunChannel>>>& entries;
  struct Iterator {
    const std::pair<std::uint16_t, std::unique_ptr<LunChannel>>* at;
    std::uint16_t operator*() const { return at->first; }
    Iterator& operator++() {
      ++at;
      return *this;
    }
    bool operator!=(const Iterator& other) const { return at != other.at; }
  };
  Iterator begin() const { return {entries.data()}; }
  Iterator end() const { return {entries.data() + entries.size()}; }
  std::size_t size() const { return entries.size(); }
};

constexpr SenseData kSelectReportInvalid{.code = sense::kInvalidFieldInCdb, .field = FieldPointer{true, 2, {}}};

// What every LUN without a logical unit answers, well-known or not, but for REPORT LUNS.
void answer_inquiry(Task& task, std::uint8_t peripheral, const char* product) {
  if ((task.cdb[1] & 0x01) != 0 || task.cdb[2] != 0) {
    return answer_with_sense(task,
                             {.code = sense::kInvalidFieldInCdb,
                              .field = FieldPointer{true, static_cast<std::uint16_t>((task.cdb[1] & 1) ? 1 : 2), {}}});
  }
  std::array<std::uint8_t, kStandardInquiryBytes> bytes;
  standard_inquiry(LogicalUnitOptions{.product = product}, bytes);
  bytes[0] = peripheral;
  answer_with_data(task, bytes, get_be16(task.cdb.data() + 3));
}

void answer_request_sense(Task& task, const SenseCode& code) {
  std::array<std::uint8_t, kMaxSenseBytes> bytes;
  const std::size_t length = encode_sense({.code = code}, (task.cdb[1] & 0x01) != 0, bytes);
  answer_with_data(task, std::span(bytes).first(length), task.cdb[4]);
}

}  // namespace

void report_luns(LunChannel& channel, Task& task) {
  static constexpr std::array<std::uint16_t, 1> kAlone{0};
  const bool done = channel.target() != nullptr ? channel.target()->write_lun_list(task) : write_luns(task, kAlone);
  if (!done) return finish_invalid_cdb(channel, task, 2);
  channel.complete(task);
}

bool TargetChannel::write_lun_list(Task& task) const {
  return write_luns(task, TargetLuns{luns_});
}

TargetChannel::~TargetChannel() {
  for (auto& [lun, channel] : luns_) channel->set_target(nullptr);
}

void TargetChannel::add(std::uint16_t lun, std::unique_ptr<LunChannel> channel) {
  assert(lun <= kMaxLun && find(lun) == nullptr);
  channel->set_target(this);
  auto at = std::lower_bound(luns_.begin(), luns_.end(), lun,
                             [](const auto& entry, std::uint16_t wanted) { return entry.first < wanted; });
  luns_.emplace(at, lun, std::move(channel));
}

std::unique_ptr<LunChannel> TargetChannel::remove(std::uint16_t lun) {
  auto at = std::find_if(luns_.begin(), luns_.end(), [lun](const auto& entry) { return entry.first == lun; });
  if (at == luns_.end()) return nullptr;
  std::unique_ptr<LunChannel> channel = std::move(at->second);
  if (last_ == channel.get()) last_ = nullptr;
  luns_.erase(at);
  channel->set_target(nullptr);
  return channel;
}

LunChannel* TargetChannel::find(std::uint16_t lun) const {
  auto at = std::lower_bound(luns_.begin(), luns_.end(), lun,
                             [](const auto& entry, std::uint16_t wanted) { return entry.first < wanted; });
  return at != luns_.end() && at->first == lun ? at->second.get() : nullptr;
}

void TargetChannel::expedite() {
  for (auto& [lun, channel] : luns_) channel->expedite();
}

bool TargetChannel::idle() const {
  return std::all_of(luns_.begin(), luns_.end(), [](const auto& entry) { return entry.second->idle(); });
}

void TargetChannel::submit_after_search(std::uint16_t lun, Task& task) {
  if (LunChannel* channel = find(lun)) {
    last_ = channel;
    last_lun_ = lun;
    return channel->submit(task);
  }
  if (task.cdb[0] != kReportLuns) return answer_absent_lun(task);
  begin_answer(task);
  if (!write_lun_list(task)) return answer_with_sense(task, kSelectReportInvalid);
  task.complete(task);
}

void TargetChannel::submit_to_well_known(Task& task) {
  begin_answer(task);
  switch (task.cdb[0]) {
    case kInquiry:
      // Peripheral device type 1Eh: well-known logical unit.
      return answer_inquiry(task, 0x1e, "REPORT LUNS");
    case kReportLuns:
      if (!write_lun_list(task)) return answer_with_sense(task, kSelectReportInvalid);
      return task.complete(task);
    case kRequestSense:
      return answer_request_sense(task, sense::kNone);
    case kTestUnitReady:
      return task.complete(task);
    default:
      return answer_with_sense(task, {.code = sense::kInvalidOpcode});
  }
}

void answer_absent_lun(Task& task) {
  begin_answer(task);
  switch (task.cdb[0]) {
    case kInquiry:
      // Peripheral qualifier 011b, device type 1Fh: the target cannot have a logical unit here.
      return answer_inquiry(task, 0x7f, "");
    case kReportLuns:
      if (!write_luns(task, std::array<std::uint16_t, 0>{})) return answer_with_sense(task, kSelectReportInvalid);
      return task.complete(task);
    case kRequestSense:
      return answer_request_sense(task, sense::kLunNotSupported);
    default:
      return answer_with_sense(task, {.code = sense::kLunNotSupported});
  }
}

}  // namespace pollux::scsi
