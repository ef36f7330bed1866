#include "vhost/scsi_controller.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <thread>

#include "protocol/vhost_user.h"
#include "vhost/hop.h"
#include "vhost/limits.h"
#include "vhost/scsi_address.h"
#include "vhost/scsi_control_queue.h"
#include "vhost/scsi_request_queue.h"

namespace pollux::vhost {

using namespace protocol;

namespace {

// How often a removal looks whether requests in flight have ended.
constexpr auto kDrainInterval = std::chrono::microseconds(500);
// Of a removal that has nothing to wait for.
constexpr std::chrono::milliseconds kNoHurry = std::chrono::hours(1);

constexpr std::uint32_t kCommandsPerLun = 128;
constexpr std::uint32_t kMaxSectors = 0xffff;

}  // namespace

ScsiController::ScsiController(std::string name, std::uint16_t request_queues, Placement& placement,
                               scsi::LogicalUnits& units, ScsiStores stores)
    : name_(std::move(name)), request_queues_(request_queues), logical_units_(units), stores_(std::move(stores)) {
  for (std::size_t i = 0; i < placement.size(); ++i) {
    per_reactor_.push_back(std::make_unique<ReactorTargets>());
    per_reactor_.back()->reactor = &placement.at(i).reactor();
  }
}

ScsiController::~ScsiController() {
  // Sessions are closed by now, so nothing is in flight.
  for (auto& [key, unit] : units_) {
    static_cast<void>(remove_from_reactors({key.first, key.second}, *unit.nexus, kNoHurry));
  }
  units_.clear();
  for (auto& here : per_reactor_) {
    run_on(*here->reactor, [&] {
      for (auto& target : here->targets) target.reset();
    });
  }
}

ReactorTargets& ScsiController::targets_on(const reactor::Reactor& reactor) {
  for (auto& here : per_reactor_) {
    if (here->reactor == &reactor) return *here;
  }
  std::abort();  // every reactor of the placement has one
}

Result<bool> ScsiController::has(ScsiTarget where, const DiskSpec& disk) const {
  const std::string place =
      "target " + std::to_string(where.target) + " lun " + std::to_string(where.lun) + " of scsi controller " + name_;
  std::lock_guard lock(mutex_);
  const auto found = units_.find({where.target, where.lun});
  if (found == units_.end()) return false;
  if (found->second.leaving) return fail(ErrorCode::kBusy, place + " is being removed");
  if (found->second.disk.uuid == disk.uuid && found->second.disk.read_only == disk.read_only &&
      found->second.disk.scsi_names == disk.scsi_names) {
    return true;
  }
  return fail(ErrorCode::kExists, place + " holds another volume");
}

Status ScsiController::add(ScsiTarget where, const DiskSpec& disk, DiskChannels& channels,
                           bdev::Bdev::ResizeToken resize) {
  std::vector<std::shared_ptr<scsi::Nexus>> siblings;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, unit] : units_) {
      if (key.first == where.target) siblings.push_back(unit.nexus);
    }
  }
  auto unit = logical_units_.get(
      {.bdev = disk.bdev, .uuid = disk.uuid, .reservations = stores_.reservations, .settings = stores_.settings});
  if (!unit) return fail(std::move(unit.error()));
  // A volume that a guest has twice is reached through two ports.
  // To a guest that is running, a new disk has just been switched on. One that comes back after a restart of the
  // service, before its guest does, has not: the guest must not notice.
  auto nexus = (*unit)->join({.initiator = name_,
                              .relative_target_port = static_cast<std::uint16_t>(where.target + 1),
                              .read_only = disk.read_only,
                              .announce_power_on = inboxes_.any(),
                              .names = disk.scsi_names == ScsiNames::kQemu ? scsi::Names::kQemu : scsi::Names::kOwn});
  if (!nexus) return fail(std::move(nexus.error()));
  for (auto& here : per_reactor_) {
    run_on(*here->reactor, [&] {
      auto& target = here->targets[where.target];
      if (!target) target = std::make_unique<scsi::TargetChannel>();
      target->add(where.lun, (*nexus)->make_channel(*here->reactor, channels.take(*here->reactor)));
    });
  }
  {
    std::lock_guard lock(mutex_);
    units_[{where.target, where.lun}] = {disk, std::move(*unit), std::move(*nexus), std::move(resize)};
  }
  for (const auto& sibling : siblings) sibling->raise(scsi::UnitAttention::kReportedLunsChanged);
  inboxes_.raise({ScsiEvent::kTransportReset, encode_lun(static_cast<std::uint8_t>(where.target), where.lun),
                  ScsiEvent::kReasonRescan});
  return {};
}

template <typename Fn>
bool ScsiController::on_reactors(ScsiTarget where, Fn fn) {
  bool all = true;
  for (auto& here : per_reactor_) {
    all = run_on(*here->reactor,
                 [&] {
                   auto& target = here->targets[where.target];
                   return fn(*here, target ? target->find(where.lun) : nullptr);
                 }) &&
          all;
  }
  return all;
}

