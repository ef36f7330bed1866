#pragma once
// DiskStateKeeper: SCSI persistent reservations, what guests have set on their disks, and which volumes' guests must be
// told of a loss, in the state store. Reactors hand their changes over and go on; one thread writes them, in the order
// in which they came.
//
// A reservation without APTPL ends with a power loss (SPC-5 5.14.5), which is when the host's boot id changes; a
// restart of the service alone ends none. What guests have set, and losses, end with their attachments, in the
// transaction that forgets those; a loss also with the host, as its guests do.

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "base/result.h"
#include "base/uuid.h"
#include "blob/loss_log.h"
#include "control/state_store.h"
#include "vhost/reservation_store.h"
#include "vhost/setting_store.h"

namespace pollux::control {

class DiskStateKeeper final : public vhost::ReservationStore, public vhost::SettingStore, public blob::LossLog {
 public:
  // The store outlives it. `boot_id` names this start of the host.
  DiskStateKeeper(StateStore& store, std::string boot_id);
  // Writes what is still to be written.
  ~DiskStateKeeper() override;

  Result<std::string> load(const Uuid& volume) override;
  void save(const Uuid& volume, std::string state, bool over_power_loss, std::function<void(Status)> done) override;

  Result<std::string> load(const Uuid& volume, const std::string& guest) override;
  void save(const Uuid& volume, const std::string& guest, std::string state, bool over_power_loss,
            std::function<void(Status)> done) override;

  void owe(std::vector<Uuid> volumes) override;
  void told(const Uuid& volume) override;

  // kIoError: the kernel does not tell.
  static Result<std::string> host_boot_id();

 private:
  struct Owed {
    std::vector<Uuid> volumes;
  };
  struct Told {
    Uuid volume;
  };
  struct Change {
    std::variant<ReservationRecord, SettingRecord, Owed, Told> record;
    std::function<void(Status)> done;
  };
  void hand_over(Change change);
  void run();
  Status write(const ReservationRecord& record);
  Status write(const SettingRecord& record);
  Status write(const Owed& owed);
  Status write(const Told& told);
  bool lapsed(const std::string& boot_id) const { return !boot_id.empty() && boot_id != boot_id_; }

  StateStore& store_;
  const std::string boot_id_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Change> changes_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace pollux::control
