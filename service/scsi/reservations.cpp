#include "scsi/reservations.h"

#include <algorithm>
#include <sstream>

#include "scsi/command.h"

namespace pollux::scsi {

namespace {

constexpr char kStateHeader[] = "pollux-reservations-3";
// Without what was done.
constexpr char kEarlierStateHeader[] = "pollux-reservations-2";
// Of all nexuses: each has its own last few, and those that were forgotten are not handed in again any more.
constexpr std::size_t kMaxDoneOfAll = Reservations::kMaxRegistrants * Reservations::kMaxDone;

}  // namespace

std::optional<ReservationType> reservation_type(std::uint8_t code) {
  switch (code) {
    case 1:
    case 3:
    case 5:
    case 6:
    case 7:
    case 8:
      return static_cast<ReservationType>(code);
    default:
      return std::nullopt;
  }
}

NexusName name_of(const Nexus& nexus) {
  return {nexus.options().initiator, nexus.options().relative_target_port};
}

bool Reservations::registrants_only(ReservationType type) {
  return type == ReservationType::kWriteExclusiveRegistrantsOnly ||
         type == ReservationType::kExclusiveAccessRegistrantsOnly;
}
bool Reservations::all_registrants(ReservationType type) {
  return type == ReservationType::kWriteExclusiveAllRegistrants ||
         type == ReservationType::kExclusiveAccessAllRegistrants;
}
bool Reservations::write_exclusive(ReservationType type) {
  return type == ReservationType::kWriteExclusive || type == ReservationType::kWriteExclusiveRegistrantsOnly ||
         type == ReservationType::kWriteExclusiveAllRegistrants;
}

Registrant* Reservations::find(const NexusName& nexus) {
  auto at = std::find_if(registrants_.begin(), registrants_.end(), [&](const auto& r) { return r.nexus == nexus; });
  return at == registrants_.end() ? nullptr : &*at;
}
const Registrant* Reservations::find(const NexusName& nexus) const {
  return const_cast<Reservations*>(this)->find(nexus);
}

bool Reservations::owns(const NexusName& nexus, std::uint64_t key) const {
  const Registrant* registrant = find(nexus);
  return registrant != nullptr && registrant->key == key;
}

bool Reservations::holds(const NexusName& nexus) const {
  return held_ && (held_->holder ? *held_->holder == nexus : find(nexus) != nullptr);
}

void Reservations::attention_to_others(const NexusName& but, UnitAttention attention, Effects& effects) const {
  for (const Registrant& registrant : registrants_) {
    if (!(registrant.nexus == but)) effects.attentions.emplace_back(registrant.nexus, attention);
  }
}

// SPC-5 5.14.11.2: what unregistering does to the reservation.
void Reservations::unregister(const NexusName& nexus, Effects& effects) {
  const bool held = holds(nexus);
  std::erase_if(registrants_, [&](const Registrant& registrant) { return registrant.nexus == nexus; });
  if (!held) return;
  if (all_registrants(held_->type)) {
    if (registrants_.empty()) held_.reset();
    return;
  }
  if (registrants_only(held_->type)) {
    attention_to_others(nexus, UnitAttention::kReservationsReleased, effects);
  }
  held_.reset();
}

Reservations::Effects Reservations::register_key(const NexusName& nexus, const RegisterRequest& request) {
  Effects effects;
  Registrant* registrant = find(nexus);
  const std::uint64_t existing_key = registrant != nullptr ? registrant->key : 0;
  if (!request.ignore_existing && existing_key != request.key) return {.verdict = Verdict::kConflict};
  if (request.new_key == 0) {
    if (registrant != nullptr) unregister(nexus, effects);
  } else if (registrant != nullptr) {
    registrant->key = request.new_key;
  } else {
    if (registrants_.size() >= kMaxRegistrants) return {.verdict = Verdict::kNoResources};
    registrants_.push_back({nexus, request.new_key});
  }
  ++generation_;
  aptpl_ = request.aptpl;
  return effects;
}

Reservations::Effects Reservations::reserve(const NexusName& nexus, std::uint64_t key, ReservationType type) {
  if (!owns(nexus, key)) return {.verdict = Verdict::kConflict};
  if (held_) {
    return {.verdict = holds(nexus) && held_->type == type ? Verdict::kDone : Verdict::kConflict};
  }
  held_ = Held{type, all_registrants(type) ? std::nullopt : std::optional(nexus)};
  return {};
}

Reservations::Effects Reservations::release(const NexusName& nexus, std::uint64_t key, ReservationType type) {
  if (!owns(nexus, key)) return {.verdict = Verdict::kConflict};
  if (!holds(nexus)) return {};
  if (held_->type != type) return {.verdict = Verdict::kInvalidRelease};
  Effects effects;
  if (registrants_only(type) || all_registrants(type)) {
    attention_to_others(nexus, UnitAttention::kReservationsReleased, effects);
  }
  held_.reset();
  return effects;
}

Reservations::Effects Reservations::clear(const NexusName& nexus, std::uint64_t key) {
  if (!owns(nexus, key)) return {.verdict = Verdict::kConflict};
  Effects effects;
  attention_to_others(nexus, UnitAttention::kReservationsPreempted, effects);
  registrants_.clear();
  held_.reset();
  ++generation_;
  return effects;
}

// SPC-5 5.14.11.4.
Reservations::Effects Reservations::preempt(const NexusName& nexus, const PreemptRequest& request) {
  if (!owns(nexus, request.key)) return {.verdict = Verdict::kConflict};
  Effects effects;
  bool takes_over = false;
  auto is_victim = [&](const Registrant& registrant) {
    return !(registrant.nexus == nexus) && registrant.key == request.victim_key;
  };
  bool every_other = false;
  if (held_ && all_registrants(held_->type)) {
    every_other = takes_over = request.victim_key == 0;
  } else if (request.victim_key == 0) {
    return {.verdict = Verdict::kInvalidServiceActionKey};
  } else if (held_) {
    takes_over = owns(*held_->holder, request.victim_key);
  }
  const bool names_registrant =
      every_other || takes_over || std::any_of(registrants_.begin(), registrants_.end(), [&](const auto& registrant) {
        return registrant.key == request.victim_key;
      });
  if (!names_registrant) return {.verdict = Verdict::kConflict};

  std::erase_if(registrants_, [&](const Registrant& registrant) {
    const bool goes = every_other ? !(registrant.nexus == nexus) : is_victim(registrant);
    if (goes) {
      effects.attentions.emplace_back(registrant.nexus, UnitAttention::kRegistrationsPreempted);
      effects.preempted.push_back(registrant.nexus);
    }
    return goes;
  });
  if (takes_over) {
    if (held_->type != request.type) attention_to_others(nexus, UnitAttention::kReservationsReleased, effects);
    held_ = Held{request.type, all_registrants(request.type) ? std::nullopt : std::optional(nexus)};
  }
  ++generation_;
  return effects;
}

// SPC-5 5.14.8.
Reservations::Effects Reservations::register_and_move(const NexusName& nexus, const MoveRequest& request) {
  if (!owns(nexus, request.key)) return {.verdict = Verdict::kConflict};
  if (!held_ || !held_->holder || !(*held_->holder == nexus)) return {.verdict = Verdict::kConflict};
  if (request.new_key == 0) return {.verdict = Verdict::kInvalidServiceActionKey};
  if (request.to == nexus) return {.verdict = Verdict::kInvalidTransportId};
  Effects effects;
  if (Registrant* target = find(request.to)) {
    target->key = request.new_key;
  } else {
    if (registrants_.size() >= kMaxRegistrants) return {.verdict = Verdict::kNoResources};
    registrants_.push_back({request.to, request.new_key});
  }
  held_->holder = request.to;
  if (request.unregister) unregister(nexus, effects);
  ++generation_;
  aptpl_ = request.aptpl;
  return effects;
}

bool Reservations::legacy_reserve(const Nexus& nexus) {
  if (!registrants_.empty() || (legacy_holder_ != nullptr && legacy_holder_ != &nexus)) return false;
  legacy_holder_ = &nexus;
  return true;
}

// Releasing what another holds does nothing and is no error (SPC-2 5.17).
bool Reservations::legacy_release(const Nexus& nexus) {
  if (!registrants_.empty()) return false;
  legacy_drop(nexus);
  return true;
}

bool Reservations::legacy_drop(const Nexus& nexus) {
  if (legacy_holder_ != &nexus) return false;
  legacy_holder_ = nullptr;
  return true;
}

bool Reservations::restricts(const Nexus& nexus) const {
  if (legacy_holder_ != nullptr && legacy_holder_ != &nexus) return true;
  if (!held_) return false;
  const NexusName name = name_of(nexus);
  if (holds(name)) return false;
  return !(registrants_only(held_->type) && find(name) != nullptr);
}

bool Reservations::allows(const Nexus& nexus, const Command& command, const std::uint8_t* cdb) const {
  constexpr std::uint8_t kStartStopUnit = 0x1b;
  constexpr std::uint8_t kPreventAllow = 0x1e;
  // Both commands pass when they ask for what a reservation does not forbid: start without a power condition; allow.
  const bool harmless = (command.opcode == kStartStopUnit && (cdb[4] & 0xf1) == 0x01) ||
                        (command.opcode == kPreventAllow && (cdb[4] & 0x03) == 0);
  if (legacy_holder_ != nullptr && legacy_holder_ != &nexus) return command.allowed_when_reserved || harmless;
  if (!restricts(nexus)) return true;
  switch (command.reserved) {
    case Command::Reserved::kAllowed:
    case Command::Reserved::kOwnRules:
      return true;
    case Command::Reserved::kReadAllowed:
      return write_exclusive(held_->type);
    case Command::Reserved::kConflict:
      break;
  }
  return harmless;
}

void Reservations::note_done(const NexusName& nexus, std::uint64_t arrival) {
  const auto of_nexus = [&](const Done& done) { return done.nexus == nexus; };
  if (static_cast<std::size_t>(std::count_if(done_.begin(), done_.end(), of_nexus)) >= kMaxDone) {
    done_.erase(std::find_if(done_.begin(), done_.end(), of_nexus));
  } else if (done_.size() >= kMaxDoneOfAll) {
    done_.erase(done_.begin());
  }
  done_.push_back({nexus, arrival});
}

bool Reservations::was_done(const NexusName& nexus, std::uint64_t arrival) const {
  return std::find(done_.begin(), done_.end(), Done{nexus, arrival}) != done_.end();
}

std::string Reservations::save() const {
  if (registrants_.empty() && done_.empty()) return {};
  std::ostringstream out;
  out << kStateHeader << ' ' << generation_ << ' ' << (aptpl_ ? 1 : 0) << ' '
      << (held_ ? static_cast<int>(held_->type) : 0) << ' ' << registrants_.size() << ' ' << done_.size() << '\n';
  for (const Registrant& registrant : registrants_) {
    const bool holder = held_ && held_->holder && *held_->holder == registrant.nexus;
    out << registrant.nexus.initiator << ' ' << registrant.nexus.relative_target_port << ' ' << registrant.key << ' '
        << (holder ? 1 : 0) << '\n';
  }
  for (const Done& done : done_) {
    out << done.nexus.initiator << ' ' << done.nexus.relative_target_port << ' ' << done.arrival << '\n';
  }
  return std::move(out).str();
}

Status Reservations::restore(const std::string& state) {
  auto corrupt = [] { return fail(ErrorCode::kCorrupt, "the saved persistent reservations cannot be read"); };
  if (state.empty()) return {};
  std::istringstream in(state);
  std::string header;
  std::uint32_t generation = 0;
  unsigned aptpl = 0;
  unsigned type = 0;
  std::size_t count = 0;
  std::size_t done_count = 0;
  if (!(in >> header >> generation >> aptpl >> type >> count) || aptpl > 1 || count > kMaxRegistrants || type > 8 ||
      (type != 0 && !reservation_type(static_cast<std::uint8_t>(type)))) {
    return corrupt();
  }
  if (header != kEarlierStateHeader && (header != kStateHeader || !(in >> done_count) || done_count > kMaxDoneOfAll)) {
    return corrupt();
  }
  if (count == 0 && done_count == 0) return corrupt();
  std::vector<Registrant> registrants;
  std::optional<NexusName> holder;
  for (std::size_t i = 0; i < count; ++i) {
    Registrant registrant;
    int holds = 0;
    if (!(in >> registrant.nexus.initiator >> registrant.nexus.relative_target_port >> registrant.key >> holds) ||
        registrant.key == 0) {
      return corrupt();
    }
    if (holds != 0) holder = registrant.nexus;
    registrants.push_back(std::move(registrant));
  }
  std::vector<Done> done(done_count);
  for (Done& one : done) {
    if (!(in >> one.nexus.initiator >> one.nexus.relative_target_port >> one.arrival)) return corrupt();
  }
  if (type == 0) {
    if (holder) return corrupt();
    held_.reset();
  } else {
    const auto known = *reservation_type(static_cast<std::uint8_t>(type));
    if (all_registrants(known) == holder.has_value()) return corrupt();
    held_ = Held{known, holder};
  }
  registrants_ = std::move(registrants);
  done_ = std::move(done);
  generation_ = generation;
  aptpl_ = aptpl != 0;
  return {};
}

}  // namespace pollux::scsi