Status ScsiController::remove_from_reactors(ScsiTarget where, const scsi::Nexus& nexus,
                                            std::chrono::milliseconds patience) {
  // First nothing new begins, then what has begun ends, then it goes. Until that is certain no command is refused: the
  // guest may have to go on with the disk.
  on_reactors(where, [](ReactorTargets& /*here*/, scsi::LunChannel* channel) {
    if (channel) channel->begin_leaving();
    return true;
  });
  const auto drained = [&] {
    return on_reactors(where,
                       [](ReactorTargets& /*here*/, scsi::LunChannel* channel) {
                         if (channel) channel->expedite();
                         return !channel || channel->drained();
                       }) &&
           nexus.managing() == 0;
  };
  const auto begin = std::chrono::steady_clock::now();
  while (!drained()) {
    if (std::chrono::steady_clock::now() - begin >= patience) {
      on_reactors(where, [](ReactorTargets& /*here*/, scsi::LunChannel* channel) {
        if (channel) channel->stay();
        return true;
      });
      return fail(ErrorCode::kBusy, "target " + std::to_string(where.target) + " of scsi controller " + name_ +
                                        " stays: the device has requests that do not end");
    }
    std::this_thread::sleep_for(kDrainInterval);
  }
  on_reactors(where, [&](ReactorTargets& here, scsi::LunChannel* found) {
    if (!found) return true;
    auto& target = here.targets[where.target];
    const auto channel = target->remove(where.lun);
    if (target->empty()) target.reset();
    channel->end_waiting();
    return true;
  });
  // A task management function may have come in between. It finds nothing to wait for here, but it keeps the disk.
  while (nexus.managing() != 0 && std::chrono::steady_clock::now() - begin < patience) {
    std::this_thread::sleep_for(kDrainInterval);
  }
  return {};
}

Status ScsiController::remove(ScsiTarget where, std::chrono::milliseconds patience) {
  const Key key{where.target, where.lun};
  std::shared_ptr<scsi::Nexus> nexus;
  {
    std::lock_guard lock(mutex_);
    const auto found = units_.find(key);
    if (found == units_.end()) return {};
    if (std::exchange(found->second.leaving, true)) {
      return fail(ErrorCode::kBusy,
                  "target " + std::to_string(where.target) + " of scsi controller " + name_ + " is being removed");
    }
    nexus = found->second.nexus;
  }
  const auto removed = remove_from_reactors(where, *nexus, patience);
  nexus.reset();
  Unit gone;
  std::vector<std::shared_ptr<scsi::Nexus>> siblings;
  {
    std::lock_guard lock(mutex_);
    if (!removed) {
      units_.at(key).leaving = false;
      return removed;
    }
    gone = std::move(units_.extract(key).mapped());
    for (const auto& [other, unit] : units_) {
      if (other.first == where.target) siblings.push_back(unit.nexus);
    }
  }
  for (const auto& sibling : siblings) sibling->raise(scsi::UnitAttention::kReportedLunsChanged);
  inboxes_.raise({ScsiEvent::kTransportReset, encode_lun(static_cast<std::uint8_t>(where.target), where.lun),
                  ScsiEvent::kReasonRemoved});
  return {};
}

void ScsiController::capacity_changed(ScsiTarget where) {
  {
    std::lock_guard lock(mutex_);
    if (!units_.contains({where.target, where.lun})) return;
  }
  inboxes_.raise({ScsiEvent::kParamChange, encode_lun(static_cast<std::uint8_t>(where.target), where.lun),
                  ScsiEvent::kReasonCapacityChanged});
}

bool ScsiController::empty() const {
  std::lock_guard lock(mutex_);
  return units_.empty();
}

std::uint64_t ScsiController::features() const {
  return bit(kScsiFeatureHotplug) | bit(kScsiFeatureChange);
}

std::vector<std::byte> ScsiController::config() const {
  ScsiConfig config{};
  config.num_queues = request_queues_;
  config.seg_max = kMaxSegments;
  config.max_sectors = kMaxSectors;
  config.cmd_per_lun = kCommandsPerLun;
  config.event_info_size = sizeof(ScsiEvent);
  config.sense_size = kScsiSenseBytes;
  config.cdb_size = kScsiCdbBytes;
  config.max_channel = 0;
  config.max_target = 254;
  config.max_lun = scsi::kMaxLun;
  std::vector<std::byte> bytes(sizeof(config));
  std::memcpy(bytes.data(), &config, sizeof(config));
  return bytes;
}

Status ScsiController::write_config(std::uint32_t offset, std::span<const std::byte> bytes) {
  // Drivers write the two sizes that they want; we have the defaults and no others.
  std::uint32_t value = 0;
  if (bytes.size() == sizeof(value)) {
    std::memcpy(&value, bytes.data(), sizeof(value));
    if (offset == offsetof(ScsiConfig, sense_size) && value == kScsiSenseBytes) return {};
    if (offset == offsetof(ScsiConfig, cdb_size) && value == kScsiCdbBytes) return {};
  }
  return fail(ErrorCode::kInvalid, "a configuration field that is not writable");
}

std::unique_ptr<VhostQueue> ScsiController::make_queue(std::uint16_t index, std::unique_ptr<virtio::Virtqueue> ring,
                                                       QueueFds fds, std::uint64_t /*features*/,
                                                       reactor::Reactor& reactor) {
  switch (index) {
    case kScsiControlQueue:
      return std::make_unique<ScsiControlQueue>(std::move(ring), std::move(fds), targets_on(reactor));
    case kScsiEventQueue:
      return std::make_unique<ScsiEventQueue>(std::move(ring), std::move(fds), inboxes_, reactor);
    default:
      return std::make_unique<ScsiRequestQueue>(std::move(ring), std::move(fds), targets_on(reactor));
  }
}

}  // namespace pollux::vhost
