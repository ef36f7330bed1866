#pragma once
// TargetChannel: the logical units of one SCSI target as one reactor sees them, by LUN.
//
// It answers what concerns the target rather than a logical unit: REPORT LUNS on any LUN and on its well-known one, and
// commands to a LUN that is not there (SPC-5 6.6.2 peripheral qualifier, SAM-5 5.11 incorrect logical unit).

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "scsi/lun_channel.h"
#include "scsi/task.h"

namespace pollux::scsi {

// Flat space addressing takes 14 bits (SAM-5 4.7.7.4), and virtio-scsi has no other.
inline constexpr std::uint16_t kMaxLun = 16383;

// All calls on the reactor.
class TargetChannel {
 public:
  TargetChannel() = default;
  ~TargetChannel();
  TargetChannel(const TargetChannel&) = delete;
  TargetChannel& operator=(const TargetChannel&) = delete;

  // Replaces nothing: the LUN must be free. Guests that are to notice get UnitAttention::kReportedLunsChanged from the
  // front end, once for each nexus of the target.
  void add(std::uint16_t lun, std::unique_ptr<LunChannel> channel);
  // Null when there is none. The caller keeps it until it is idle.
  std::unique_ptr<LunChannel> remove(std::uint16_t lun);
  LunChannel* find(std::uint16_t lun) const;
  bool empty() const { return luns_.empty(); }
  bool idle() const;
  // Somebody waits for the tasks that are in flight.
  void expedite();

  // Any LUN, there or not.
  void submit(std::uint16_t lun, Task& task) {
    if (lun != last_lun_ || last_ == nullptr) [[unlikely]]
      return submit_after_search(lun, task);
    last_->submit(task);
  }
  // The REPORT LUNS well-known logical unit, C101h (SPC-5 clause on it): INQUIRY, REPORT LUNS, REQUEST SENSE, TEST UNIT
  // READY.
  void submit_to_well_known(Task& task);

  // For REPORT LUNS: fills data_in. False when the CDB selects what there is not.
  bool write_lun_list(Task& task) const;

 private:
  void submit_after_search(std::uint16_t lun, Task& task);

  std::vector<std::pair<std::uint16_t, std::unique_ptr<LunChannel>>> luns_;  // by LUN
  // The one that the last task was for; null when it is gone.
  LunChannel* last_ = nullptr;
  std::uint16_t last_lun_ = 0;
};

// Answers a task for which there is no logical unit and no target channel either (SPC-5 6.6.2; 25h/00h). Completes it.
void answer_absent_lun(Task& task);

}  // namespace pollux::scsi
