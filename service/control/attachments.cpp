#include "control/attachments.h"

#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "base/log.h"

namespace pollux::control {

namespace {

// Targets of a controller: 255 volumes a guest. The first volume, which is the boot volume, gets target 0, where
// firmware and QEMU look without being told.
constexpr std::uint16_t kLastTarget = 254;
constexpr std::uint16_t kLun = 0;
// At start nobody waits for an answer, but a device that hangs must not keep the others from coming back.
constexpr std::uint64_t kRestoreDeadlineMs = 30'000;
constexpr std::size_t kBlkSerialLength = 20;  // VIRTIO 1.2 5.2.6: VIRTIO_BLK_T_GET_ID has 20 bytes

const char* name_of(TransportKind transport) {
  return transport == TransportKind::kScsi ? "scsi" : "blk";
}

std::string label(const AttachmentRecord& record) {
  return "attachment " + record.id.to_string() + " (volume " + record.volume.to_string() + ", client " + record.client +
         ", " + name_of(record.transport) + ")";
}

// Same id and the same parameters: the same request.
bool same_request(const AttachmentRecord& record, const AttachRequest& request) {
  return record.volume == request.volume && record.client == request.client && record.transport == request.transport &&
         record.asked_queues == request.queues && record.asked_read_only == request.read_only &&
         record.scsi_names == request.scsi_names;
}

Status check_owner(const Caller& caller, const std::string& owner, const std::string& what) {
  if (caller.role != Role::kCompute || caller.host == owner) return {};
  return fail(ErrorCode::kDenied, what + " belongs to host " + owner + ", not to " + caller.host);
}

}  // namespace

std::string Attachments::blk_name(const Uuid& volume, const std::string& client) {
  const std::string text = volume.to_string() + "/" + client;
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  std::string name = text.substr(0, 8) + "-";
  constexpr char kDigits[] = "0123456789abcdef";
  for (std::size_t i = 0; i < 12; ++i) {
    name += kDigits[digest[i] >> 4];
    name += kDigits[digest[i] & 15];
  }
  return name;
}

Result<Turns::Turn> Attachments::attachment_turn(const Uuid& id, Deadline deadline) {
  return turns_.take("attachment " + id.to_string(), deadline);
}

Result<Turns::Turn> Attachments::volume_turn(const Uuid& id, Deadline deadline) {
  return turns_.take("volume " + id.to_string(), deadline);
}

Result<Turns::Turn> Attachments::client_turn(const std::string& client, Deadline deadline) {
  return turns_.take("client " + client, deadline);
}

std::string Attachments::socket_path(const AttachmentRecord& record) const {
  const std::string name =
      record.transport == TransportKind::kScsi ? record.client : blk_name(record.volume, record.client);
  return options_.socket_dir + "/" + name_of(record.transport) + "-" + name + ".sock";
}

Status Attachments::place(const AttachmentRecord& record, Deadline deadline) {
  {
    const std::lock_guard lock(placed_mutex_);
    if (placed_.contains(record.id)) return {};
  }
  const auto lost = store_.has_loss(record.volume);
  if (!lost) return fail(lost.error());
  const auto untold = *lost ? blob::LossUntold::kYes : blob::LossUntold::kNo;
  auto device = reactor::call(reactors_.main(), volumes_.open(record.volume, untold), deadline.remaining_ms());
  if (!device) return fail(std::move(device.error()));
  vhost::DiskSpec disk{std::move(*device), record.volume, record.read_only, record.client, record.scsi_names};
  if (record.transport == TransportKind::kScsi) {
    const auto path = vhost_.ensure_scsi_controller(record.client, record.queues);
    if (!path) return fail(path.error());
    step("place.controller");
    POLLUX_TRY(vhost_.add_scsi_target(record.client, {record.target, kLun}, std::move(disk)));
  } else {
    const auto path = vhost_.create_blk(blk_name(record.volume, record.client), record.queues, std::move(disk));
    if (!path) return fail(path.error());
  }
  const std::lock_guard lock(placed_mutex_);
  placed_.insert(record.id);
  if (!record.read_only) writing_[record.id] = options_.writers->returning_guest(record.volume);
  return {};
}

Status Attachments::unplace(const AttachmentRecord& record) {
  // Before it is: a blk disk whose removal does not end in time is no longer there to be used.
  {
    const std::lock_guard lock(placed_mutex_);
    placed_.erase(record.id);
  }
  if (record.transport == TransportKind::kScsi) {
    POLLUX_TRY(vhost_.remove_scsi_target(record.client, {record.target, kLun}));
  } else {
    POLLUX_TRY(vhost_.remove_blk(blk_name(record.volume, record.client)));
  }
  const std::lock_guard lock(placed_mutex_);
  writing_.erase(record.id);
  return {};
}

Status Attachments::drop(const AttachmentRecord& record) {
  POLLUX_TRY(unplace(record));
  step("drop.unplaced");
  POLLUX_TRY(store_.drop_attachment(record.id));
  step("drop.forgotten");
  return {};
}

Status Attachments::restore_one(const AttachmentRecord& record, bool all_pools_open) {
  if (record.authorised) {
    const auto authorisation = store_.authorisation(record.volume, record.host);
    if (!authorisation) return fail(authorisation.error());
    if (!*authorisation) {
      log::warn("control: {} is dropped: host {} is no longer authorised", label(record), record.host);
      return store_.drop_attachment(record.id);
    }
  }
  const auto placed = place(record, Deadline::after_ms(kRestoreDeadlineMs));
  if (placed) return {};
  if (placed.error().code == ErrorCode::kNotFound && all_pools_open) {
    log::warn("control: {} is dropped: {}", label(record), placed.error().message);
    return store_.drop_attachment(record.id);
  }
  log::error("control: {} is not back: {}", label(record), placed.error().message);
  return {};
}

Status Attachments::restore(bool all_pools_open) {
  const auto controllers = store_.controllers();
  if (!controllers) return fail(controllers.error());
  for (const auto& controller : *controllers) {
    const auto path = vhost_.ensure_scsi_controller(controller.client, controller.queues);
    if (!path) log::error("control: the controller of {} is not back: {}", controller.client, path.error().message);
  }
  const auto records = store_.attachments();
  if (!records) return fail(records.error());
  for (const auto& record : *records) POLLUX_TRY(restore_one(record, all_pools_open));
  return {};
}

Result<std::uint16_t> Attachments::choose_target(const AttachRequest& request,
                                                 const std::vector<AttachmentRecord>& existing) {
  std::array<bool, kLastTarget + 1> used{};
  for (const auto& record : existing) {
    if (record.client == request.client && record.transport == TransportKind::kScsi) used.at(record.target) = true;
  }
  const auto before = store_.remembered_target(request.client, request.volume);
  if (!before) return fail(before.error());
  if (*before && **before <= kLastTarget && !used.at(**before)) return **before;
  // Prefer a place that no detached volume may want back.
  const auto remembered = store_.remembered_targets(request.client);
  if (!remembered) return fail(remembered.error());
  auto wanted = used;
  for (const auto target : *remembered) {
    if (target <= kLastTarget) wanted.at(target) = true;
  }
  for (const auto& taken : {wanted, used}) {
    const auto free = std::find(taken.begin(), taken.end(), false);
    if (free != taken.end()) return static_cast<std::uint16_t>(free - taken.begin());
  }
  return fail(ErrorCode::kNoSpace, "the controller of client " + request.client + " has all its " +
                                       std::to_string(kLastTarget + 1) + " targets in use");
}

Result<AttachmentRecord> Attachments::plan(const Caller& caller, const AttachRequest& request, bool& new_controller,
                                           Deadline deadline) {
  const auto volume =
      reactor::call(reactors_.main(), volumes_.describe_volume(request.volume), deadline.remaining_ms());
  if (!volume) return fail(volume.error());
  AttachmentRecord record;
  record.id = request.id;
  record.volume = request.volume;
  record.client = request.client;
  record.transport = request.transport;
  record.asked_queues = request.queues;
  record.asked_read_only = request.read_only;
  record.read_only = request.read_only;
  record.scsi_names = request.scsi_names;
  record.host = caller.host;
  if (caller.role == Role::kCompute) {
    const auto authorisation = store_.authorisation(request.volume, caller.host);
    if (!authorisation) return fail(authorisation.error());
    if (!*authorisation) {
      return fail(ErrorCode::kDenied, "host " + caller.host + " is not authorised for volume " +
                                          request.volume.to_string() + ": Cinder has to authorise it first");
    }
    record.authorised = true;
    record.read_only = record.read_only || (*authorisation)->read_only;
  }
  if (volume->snapshot && !record.read_only) {
    return fail(ErrorCode::kInvalid, "snapshot " + request.volume.to_string() + " can be attached read-only alone");
  }
  const auto existing = store_.attachments();
  if (!existing) return fail(existing.error());
  for (const auto& other : *existing) {
    if (other.client == request.client && other.volume == request.volume) {
      return fail(ErrorCode::kExists, "client " + request.client + " has volume " + request.volume.to_string() +
                                          " already, as " + label(other) + ": detach that first");
    }
  }
  if (request.queues > options_.max_queues) {
    return fail(ErrorCode::kInvalid, "queues: " + std::to_string(request.queues) + " are more than vhost.max_queues (" +
                                         std::to_string(options_.max_queues) + ")");
  }
  record.queues = request.queues == 0 ? options_.default_queues : request.queues;
  if (request.transport == TransportKind::kScsi) {
    const auto controller = store_.controller(request.client);
    if (!controller) return fail(controller.error());
    new_controller = !*controller;
    if (*controller) {
      POLLUX_TRY(check_owner(caller, (*controller)->host, "the controller of client " + request.client));
      record.queues = (*controller)->queues;
    }
    const auto target = choose_target(request, *existing);
    if (!target) return fail(target.error());
    record.target = *target;
  }
  return record;
}

Result<Attachment> Attachments::attach(const Caller& caller, const AttachRequest& request, Deadline deadline) {
  const auto attachment = attachment_turn(request.id, deadline);
  if (!attachment) return fail(attachment.error());
  const auto volume = volume_turn(request.volume, deadline);
  if (!volume) return fail(volume.error());
  const auto known = store_.attachment(request.id);
  if (!known) return fail(known.error());
  if (*known) {
    if (!same_request(**known, request)) {
      return fail(ErrorCode::kExists, label(**known) + " is there with other parameters");
    }
    POLLUX_TRY(check_owner(caller, (*known)->host, label(**known)));
    POLLUX_TRY(place(**known, deadline));
    return describe(**known, vhost_.sessions());
  }
  auto client = client_turn(request.client, deadline);
  if (!client) return fail(client.error());
  bool new_controller = false;
  const auto record = plan(caller, request, new_controller, deadline);
  if (!record) return fail(record.error());
  // Until it is placed, when it has a claim of its own.
  VolumeWriters::Claim claim;
  if (!record->read_only) {
    auto claimed = options_.writers->guest(record->volume);
    if (!claimed) return fail(std::move(claimed.error()));
    claim = std::move(*claimed);
  }
  std::optional<ControllerRecord> controller;
  if (new_controller) controller = ControllerRecord{record->client, record->queues, caller.host};
  step("attach.planned");
  POLLUX_TRY(store_.put_attachment(*record, controller));
  step("attach.recorded");
  // The record keeps the controller and the target. A new controller may have to go again.
  if (!new_controller) client->end();
  if (const auto placed = place(*record, deadline); !placed) {
    // A socket that could not be placed is no attachment. When even this fails, a restart or a repeated request settles
    // it.
    POLLUX_TRY(drop(*record));
    if (new_controller) {
      POLLUX_TRY(vhost_.remove_scsi_controller(record->client));
      POLLUX_TRY(store_.drop_controller(record->client));
    }
    return fail(placed.error());
  }
  step("attach.placed");
  return describe(*record, vhost_.sessions());
}

Status Attachments::detach(const Caller& caller, const Uuid& id, Deadline deadline) {
  const auto attachment = attachment_turn(id, deadline);
  if (!attachment) return fail(attachment.error());
  const auto record = store_.attachment(id);
  if (!record) return fail(record.error());
  if (!*record) return {};
  POLLUX_TRY(check_owner(caller, (*record)->host, label(**record)));
  const auto volume = volume_turn((*record)->volume, deadline);
  if (!volume) return fail(volume.error());
  // A host that lost its right has lost its attachments meanwhile.
  const auto still = store_.attachment(id);
  if (!still) return fail(still.error());
  if (!*still) return {};
  return drop(**still);
}

Attachment Attachments::describe(const AttachmentRecord& record,
                                 const std::vector<vhost::SessionInfo>& sessions) const {
  Attachment attachment;
  attachment.record = record;
  attachment.socket_path = socket_path(record);
  attachment.serial = record.volume.to_string();
  if (record.transport == TransportKind::kBlk) attachment.serial.resize(kBlkSerialLength);
  attachment.connected = std::any_of(sessions.begin(), sessions.end(), [&](const vhost::SessionInfo& session) {
    return session.connected && session.socket_path == attachment.socket_path;
  });
  return attachment;
}

Result<std::vector<Attachment>> Attachments::list(const std::optional<Uuid>& volume, const std::string& client) {
  const auto records = store_.attachments();
  if (!records) return fail(records.error());
  const auto sessions = vhost_.sessions();
  std::vector<Attachment> found;
  for (const auto& record : *records) {
    if (volume && record.volume != *volume) continue;
    if (!client.empty() && record.client != client) continue;
    found.push_back(describe(record, sessions));
  }
  return found;
}

Result<std::uint32_t> Attachments::count(const Uuid& volume) {
  const auto records = store_.attachments();
  if (!records) return fail(records.error());
  return static_cast<std::uint32_t>(std::count_if(
      records->begin(), records->end(), [&](const AttachmentRecord& record) { return record.volume == volume; }));
}

Result<std::string> Attachments::ensure_controller(const Caller& caller, const std::string& client,
                                                   std::uint32_t queues, Deadline deadline) {
  const auto turn = client_turn(client, deadline);
  if (!turn) return fail(turn.error());
  if (queues > options_.max_queues) {
    return fail(ErrorCode::kInvalid, "queues: " + std::to_string(queues) + " are more than vhost.max_queues (" +
                                         std::to_string(options_.max_queues) + ")");
  }
  const auto known = store_.controller(client);
  if (!known) return fail(known.error());
  if (*known) {
    POLLUX_TRY(check_owner(caller, (*known)->host, "the controller of client " + client));
    if (queues != 0 && queues != (*known)->queues) {
      return fail(ErrorCode::kExists, "the controller of client " + client + " has " +
                                          std::to_string((*known)->queues) + " queues, not " + std::to_string(queues) +
                                          ": delete it first");
    }
    return vhost_.ensure_scsi_controller(client, (*known)->queues);
  }
  const ControllerRecord record{client, queues == 0 ? options_.default_queues : queues, caller.host};
  POLLUX_TRY(store_.put_controller(record));
  step("controller.recorded");
  auto path = vhost_.ensure_scsi_controller(client, record.queues);
  if (!path) {
    POLLUX_TRY(store_.drop_controller(client));
    return path;
  }
  step("controller.placed");
  return path;
}

Status Attachments::delete_controller(const Caller& caller, const std::string& client, Deadline deadline) {
  const auto turn = client_turn(client, deadline);
  if (!turn) return fail(turn.error());
  const auto known = store_.controller(client);
  if (!known) return fail(known.error());
  if (!*known) return {};
  POLLUX_TRY(check_owner(caller, (*known)->host, "the controller of client " + client));
  const auto records = store_.attachments();
  if (!records) return fail(records.error());
  for (const auto& record : *records) {
    if (record.client == client && record.transport == TransportKind::kScsi) {
      return fail(ErrorCode::kBusy,
                  "the controller of client " + client + " has " + label(record) + ": detach it first");
    }
  }
  POLLUX_TRY(vhost_.remove_scsi_controller(client));
  step("controller.removed");
  return store_.drop_controller(client);
}

Status Attachments::authorise(const AuthorisationRecord& authorisation, Deadline deadline) {
  const auto turn = volume_turn(authorisation.volume, deadline);
  if (!turn) return fail(turn.error());
  const auto volume =
      reactor::call(reactors_.main(), volumes_.describe_volume(authorisation.volume), deadline.remaining_ms());
  if (!volume) return fail(volume.error());
  return store_.put_authorisation(authorisation);
}

Status Attachments::unauthorise(const Uuid& volume, const std::string& host, const std::optional<Uuid>& grant,
                                Deadline deadline) {
  const auto turn = volume_turn(volume, deadline);
  if (!turn) return fail(turn.error());
  // First the right, then what was done with it: a crash in between leaves attachments that restore() drops.
  POLLUX_TRY(store_.drop_authorisations(volume, host, grant));
  step("unauthorise.forgotten");
  if (!host.empty()) {
    const auto left = store_.authorisation(volume, host);
    if (!left) return fail(left.error());
    if (*left) return {};
  }
  const auto records = store_.attachments();
  if (!records) return fail(records.error());
  // One that does not end keeps none of the others.
  Status all;
  for (const auto& record : *records) {
    if (record.volume != volume || (!host.empty() && record.host != host)) continue;
    auto dropped = drop(record);
    if (!dropped && all) all = std::move(dropped);
  }
  return all;
}

Status Attachments::delete_volume(const Uuid& volume, const std::function<Status()>& remove, Deadline deadline) {
  const auto turn = volume_turn(volume, deadline);
  if (!turn) return fail(turn.error());
  const auto records = store_.attachments();
  if (!records) return fail(records.error());
  for (const auto& record : *records) {
    if (record.volume == volume) {
      return fail(ErrorCode::kBusy, "volume " + volume.to_string() + " has " + label(record) + ": detach it first");
    }
  }
  POLLUX_TRY(remove());
  step("volume.deleted");
  return store_.forget_volume(volume);
}

}  // namespace pollux::control
