// PERSISTENT RESERVE IN and OUT (SPC-5 6.16, 6.17), RESERVE and RELEASE (SPC-2 7.21, 7.17): CDBs and parameter lists.
// The rules are in reservations.h.
//
// These commands are rare: they take the logical unit's mutex and allocate small lists.

#include <algorithm>
#include <array>
#include <mutex>
#include <vector>

#include "scsi/bytes.h"
#include "scsi/channel_anchor.h"
#include "scsi/handlers.h"
#include "scsi/reply.h"
#include "scsi/reservations.h"
#include "scsi/settings.h"
#include "scsi/task_management.h"
#include "scsi/transport_id.h"

namespace pollux::scsi {

namespace {

enum OutAction : std::uint8_t {
  kRegister = 0,
  kReserve = 1,
  kRelease = 2,
  kClear = 3,
  kPreempt = 4,
  kPreemptAndAbort = 5,
  kRegisterAndIgnore = 6,
  kRegisterAndMove = 7,
};
enum InAction : std::uint8_t { kReadKeys = 0, kReadReservation = 1, kReportCapabilities = 2, kReadFullStatus = 3 };

constexpr std::size_t kBasicListBytes = 24;
// A TransportID of an initiator with the longest name fits well.
constexpr std::size_t kMaxListBytes = kBasicListBytes + 256;

std::uint8_t scope_and_type(const Reservations& reservations) {
  return reservations.held() ? static_cast<std::uint8_t>(reservations.held()->type) : 0;  // scope 0h: logical unit
}

void append_be64(std::vector<std::uint8_t>& out, std::uint64_t value) {
  out.resize(out.size() + 8);
  put_be64(out.data() + out.size() - 8, value);
}

void add_keys(const Reservations& reservations, std::vector<std::uint8_t>& out) {
  for (const Registrant& registrant : reservations.registrants()) append_be64(out, registrant.key);
}

void add_reservation(const Reservations& reservations, std::vector<std::uint8_t>& out) {
  const auto& held = reservations.held();
  if (!held) return;
  std::uint64_t key = 0;  // all registrants: no single holder
  for (const Registrant& registrant : reservations.registrants()) {
    if (held->holder && registrant.nexus == *held->holder) key = registrant.key;
  }
  append_be64(out, key);
  out.insert(out.end(), 8, 0);
  out[out.size() - 3] = scope_and_type(reservations);
}

void add_full_status(const Reservations& reservations, std::vector<std::uint8_t>& out) {
  for (const Registrant& registrant : reservations.registrants()) {
    const auto transport_id = encode_transport_id(registrant.nexus.initiator);
    std::array<std::uint8_t, 24> head{};
    put_be64(head.data(), registrant.key);
    if (reservations.holds(registrant.nexus)) {
      head[12] = 0x01;  // R_HOLDER
      head[13] = scope_and_type(reservations);
    }
    put_be16(head.data() + 18, registrant.nexus.relative_target_port);
    put_be32(head.data() + 20, static_cast<std::uint32_t>(transport_id.size()));
    out.insert(out.end(), head.begin(), head.end());
    out.insert(out.end(), transport_id.begin(), transport_id.end());
  }
}

std::vector<std::uint8_t> capabilities(const LogicalUnit& unit, const Reservations& reservations) {
  std::vector<std::uint8_t> out(8);
  put_be16(out.data(), 8);
  if (unit.options().reservations != nullptr) out[2] |= 0x01;  // PTPL_C
  out[3] = 0x80;                                               // TMV
  if (reservations.aptpl()) out[3] |= 0x01;                    // PTPL_A
  out[4] = 0x80 | 0x40 | 0x20 | 0x08 | 0x02;                   // WR_EX_AR, EX_AC_RO, WR_EX_RO, EX_AC, WR_EX
  out[5] = 0x01;                                               // EX_AC_AR
  return out;
}

bool checks_type(std::uint8_t action) {
  return action == kReserve || action == kRelease || action == kPreempt || action == kPreemptAndAbort;
}

struct OutParameters {
  std::uint64_t key = 0;
  std::uint64_t new_key = 0;
  bool aptpl = false;
  bool unregister = false;
  NexusName move_to;
};

// Ends the task and answers false when the parameter list is not right.
bool parse_parameters(LunChannel& channel, Task& task, std::uint8_t action, OutParameters& out) {
  const std::uint32_t length = get_be32(task.cdb.data() + 5);
  std::array<std::uint8_t, kMaxListBytes> list{};
  const bool move = action == kRegisterAndMove;
  if (move ? length < kBasicListBytes || length > list.size() : length != kBasicListBytes) {
    finish_with_sense(channel, task, sense::kParameterListLength);
    return false;
  }
  if (!copy_parameters(channel, task, 5, std::span(list).first(length))) return false;
  out.key = get_be64(list.data());
  out.new_key = get_be64(list.data() + 8);
  const std::size_t flags_at = move ? 17 : 20;
  const std::uint8_t flags = list[flags_at];
  if (action == kRegister || action == kRegisterAndIgnore || move) {
    out.aptpl = (flags & 0x01) != 0;
    if (out.aptpl && channel.unit().options().reservations == nullptr) {
      finish_invalid_parameter(channel, task, static_cast<std::uint16_t>(flags_at), 0);
      return false;
    }
  }
  if (!move) {
    // SPEC_I_PT and ALL_TG_PT are not supported (SIP_C and ATP_C are zero); they mean something to registering alone.
    if ((action == kRegister || action == kRegisterAndIgnore) && (flags & 0x0c) != 0) {
      finish_invalid_parameter(channel, task, 20, (flags & 0x08) != 0 ? 3 : 2);
      return false;
    }
    return true;
  }
  out.unregister = (flags & 0x02) != 0;
  out.move_to.relative_target_port = get_be16(list.data() + 18);
  const std::uint32_t id_length = get_be32(list.data() + 20);
  if (id_length > length - kBasicListBytes) {
    finish_with_sense(channel, task, sense::kParameterListLength);
    return false;
  }
  const auto initiator = decode_transport_id(std::span(list).subspan(kBasicListBytes, id_length));
  if (!initiator) {
    finish_invalid_parameter(channel, task, kBasicListBytes);
    return false;
  }
  out.move_to.initiator = *initiator;
  return true;
}

Reservations::Effects apply(Reservations& reservations, const NexusName& nexus, std::uint8_t action,
                            ReservationType type, const OutParameters& parameters) {
  const std::uint64_t key = parameters.key;
  switch (action) {
    case kRegister:
    case kRegisterAndIgnore:
      return reservations.register_key(nexus, {.key = key,
                                               .new_key = parameters.new_key,
                                               .ignore_existing = action == kRegisterAndIgnore,
                                               .aptpl = parameters.aptpl});
    case kReserve:
      return reservations.reserve(nexus, key, type);
    case kRelease:
      return reservations.release(nexus, key, type);
    case kClear:
      return reservations.clear(nexus, key);
    case kRegisterAndMove:
      return reservations.register_and_move(nexus, {.key = key,
                                                    .new_key = parameters.new_key,
                                                    .to = parameters.move_to,
                                                    .unregister = parameters.unregister,
                                                    .aptpl = parameters.aptpl});
    default:
      return reservations.preempt(nexus, {.key = key, .victim_key = parameters.new_key, .type = type});
  }
}

void finish_refused(LunChannel& channel, Task& task, Reservations::Verdict verdict) {
  using Verdict = Reservations::Verdict;
  switch (verdict) {
    case Verdict::kInvalidRelease:
      return finish_with_sense(channel, task, sense::kInvalidRelease);
    case Verdict::kNoResources:
      return finish_with_sense(channel, task, sense::kInsufficientRegistrations);
    case Verdict::kInvalidServiceActionKey:
      return finish_invalid_parameter(channel, task, 8);
    case Verdict::kInvalidTransportId:
      return finish_invalid_parameter(channel, task, kBasicListBytes);
    case Verdict::kConflict:
    case Verdict::kDone:
      break;
  }
  finish_with_status(channel, task, ScsiStatus::kReservationConflict);
}

// Under the unit's mutex.
void tell(LogicalUnit& unit, const Reservations::Effects& effects) {
  for (const auto& [name, attention] : effects.attentions) {
    for (Nexus* nexus : unit.nexuses()) {
      if (name_of(*nexus) == name) nexus->raise(attention);
    }
  }
}

// Under the unit's mutex.
std::vector<std::shared_ptr<ChannelAnchor>> channels_of(const LogicalUnit& unit, const std::vector<NexusName>& names) {
  std::vector<std::shared_ptr<ChannelAnchor>> anchors;
  for (const Nexus* nexus : unit.nexuses()) {
    if (std::find(names.begin(), names.end(), name_of(*nexus)) == names.end()) continue;
    anchors.insert(anchors.end(), nexus->channels().begin(), nexus->channels().end());
  }
  return anchors;
}

// The reservation of RESERVE is durable, or could not be made so and ends.
void reserved_unit(LunChannel& channel, Task& task, bool kept) {
  if (kept) return finish_good(channel, task);
  {
    std::lock_guard lock(channel.unit().mutex());
    if (channel.unit().reservations().legacy_drop(channel.nexus())) channel.unit().update_gates();
  }
  finish_with_sense(channel, task, sense::kInternalTargetFailure);
}

}  // namespace

void persistent_reserve_in(LunChannel& channel, Task& task) {
  LogicalUnit& unit = channel.unit();
  const std::uint8_t action = task.cdb[1] & 0x1f;
  std::vector<std::uint8_t> out(8);
  {
    std::lock_guard lock(unit.mutex());
    const Reservations& reservations = unit.reservations();
    put_be32(out.data(), reservations.generation());
    switch (action) {
      case kReadKeys:
        add_keys(reservations, out);
        break;
      case kReadReservation:
        add_reservation(reservations, out);
        break;
      case kReportCapabilities:
        out = capabilities(unit, reservations);
        break;
      default:
        add_full_status(reservations, out);
        break;
    }
  }
  // The length counts what there is, not what fits.
  if (action != kReportCapabilities) put_be32(out.data() + 4, static_cast<std::uint32_t>(out.size() - 8));
  finish_with_data(channel, task, out, get_be16(task.cdb.data() + 7));
}

void persistent_reserve_out(LunChannel& channel, Task& task) {
  LogicalUnit& unit = channel.unit();
  const std::uint8_t action = task.cdb[1] & 0x1f;
  ReservationType type = ReservationType::kWriteExclusive;
  if (checks_type(action)) {
    if (task.cdb[2] >> 4 != 0) return finish_invalid_cdb(channel, task, 2, 7);
    const auto known = reservation_type(task.cdb[2] & 0x0f);
    if (!known) return finish_invalid_cdb(channel, task, 2, 3);
    type = *known;
  }
  OutParameters parameters;
  if (!parse_parameters(channel, task, action, parameters)) return;

  const NexusName initiator = name_of(channel.nexus());
  const CommandArrival arrival = task.arrival != nullptr ? task.arrival(task) : CommandArrival{};
  Reservations::Effects effects;
  std::vector<std::shared_ptr<ChannelAnchor>> to_abort;
  bool saving = false;
  {
    std::lock_guard lock(unit.mutex());
    Reservations& reservations = unit.reservations();
    if (arrival.again && reservations.was_done(initiator, arrival.number)) {
      // The process that did it died before it could say so. Done twice, most actions would fail: the keys have
      // changed.
    } else if (action == kRegisterAndMove &&
               std::none_of(unit.nexuses().begin(), unit.nexuses().end(), [&](const Nexus* nexus) {
                 return nexus->options().relative_target_port == parameters.move_to.relative_target_port;
               })) {
      effects.verdict = Reservations::Verdict::kInvalidTransportId;
    } else {
      const bool was_kept = !reservations.registrants().empty();
      effects = apply(reservations, initiator, action, type, parameters);
      if (effects.verdict == Reservations::Verdict::kDone) {
        if (arrival.number != 0) reservations.note_done(initiator, arrival.number);
        unit.update_gates();
        tell(unit, effects);
        if (action == kPreemptAndAbort) to_abort = channels_of(unit, effects.preempted);
        saving = unit.options().reservations != nullptr &&
                 (was_kept || !reservations.registrants().empty() || arrival.number != 0);
      }
    }
    if (saving) {
      // Under the mutex, so that saves are in the order of the changes; the answer comes as a message of its own.
      const auto lasts =
          reservations.aptpl() ? ReservationStore::Lasts::kOverPowerLoss : ReservationStore::Lasts::kUntilPowerLoss;
      unit.options().reservations->save(unit.options().uuid, reservations.save(), lasts,
                                        [&channel, &task, home = &channel.reactor(), to_abort](Status status) {
                                          home->post([&channel, &task, to_abort, saved = status.has_value()] {
                                            if (!saved)
                                              return finish_with_sense(channel, task, sense::kInternalTargetFailure);
                                            abort_everywhere(to_abort, {}, channel.reactor(), [&channel, &task] {
                                              finish_good(channel, task, get_be32(task.cdb.data() + 5));
                                            });
                                          });
                                        });
      return;
    }
  }
  if (effects.verdict != Reservations::Verdict::kDone) return finish_refused(channel, task, effects.verdict);
  if (to_abort.empty()) return finish_good(channel, task, get_be32(task.cdb.data() + 5));
  abort_everywhere(to_abort, {}, channel.reactor(),
                   [&channel, &task] { finish_good(channel, task, get_be32(task.cdb.data() + 5)); });
}

void reserve_unit(LunChannel& channel, Task& task) {
  LogicalUnit& unit = channel.unit();
  {
    std::lock_guard lock(unit.mutex());
    if (unit.reservations().legacy_reserve(channel.nexus())) {
      unit.update_gates();
      unit.settings().keep_reserved(
          channel.nexus().options().initiator, true, [&channel, &task, home = &channel.reactor()](Status kept) {
            home->post([&channel, &task, kept = kept.has_value()] { reserved_unit(channel, task, kept); });
          });
      return;
    }
  }
  finish_with_status(channel, task, ScsiStatus::kReservationConflict);
}

void release_unit(LunChannel& channel, Task& task) {
  LogicalUnit& unit = channel.unit();
  bool released = false;
  {
    std::lock_guard lock(unit.mutex());
    const bool held = unit.reservations().legacy_holds(channel.nexus());
    released = unit.reservations().legacy_release(channel.nexus());
    if (held && released) {
      unit.update_gates();
      unit.settings().keep_reserved(channel.nexus().options().initiator, false,
                                    [&channel, &task, home = &channel.reactor()](Status kept) {
                                      home->post([&channel, &task, kept = kept.has_value()] {
                                        if (kept) return finish_good(channel, task);
                                        finish_with_sense(channel, task, sense::kInternalTargetFailure);
                                      });
                                    });
      return;
    }
  }
  finish_with_status(channel, task, released ? ScsiStatus::kGood : ScsiStatus::kReservationConflict);
}

}  // namespace pollux::scsi
