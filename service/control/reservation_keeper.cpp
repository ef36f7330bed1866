#include "control/reservation_keeper.h"

#include <pthread.h>

#include <fstream>
#include <utility>

#include "base/log.h"

namespace pollux::control {

ReservationKeeper::ReservationKeeper(StateStore& store, std::string boot_id)
    : store_(store), boot_id_(std::move(boot_id)), thread_([this] { run(); }) {}

ReservationKeeper::~ReservationKeeper() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

Result<std::string> ReservationKeeper::host_boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  if (!(file >> id)) return fail(ErrorCode::kIoError, "cannot read /proc/sys/kernel/random/boot_id");
  return id;
}

Result<std::string> ReservationKeeper::load(const Uuid& volume) {
  const auto found = store_.reservation(volume);
  if (!found) return fail(found.error());
  if (!found->has_value()) return std::string();
  const ReservationRecord& record = **found;
  if (!record.boot_id.empty() && record.boot_id != boot_id_) {
    POLLUX_TRY(store_.drop_reservation(volume));
    return std::string();
  }
  return record.state;
}

void ReservationKeeper::save(const Uuid& volume, std::string state, bool over_power_loss,
                             std::function<void(Status)> done) {
  Change change{{volume, std::move(state), over_power_loss ? "" : boot_id_}, std::move(done)};
  {
    const std::lock_guard lock(mutex_);
    changes_.push_back(std::move(change));
  }
  changed_.notify_one();
}

void ReservationKeeper::run() {
  ::pthread_setname_np(::pthread_self(), "reservations");
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ending_ || !changes_.empty(); });
    if (changes_.empty()) return;
    Change change = std::move(changes_.front());
    changes_.pop_front();
    lock.unlock();
    const Status written = change.record.state.empty() ? store_.drop_reservation(change.record.volume)
                                                       : store_.put_reservation(change.record);
    if (!written) {
      log::error("the reservations of volume {} are not durable: {}", change.record.volume.to_string(),
                 written.error().message);
    }
    change.done(written);
    lock.lock();
  }
}

}  // namespace pollux::control
