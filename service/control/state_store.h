#pragma once
// StateStore: what the control plane must know after it was killed: which pools to open, who may attach what, which
// controllers and attachments guests have. A SQLite file, <state_dir>/state.db, in WAL mode with synchronous=FULL: when
// a call here returns, its change survives a power cut, whole.
//
// Space and names of volumes are not here: they are the pools' own. Any thread. Calls are serialised inside; changes that
// come at about the same time become durable together.

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/uuid.h"
#include "bdev/spec.h"
#include "control/group_commit.h"
#include "control/sqlite.h"
#include "vhost/scsi_names.h"

namespace pollux::control {

enum class TransportKind : std::uint8_t { kScsi = 1, kBlk = 2 };
using vhost::ScsiNames;

struct PoolRecord {
  Uuid id;
  std::string name;
  bdev::Spec bdev;

  bool operator==(const PoolRecord&) const = default;
};

struct AuthorisationRecord {
  Uuid volume;
  std::string host;
  bool read_only = false;
  Uuid grant;  // nil: of a caller that gives no ids

  bool operator==(const AuthorisationRecord&) const = default;
};

struct ControllerRecord {
  std::string client;
  std::uint32_t queues = 0;
  std::string host;  // CN of who made it

  bool operator==(const ControllerRecord&) const = default;
};

struct AttachmentRecord {
  Uuid id;
  Uuid volume;
  std::string client;
  TransportKind transport = TransportKind::kScsi;
  // As asked for, so that a repeated request can be told from a different one; 0: the default.
  std::uint32_t asked_queues = 0;
  bool asked_read_only = false;
  // As given.
  std::uint32_t queues = 0;
  bool read_only = false;
  std::string host;          // CN of who attached
  bool authorised = false;   // by the role compute, under an authorisation: falls with it
  std::uint16_t target = 0;  // scsi
  ScsiNames scsi_names = ScsiNames::kPollux;

  bool operator==(const AttachmentRecord&) const = default;
};

// Persistent reservations of a volume, as the SCSI layer words them.
struct ReservationRecord {
  Uuid volume;
  std::string state;
  // The start of the host that it ends with; empty: it outlives them.
  std::string boot_id;

  bool operator==(const ReservationRecord&) const = default;
};

// What guests have set on a volume's disk, as the disks word it.
struct SettingRecord {
  Uuid volume;
  // Whose disk: an attachment's client; empty for what all clients that have the volume by SCSI share.
  std::string client;
  std::string state;
  // As in ReservationRecord.
  std::string boot_id;

  bool operator==(const SettingRecord&) const = default;
};

class StateStore {
 public:
  // Makes the folder (0750) and the file when they are missing. kBusy: another service uses the folder. kUnsupported:
  // the file is newer than this program, or not ours. kCorrupt: the file is damaged.
  static Result<std::unique_ptr<StateStore>> open(const std::string& state_dir);
  // Whether open() would begin with nothing: no service has ever had its state there.
  static bool is_new(const std::string& state_dir);
  ~StateStore();

  Status put_pool(const PoolRecord& pool);
  Status drop_pool(const Uuid& id);
  Result<std::vector<PoolRecord>> pools();

  Status put_authorisation(const AuthorisationRecord& authorisation);
  // Empty host: every host's. No grant: every grant.
  Status drop_authorisations(const Uuid& volume, const std::string& host, const std::optional<Uuid>& grant);
  // What the host's grants allow together: writing, when one of them does. `grant` is one of them.
  Result<std::optional<AuthorisationRecord>> authorisation(const Uuid& volume, const std::string& host);
  // No volume: all. In order of volume, host and grant.
  Result<std::vector<AuthorisationRecord>> authorisations(const std::optional<Uuid>& volume);

  Status put_controller(const ControllerRecord& controller);
  // Also forgets which target each of the client's volumes had.
  Status drop_controller(const std::string& client);
  Result<std::optional<ControllerRecord>> controller(const std::string& client);
  Result<std::vector<ControllerRecord>> controllers();

  // With its controller when that is new, and remembers the target for this (client, volume), in one transaction.
  Status put_attachment(const AttachmentRecord& attachment, const std::optional<ControllerRecord>& controller);
  // With what its client had set; with what its clients shared when it is the volume's last by SCSI; and with the
  // volume's loss when it is the last of all.
  Status drop_attachment(const Uuid& id);
  Result<std::optional<AttachmentRecord>> attachment(const Uuid& id);
  // In order of id.
  Result<std::vector<AttachmentRecord>> attachments();

  // The target that this volume had on this client's controller, if it had one.
  Result<std::optional<std::uint16_t>> remembered_target(const std::string& client, const Uuid& volume);
  // Every target that is remembered for one of the client's volumes.
  Result<std::vector<std::uint16_t>> remembered_targets(const std::string& client);

  Status put_reservation(const ReservationRecord& reservation);
  Status drop_reservation(const Uuid& volume);
  Result<std::optional<ReservationRecord>> reservation(const Uuid& volume);

  // A volume is deleted: its authorisations and reservations, in one transaction.
  Status forget_volume(const Uuid& volume);

  // Volumes whose guests must still be told of a loss (see blob/loss_log.h), of those that are attached: this ends with
  // the volume's last attachment. In one transaction.
  Status put_losses(const std::vector<Uuid>& volumes, const std::string& boot_id);
  Status drop_loss(const Uuid& volume);
  // Of other starts of the host, whose guests are gone.
  Status drop_losses_before(const std::string& boot_id);
  Result<bool> has_loss(const Uuid& volume);

  // The host's start in which the service was last there with all its guests' disks; empty: not known.
  Status put_boot_id(const std::string& boot_id);
  Result<std::string> boot_id();

  Status put_setting(const SettingRecord& setting);
  Status drop_setting(const Uuid& volume, const std::string& client);
  Result<std::optional<SettingRecord>> setting(const Uuid& volume, const std::string& client);

 private:
  StateStore() = default;
  Status prepare();
  Result<std::vector<AttachmentRecord>> read_attachments(sqlite::Statement& statement);

  std::mutex mutex_;
  int lock_fd_ = -1;  // flock: held while the folder is in use; the kernel drops it when the process dies
  std::unique_ptr<sqlite::Database> database_;
  std::unique_ptr<GroupCommit> commits_;
};

}  // namespace pollux::control
