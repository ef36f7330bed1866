#include "control/disk_state_keeper.h"

#include <pthread.h>

#include <fstream>
#include <utility>

#include "base/log.h"

namespace pollux::control {

DiskStateKeeper::DiskStateKeeper(StateStore& store, std::string boot_id)
    : store_(store), boot_id_(std::move(boot_id)), thread_([this] { run(); }) {}

DiskStateKeeper::~DiskStateKeeper() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

Result<std::string> DiskStateKeeper::host_boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  if (!(file >> id)) return fail(ErrorCode::kIoError, "cannot read /proc/sys/kernel/random/boot_id");
  return id;
}

Result<std::string> DiskStateKeeper::load(const Uuid& volume) {
  const auto found = store_.reservation(volume);
  if (!found) return fail(found.error());
  if (!found->has_value()) return std::string();
  if (!lapsed((*found)->boot_id)) return (*found)->state;
  POLLUX_TRY(store_.drop_reservation(volume));
  return std::string();
}

Result<std::string> DiskStateKeeper::load(const Uuid& volume, const std::string& guest) {
  const auto found = store_.setting(volume, guest);
  if (!found) return fail(found.error());
  if (!found->has_value()) return std::string();
  if (!lapsed((*found)->boot_id)) return (*found)->state;
  POLLUX_TRY(store_.drop_setting(volume, guest));
  return std::string();
}

void DiskStateKeeper::save(const Uuid& volume, std::string state, bool over_power_loss,
                           std::function<void(Status)> done) {
  hand_over({ReservationRecord{volume, std::move(state), over_power_loss ? "" : boot_id_}, std::move(done)});
}

void DiskStateKeeper::save(const Uuid& volume, const std::string& guest, std::string state, bool over_power_loss,
                           std::function<void(Status)> done) {
  hand_over({SettingRecord{volume, guest, std::move(state), over_power_loss ? "" : boot_id_}, std::move(done)});
}

void DiskStateKeeper::owe(std::vector<Uuid> volumes) {
  hand_over({Owed{std::move(volumes)}, [](const Status&) {}});
}

void DiskStateKeeper::told(const Uuid& volume) {
  hand_over({Told{volume}, [](const Status&) {}});
}

void DiskStateKeeper::hand_over(Change change) {
  {
    const std::lock_guard lock(mutex_);
    changes_.push_back(std::move(change));
  }
  changed_.notify_one();
}

void DiskStateKeeper::run() {
  ::pthread_setname_np(::pthread_self(), "disk-state");
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ending_ || !changes_.empty(); });
    if (changes_.empty()) return;
    Change change = std::move(changes_.front());
    changes_.pop_front();
    lock.unlock();
    change.done(std::visit([this](const auto& record) { return write(record); }, change.record));
    lock.lock();
  }
}

Status DiskStateKeeper::write(const ReservationRecord& record) {
  Status written = record.state.empty() ? store_.drop_reservation(record.volume) : store_.put_reservation(record);
  if (!written) {
    log::error("the reservations of volume {} are not durable: {}", record.volume.to_string(), written.error().message);
  }
  return written;
}

Status DiskStateKeeper::write(const SettingRecord& record) {
  Status written =
      record.state.empty() ? store_.drop_setting(record.volume, record.client) : store_.put_setting(record);
  if (!written) {
    log::error("what a guest has set on volume {} is not durable: {}", record.volume.to_string(),
               written.error().message);
  }
  return written;
}

Status DiskStateKeeper::write(const Owed& owed) {
  Status written = store_.put_losses(owed.volumes, boot_id_);
  if (!written) {
    log::error("a restart would forget which guests are to be told that a failed flush may have lost their writes: {}",
               written.error().message);
  }
  return written;
}

Status DiskStateKeeper::write(const Told& told) {
  Status written = store_.drop_loss(told.volume);
  if (!written) {
    log::error("after a restart the guest of volume {} is told of a loss again: {}", told.volume.to_string(),
               written.error().message);
  }
  return written;
}

}  // namespace pollux::control
