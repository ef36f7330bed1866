#pragma once
// ScsiController: a virtio-scsi controller (VIRTIO 1.2 5.6), one a guest, and the volumes that are its targets' logical
// units.
//
// Each reactor has its own ReactorTargets, which its queues use and no other thread touches. Adding and removing a disk
// visits them all, from a control thread, while the guest's I/O to other logical units goes on.

#include <array>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "protocol/virtio_scsi.h"
#include "scsi/logical_unit.h"
#include "scsi/lun_channel.h"
#include "scsi/target.h"
#include "vhost/device.h"
#include "vhost/disk_channels.h"
#include "vhost/queue_poller.h"
#include "vhost/scsi_events.h"
#include "vhost/vhost_service.h"

namespace pollux::vhost {

// Where the logical units' state is kept. Each may be null.
struct ScsiStores {
  std::shared_ptr<scsi::ReservationStore> reservations;
  std::shared_ptr<scsi::SettingStore> settings;
};

// The targets as the queues of one reactor see them.
struct ReactorTargets {
  reactor::Reactor* reactor = nullptr;
  std::array<std::unique_ptr<scsi::TargetChannel>, 256> targets;
};

class ScsiController final : public Device {
 public:
  // `name` is the guest's: it names the initiator to persistent reservations.
  ScsiController(std::string name, std::uint16_t request_queues, Placement& placement, scsi::LogicalUnits& units,
                 ScsiStores stores);
  ~ScsiController() override;

  // On control threads; additions one at a time.
  // Whether the very disk is there; kExists when something else is; kBusy while that is being removed.
  Result<bool> has(ScsiTarget where, const DiskSpec& disk) const;
  // Where has() says that nothing is. `channels`: of the disk's device. `resize` is kept as long as the disk is. Errors
  // of LogicalUnit.
  Status add(ScsiTarget where, const DiskSpec& disk, DiskChannels& channels, bdev::Bdev::ResizeToken resize);
  // Returns when no request of it is left. Nothing to do when it is not there. The guest's commands to it wait until it
  // is decided. kBusy: requests do not end in that time, and the target goes on as if nothing had been; or another call
  // removes it. Waits for nothing but this disk, and other disks come and go meanwhile.
  Status remove(ScsiTarget where, std::chrono::milliseconds patience);
  void capacity_changed(ScsiTarget where);
  // It was there before this process: its guest may have been told less than happened.
  void came_back() { inboxes_.owe_rescan(); }
  bool empty() const;

  std::uint64_t features() const override;
  std::uint16_t virtqueues() const override { return protocol::kScsiFirstRequestQueue + request_queues_; }
  bool carries_requests(std::uint16_t index) const override { return index >= protocol::kScsiFirstRequestQueue; }
  std::vector<std::byte> config() const override;
  bool config_is_for_qemu() const override { return false; }
  Status write_config(std::uint32_t offset, std::span<const std::byte> bytes) override;
  std::unique_ptr<VhostQueue> make_queue(std::uint16_t index, std::unique_ptr<virtio::Virtqueue> ring, QueueFds fds,
                                         std::uint64_t features, reactor::Reactor& reactor) override;

 private:
  struct Unit {
    DiskSpec disk;
    std::shared_ptr<scsi::LogicalUnit> unit;
    std::shared_ptr<scsi::Nexus> nexus;
    bdev::Bdev::ResizeToken resize;
    bool leaving = false;
  };
  using Key = std::pair<std::uint16_t, std::uint16_t>;

  ReactorTargets& targets_on(const reactor::Reactor& reactor);
  Status remove_from_reactors(ScsiTarget where, const scsi::Nexus& nexus, std::chrono::milliseconds patience);
  // Runs fn(targets there, channel of that disk or null) on every reactor; whether all returned true.
  template <typename Fn>
  bool on_reactors(ScsiTarget where, Fn fn);

  const std::string name_;
  const std::uint16_t request_queues_;
  scsi::LogicalUnits& logical_units_;
  const ScsiStores stores_;
  std::vector<std::unique_ptr<ReactorTargets>> per_reactor_;
  ScsiEventInboxes inboxes_;
  mutable std::mutex mutex_;
  std::map<Key, Unit> units_;
};

}  // namespace pollux::vhost
