#include "scsi/logical_unit.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "scsi/channel_anchor.h"
#include "scsi/exclusive.h"
#include "scsi/lun_channel.h"
#include "scsi/mode_pages.h"
#include "scsi/reservations.h"
#include "scsi/settings.h"
#include "scsi/tenant.h"

namespace pollux::scsi {

namespace {

constexpr std::size_t kMaxInitiatorBytes = 160;

bool valid_initiator(const std::string& name) {
  return !name.empty() && name.size() <= kMaxInitiatorBytes &&
         std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c <= '~' && c != ','; });
}

}  // namespace

Result<std::shared_ptr<LogicalUnit>> LogicalUnit::make(LogicalUnitOptions options) {
  if (options.bdev == nullptr) return fail(ErrorCode::kInvalid, "a logical unit needs a block device");
  const std::uint32_t block_bytes = options.bdev->block_bytes();
  if (block_bytes != 512 && block_bytes != 4096) {
    return fail(ErrorCode::kInvalid, "block device " + options.bdev->name() + " has blocks of " +
                                         std::to_string(block_bytes) + " bytes; SCSI guests take 512 or 4096");
  }
  POLLUX_TRY(bdev::check_stack(*options.bdev));
  std::string saved;
  if (options.reservations != nullptr) {
    auto loaded = options.reservations->load(options.uuid);
    if (!loaded) return fail(std::move(loaded.error()));
    saved = std::move(*loaded);
  }
  std::shared_ptr<LogicalUnit> unit(new LogicalUnit(std::move(options)));
  POLLUX_TRY(unit->reservations_->restore(saved));
  POLLUX_TRY(unit->settings_->load());
  // The plain pointer holds: the token goes first when the unit does, and waits for a call under way. The size is read
  // after the call is in place, so that none is missed.
  unit->resize_token_ =
      unit->bdev().on_resize([raw = unit.get()](std::uint64_t size_bytes) { raw->resized(size_bytes); });
  unit->size_blocks_.store(unit->bdev().size_bytes() >> unit->block_shift_, std::memory_order_release);
  return unit;
}

LogicalUnit::LogicalUnit(LogicalUnitOptions options)
    : options_(std::move(options)),
      block_bytes_(options_.bdev->block_bytes()),
      block_shift_(static_cast<std::uint32_t>(std::countr_zero(block_bytes_))),
      serial_(options_.uuid.to_string()),
      mode_pages_(std::make_unique<ModePages>()),
      reservations_(std::make_unique<Reservations>()),
      settings_(std::make_unique<Settings>(*this)),
      exclusive_ranges_(std::make_unique<ExclusiveRanges>(*this)) {}

LogicalUnit::~LogicalUnit() = default;

void LogicalUnit::resized(std::uint64_t size_bytes) {
  const std::uint64_t blocks = size_bytes >> block_shift_;
  if (size_blocks_.exchange(blocks, std::memory_order_acq_rel) != blocks) raise_all(UnitAttention::kCapacityChanged);
}

Result<std::shared_ptr<Nexus>> LogicalUnit::join(NexusOptions options) {
  if (!valid_initiator(options.initiator)) {
    return fail(ErrorCode::kInvalid,
                "an initiator's name is 1 to 160 printable ASCII characters without spaces and "
                "commas, not \"" +
                    options.initiator + "\"");
  }
  const auto reserved = settings_->load_reserved(options.initiator);
  if (!reserved) return fail(reserved.error());
  std::lock_guard lock(mutex_);
  for (const Nexus* other : nexuses_) {
    if (other->options().initiator == options.initiator &&
        other->options().relative_target_port == options.relative_target_port) {
      return fail(ErrorCode::kExists, "initiator " + options.initiator + " uses logical unit " +
                                          options_.uuid.to_string() + " through port " +
                                          std::to_string(options.relative_target_port) + " already");
    }
  }
  const bool announce = options.announce_power_on;
  std::shared_ptr<Nexus> nexus(new Nexus(shared_from_this(), std::move(options)));
  nexuses_.push_back(nexus.get());
  if (announce) nexus->raise(UnitAttention::kPowerOn);
  if (*reserved) reservations_->legacy_reserve(*nexus);
  update_gates();
  return nexus;
}

void LogicalUnit::leave(Nexus& nexus) {
  std::lock_guard lock(mutex_);
  std::erase(nexuses_, &nexus);
  if (reservations_->legacy_drop(nexus)) update_gates();
}

void LogicalUnit::raise_all(UnitAttention attention, const Nexus* except) {
  std::lock_guard lock(mutex_);
  for (Nexus* nexus : nexuses_) {
    if (nexus != except) nexus->raise(attention);
  }
}

void LogicalUnit::update_gates() {
  const bool protect_all = options_.bdev->read_only() || mode_pages_->software_write_protect();
  for (Nexus* nexus : nexuses_) {
    nexus->set_gate(Nexus::kGateWriteProtect, protect_all || nexus->options().read_only);
    nexus->set_gate(Nexus::kGateReservation, reservations_->restricts(*nexus));
  }
}

Result<std::shared_ptr<LogicalUnit>> LogicalUnits::get(LogicalUnitOptions options) {
  std::lock_guard lock(mutex_);
  std::erase_if(units_, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<LogicalUnit>& entry = units_[options.uuid];
  if (auto unit = entry.lock()) {
    if (&unit->bdev() == options.bdev.get()) return unit;
    return fail(ErrorCode::kExists, "logical unit " + options.uuid.to_string() + " stands on another device");
  }
  auto unit = LogicalUnit::make(std::move(options));
  if (unit) entry = *unit;
  return unit;
}

Nexus::Nexus(std::shared_ptr<LogicalUnit> unit, NexusOptions options)
    : unit_(std::move(unit)), options_(std::move(options)) {}

Nexus::~Nexus() {
  unit_->leave(*this);
}

std::unique_ptr<LunChannel> Nexus::make_channel(reactor::Reactor& reactor, std::unique_ptr<bdev::Channel> device) {
  std::unique_ptr<LunChannel> channel(
      new LunChannel(shared_from_this(), reactor, std::move(device), Tenant::of(reactor, options_.initiator)));
  std::lock_guard lock(unit_->mutex());
  channel->exclusive_ = unit_->exclusive_ranges().current();
  channels_.push_back(channel->anchor());
  return channel;
}

void Nexus::raise(UnitAttention attention) {
  attentions_.fetch_or(1u << static_cast<unsigned>(attention), std::memory_order_acq_rel);
  set_gate(kGateAttention, true);
}

bool Nexus::pop_attention(UnitAttention& attention) {
  std::uint32_t waiting = attentions_.load(std::memory_order_acquire);
  std::uint32_t lowest;
  do {
    lowest = waiting & (~waiting + 1);
  } while (waiting != 0 && !attentions_.compare_exchange_weak(waiting, waiting & ~lowest, std::memory_order_acq_rel));
  if ((waiting & ~lowest) == 0) {
    set_gate(kGateAttention, false);
    // One that was raised between the two: the gate must not stay open.
    if (attentions_.load(std::memory_order_acquire) != 0) set_gate(kGateAttention, true);
  }
  if (waiting == 0) return false;
  attention = static_cast<UnitAttention>(std::countr_zero(lowest));
  return true;
}

void Nexus::set_gate(std::uint32_t bit, bool on) {
  if (on) {
    gate_.fetch_or(bit, std::memory_order_seq_cst);
  } else {
    gate_.fetch_and(~bit, std::memory_order_seq_cst);
  }
}

}  // namespace pollux::scsi
