#pragma once
// Attachments: which guest has which volume on which socket, who allowed it, and how all of it comes back after the
// process died.
//
// Order of every change: an attachment is recorded before its socket is placed, and forgotten after its socket is gone.
// A crash in between leaves either nothing or a record, and restore() turns each record into a socket again; the
// caller, who has had no answer, repeats the request and gets the one it would have had.
//
// Any control thread, never a reactor. Changes that concern the same attachment or volume happen one after the other;
// so do those that decide about a client's controller and targets. A call that waits for its turn longer than its
// deadline gets kRetry. Others go on: a detach that waits for a device keeps only those waiting who want the same
// volume. Turns are taken in this order: attachment, volume, client.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/uuid.h"
#include "control/deadline.h"
#include "control/roles.h"
#include "control/state_store.h"
#include "control/turns.h"
#include "control/volume_writers.h"
#include "reactor/reactor.h"
#include "vhost/vhost_service.h"
#include "volume/volume_service.h"

namespace pollux::control {

struct AttachRequest {
  Uuid id;
  Uuid volume;
  std::string client;
  TransportKind transport = TransportKind::kScsi;
  std::uint32_t queues = 0;  // 0: the default, or what the client's controller has
  bool read_only = false;
  ScsiNames scsi_names = ScsiNames::kPollux;
};

struct Attachment {
  AttachmentRecord record;
  std::string socket_path;
  std::string serial;
  bool connected = false;
};

class Attachments {
 public:
  struct Options {
    std::string socket_dir;
    std::uint32_t default_queues = 2;
    std::uint32_t max_queues = 16;
    std::shared_ptr<VolumeWriters> writers = std::make_shared<VolumeWriters>();
    // Called between the steps of a change with the step's name. Crash tests end the process there.
    std::function<void(const char* step)> on_step;
  };

  Attachments(StateStore& store, reactor::ReactorGroup& reactors, volume::VolumeService& volumes,
              vhost::VhostService& vhost, Options options)
      : store_(store), reactors_(reactors), volumes_(volumes), vhost_(vhost), options_(std::move(options)) {}

  // At start, after the pools: drops attachments whose authorisation is gone, puts back every controller and socket.
  // What cannot come back is logged and stays recorded, except volumes that are gone while `all_pools_open`: those are
  // dropped.
  Status restore(bool all_pools_open);

  // The role compute needs an authorisation for its host, and gets no more than that allows. kExists: the id is taken
  // by a different request, or this client has the volume under another id. kBusy: it would write what a data socket
  // writes that does not share it.
  Result<Attachment> attach(const Caller& caller, const AttachRequest& request, Deadline deadline);
  // The role compute may detach what its own host attached. What is not there is detached. kBusy: the device has
  // requests that do not end; a scsi disk goes on, the socket of a blk disk is closed; repeat the request.
  Status detach(const Caller& caller, const Uuid& id, Deadline deadline);
  // No volume or empty client: any.
  Result<std::vector<Attachment>> list(const std::optional<Uuid>& volume, const std::string& client);
  Result<std::uint32_t> count(const Uuid& volume);

  // The controller's socket.
  Result<std::string> ensure_controller(const Caller& caller, const std::string& client, std::uint32_t queues,
                                        Deadline deadline);
  Status delete_controller(const Caller& caller, const std::string& client, Deadline deadline);

  Status authorise(const AuthorisationRecord& authorisation, Deadline deadline);
  // Empty host: every host. No grant: every grant. A host that keeps no grant loses its attachments of the volume.
  Status unauthorise(const Uuid& volume, const std::string& host, const std::optional<Uuid>& grant, Deadline deadline);

  // Deletes the volume unless it is attached, and forgets its authorisations. `remove` does the deletion.
  Status delete_volume(const Uuid& volume, const std::function<Status()>& remove, Deadline deadline);

  // "<first 8 digits of the volume's id>-<24 digits of a hash>": one for each (volume, client), the same on every host,
  // so that the socket's path is the same at both ends of a live migration.
  static std::string blk_name(const Uuid& volume, const std::string& client);

 private:
  Result<Turns::Turn> attachment_turn(const Uuid& id, Deadline deadline);
  Result<Turns::Turn> volume_turn(const Uuid& id, Deadline deadline);
  Result<Turns::Turn> client_turn(const std::string& client, Deadline deadline);
  void step(const char* name) const {
    if (options_.on_step) options_.on_step(name);
  }
  // In the volume's and the client's turn.
  Result<AttachmentRecord> plan(const Caller& caller, const AttachRequest& request, bool& new_controller,
                                Deadline deadline);
  Result<std::uint16_t> choose_target(const AttachRequest& request, const std::vector<AttachmentRecord>& existing);
  Status restore_one(const AttachmentRecord& record, bool all_pools_open);
  // Puts the socket or target where the record says; nothing to do when it is there.
  Status place(const AttachmentRecord& record, Deadline deadline);
  Status unplace(const AttachmentRecord& record);
  Status drop(const AttachmentRecord& record);
  Attachment describe(const AttachmentRecord& record, const std::vector<vhost::SessionInfo>& sessions) const;
  std::string socket_path(const AttachmentRecord& record) const;

  StateStore& store_;
  reactor::ReactorGroup& reactors_;
  volume::VolumeService& volumes_;
  vhost::VhostService& vhost_;
  const Options options_;
  Turns turns_;
  std::mutex placed_mutex_;
  std::set<Uuid> placed_;                         // under placed_mutex_
  std::map<Uuid, VolumeWriters::Claim> writing_;  // of those placed to be written; under placed_mutex_
};

}  // namespace pollux::control
