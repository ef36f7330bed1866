#pragma once
// The vhost-user front ends' side of Pollux: sockets, controllers, targets.
//
// Calls come from control threads (never from a reactor), at once if need be. Additions may block until a device is
// open, removals until reactors have released what is removed. Neither keeps another call waiting meanwhile; one about
// what is being added or removed is kBusy.
// Idempotent: asking for what is there already succeeds when it is the same, and is kExists when it differs.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/uuid.h"
#include "bdev/bdev.h"
#include "reactor/reactor.h"
#include "vhost/reservation_store.h"
#include "vhost/scsi_names.h"
#include "vhost/setting_store.h"

namespace pollux::vhost {

// How long a request of virtio-blk waits for the path to its device to come back, before it fails. SCSI guests are told,
// and repeat their commands themselves.
inline constexpr std::chrono::milliseconds kPathPatience{30'000};

struct Options {
  // Directory of the sockets; made with mode 0750 when it is missing.
  std::string socket_dir;
  // Group that may connect (0660); empty leaves the process's own.
  std::string socket_group;
  std::uint32_t default_queues = 2;
  std::uint32_t max_queues = 16;
  // Null: SCSI disks then refuse reservations that are to last (APTPL), and others end with the service.
  std::shared_ptr<ReservationStore> reservations;
  // Null: what guests set on disks ends with the service.
  std::shared_ptr<SettingStore> settings;
  // How long a removal waits for requests that the block device has, and an addition for the device to be opened.
  std::chrono::milliseconds drain_patience{20'000};
  std::chrono::milliseconds path_patience = kPathPatience;
  // How much memory the front ends of one device may share with us together; 0: four times the host's.
  std::uint64_t guest_memory_bytes = 0;
  // Sockets open at listen(), not as their devices are made.
  bool hold_sockets = false;
};

// A volume as one guest sees it.
struct DiskSpec {
  std::shared_ptr<bdev::Bdev> bdev;
  // virtio-blk GET_ID: its first 20 characters. SCSI VPD 0x80 and 0x83: the whole.
  Uuid uuid;
  bool read_only = false;
  // virtio-blk: whose settings these are, beside the volume's id. A scsi controller's name says it.
  std::string guest = {};
  ScsiNames scsi_names = ScsiNames::kPollux;
};

struct ScsiTarget {
  std::uint16_t target = 0;
  std::uint16_t lun = 0;
};

struct SessionInfo {
  std::string socket_path;
  bool connected = false;
  std::uint32_t active_queues = 0;
  std::uint64_t requests = 0;
  std::uint64_t errors = 0;
};

class VhostService {
 public:
  // kInvalid: options that cannot be; kInternal: the kernel refuses the directory or a descriptor.
  static Result<std::unique_ptr<VhostService>> start(reactor::ReactorGroup& reactors, Options options);
  // Disconnects every front end and waits until no request is in flight.
  ~VhostService();

  // With hold_sockets: from here on sockets are open. A guest that comes back after a restart must find its whole
  // controller: a disk that is not there yet would be an error to it. A socket that cannot be opened is logged and
  // tried again, while its guest waits.
  void listen();

  // A scsi controller; its socket is <socket_dir>/scsi-<name>.sock and is there when this returns. `name`:
  // [A-Za-z0-9-]{1,64}.
  Result<std::string> ensure_scsi_controller(const std::string& name, std::uint32_t queues);
  // kBusy while it has targets.
  Status remove_scsi_controller(const std::string& name);
  // Puts the disk on the given target, and tells a connected guest (virtio-scsi hotplug event, VIRTIO 1.2 5.6.6.3).
  // kRetry: the device is not open after drain_patience; nothing has changed. Until this returns other calls about the
  // target, and the controller's removal, are kBusy.
  Status add_scsi_target(const std::string& name, ScsiTarget where, DiskSpec disk);
  // Waits for requests in flight, closes the disk, tells the guest. Removing what is not there succeeds. kBusy:
  // requests do not end within drain_patience; the target stays, and the guest's commands that came meanwhile begin.
  Status remove_scsi_target(const std::string& name, ScsiTarget where);

  // A virtio-blk device with a socket of its own, <socket_dir>/blk-<name>.sock. kRetry and kBusy as for a target.
  Result<std::string> create_blk(const std::string& name, std::uint32_t queues, DiskSpec disk);
  // kBusy: requests do not end within drain_patience. The socket is gone, the disk is still in use; repeat the call.
  Status remove_blk(const std::string& name);

  // Neither waits for a device.
  std::vector<SessionInfo> sessions() const;
  // How many virtqueues that carry requests each reactor serves.
  std::vector<unsigned> queues_by_reactor() const;

 private:
  VhostService();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pollux::vhost
