#include "scsi/settings.h"

#include <mutex>
#include <utility>

namespace pollux::scsi {

namespace {

constexpr char kReserved[] = "pollux-reserved-1\n";

}  // namespace

Status Settings::load() {
  SettingStore* store = unit_.options().settings.get();
  if (store == nullptr) return {};
  const auto saved = store->load(unit_.options().uuid, "");
  if (!saved) return fail(saved.error());
  POLLUX_TRY(unit_.mode_pages().restore(*saved));
  kept_ = unit_.mode_pages().values();
  return {};
}

Result<bool> Settings::load_reserved(const std::string& initiator) const {
  SettingStore* store = unit_.options().settings.get();
  if (store == nullptr) return false;
  const auto saved = store->load(unit_.options().uuid, initiator);
  if (!saved) return fail(saved.error());
  if (saved->empty()) return false;
  if (*saved != kReserved) {
    return fail(ErrorCode::kCorrupt, "what initiator " + initiator + " had set on logical unit " +
                                         unit_.options().uuid.to_string() + " cannot be read");
  }
  return true;
}

void Settings::keep_modes(std::function<void(Status)> done) {
  SettingStore* store = unit_.options().settings.get();
  if (store == nullptr) return done({});
  ++keeping_;
  // The plain pointer holds: the command that waits for the answer keeps the unit.
  store->save(unit_.options().uuid, "", unit_.mode_pages().save(), SettingStore::Lasts::kOverPowerLoss,
              [this, values = unit_.mode_pages().values(), done = std::move(done)](Status kept) {
                modes_kept(values, kept);
                done(std::move(kept));
              });
}

void Settings::modes_kept(const ModePages::Values& values, const Status& kept) {
  std::lock_guard lock(unit_.mutex());
  if (kept) kept_ = values;
  // A later change holds what this one did, and settles it for both.
  if (--keeping_ != 0 || unit_.mode_pages().values() == kept_) return;
  unit_.mode_pages().set(kept_);
  unit_.update_gates();
  for (Nexus* nexus : unit_.nexuses()) nexus->raise(UnitAttention::kModeParametersChanged);
}

void Settings::keep_reserved(const std::string& initiator, bool reserved, std::function<void(Status)> done) {
  SettingStore* store = unit_.options().settings.get();
  if (store == nullptr) return done({});
  // SPC-2 5.20.1: a power loss ends it.
  store->save(unit_.options().uuid, initiator, reserved ? kReserved : "", SettingStore::Lasts::kUntilPowerLoss,
              std::move(done));
}

}  // namespace pollux::scsi
