#pragma once
// Reservations: who may use a logical unit (SPC-5 5.14 persistent reservations; RESERVE and RELEASE of SPC-2 5.21).
//
// Rules alone: no CDBs, no tasks. A registration belongs to an I_T nexus by name, so it outlives the Nexus object and,
// with APTPL, the process. All calls under the logical unit's mutex.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "scsi/logical_unit.h"

namespace pollux::scsi {

struct Command;

// SPC-5 table of persistent reservation types.
enum class ReservationType : std::uint8_t {
  kWriteExclusive = 1,
  kExclusiveAccess = 3,
  kWriteExclusiveRegistrantsOnly = 5,
  kExclusiveAccessRegistrantsOnly = 6,
  kWriteExclusiveAllRegistrants = 7,
  kExclusiveAccessAllRegistrants = 8,
};
std::optional<ReservationType> reservation_type(std::uint8_t code);

// An I_T nexus by name.
struct NexusName {
  std::string initiator;
  std::uint16_t relative_target_port = 1;

  bool operator==(const NexusName&) const = default;
};
NexusName name_of(const Nexus& nexus);

struct Registrant {
  NexusName nexus;
  std::uint64_t key = 0;
};

class Reservations {
 public:
  // More than this many are refused with INSUFFICIENT REGISTRATION RESOURCES.
  static constexpr std::size_t kMaxRegistrants = 512;

  enum class Verdict : std::uint8_t {
    kDone,
    kConflict,                 // RESERVATION CONFLICT
    kInvalidRelease,           // 26h/04h
    kNoResources,              // 55h/04h
    kInvalidServiceActionKey,  // INVALID FIELD IN PARAMETER LIST, bytes 8 to 15
    kInvalidTransportId,       // the same, the TransportID
  };
  struct Effects {
    Verdict verdict = Verdict::kDone;
    // Nexuses that are to hear of it.
    std::vector<std::pair<NexusName, UnitAttention>> attentions;
    // Nexuses whose registration was preempted.
    std::vector<NexusName> preempted;
  };

  // ---- Persistent reservations (PERSISTENT RESERVE OUT). ----
  struct RegisterRequest {
    std::uint64_t key = 0;
    std::uint64_t new_key = 0;
    bool ignore_existing = false;
    bool aptpl = false;
  };
  Effects register_key(const NexusName& nexus, const RegisterRequest& request);
  Effects reserve(const NexusName& nexus, std::uint64_t key, ReservationType type);
  Effects release(const NexusName& nexus, std::uint64_t key, ReservationType type);
  Effects clear(const NexusName& nexus, std::uint64_t key);
  struct PreemptRequest {
    std::uint64_t key = 0;
    std::uint64_t victim_key = 0;
    ReservationType type = ReservationType::kWriteExclusive;
  };
  Effects preempt(const NexusName& nexus, const PreemptRequest& request);
  struct MoveRequest {
    std::uint64_t key = 0;
    std::uint64_t new_key = 0;
    NexusName to;
    bool unregister = false;
    bool aptpl = false;
  };
  Effects register_and_move(const NexusName& nexus, const MoveRequest& request);

  std::uint32_t generation() const { return generation_; }
  bool aptpl() const { return aptpl_; }
  const std::vector<Registrant>& registrants() const { return registrants_; }
  struct Held {
    ReservationType type;
    std::optional<NexusName> holder;  // none: all registrants hold it
  };
  const std::optional<Held>& held() const { return held_; }
  bool holds(const NexusName& nexus) const;

  // ---- RESERVE and RELEASE. ----
  // False: a conflict.
  bool legacy_reserve(const Nexus& nexus);
  bool legacy_release(const Nexus& nexus);
  // Also after resets and when the nexus ends. True when it held.
  bool legacy_drop(const Nexus& nexus);
  bool legacy_holds(const Nexus& nexus) const { return legacy_holder_ == &nexus; }
  // Null: none.
  const Nexus* legacy_holder() const { return legacy_holder_; }

  // ---- Access. ----
  // Whether this nexus has to ask allows() at all.
  bool restricts(const Nexus& nexus) const;
  bool allows(const Nexus& nexus, const Command& command, const std::uint8_t* cdb) const;

  // ---- Commands that are handed in again after the process died (CommandArrival). ----
  // The nexus's last few that were done, kept with what they did: a command is durable with its effect or not at all.
  static constexpr std::size_t kMaxDone = 8;
  void note_done(const NexusName& nexus, std::uint64_t arrival);
  bool was_done(const NexusName& nexus, std::uint64_t arrival) const;

  // ---- Persistence: text, so that an operator can read it. Empty when there is nothing to keep. ----
  std::string save() const;
  // kCorrupt when it is not what save() wrote.
  Status restore(const std::string& state);

 private:
  Registrant* find(const NexusName& nexus);
  const Registrant* find(const NexusName& nexus) const;
  // Registered with this key.
  bool owns(const NexusName& nexus, std::uint64_t key) const;
  void unregister(const NexusName& nexus, Effects& effects);
  void attention_to_others(const NexusName& but, UnitAttention attention, Effects& effects) const;
  static bool registrants_only(ReservationType type);
  static bool all_registrants(ReservationType type);
  static bool write_exclusive(ReservationType type);

  struct Done {
    NexusName nexus;
    std::uint64_t arrival = 0;

    bool operator==(const Done&) const = default;
  };

  std::vector<Registrant> registrants_;
  std::vector<Done> done_;  // oldest first
  std::optional<Held> held_;
  std::uint32_t generation_ = 0;
  bool aptpl_ = false;
  const Nexus* legacy_holder_ = nullptr;
};

}  // namespace pollux::scsi
