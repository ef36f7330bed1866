#include "vhost/scsi_controller.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <thread>

#include "vhost/hop.h"
#include "vhost/limits.h"
#include "vhost/scsi_control_queue.h"
#include "vhost/scsi_request_queue.h"
#include "vhost/vhost_user.h"

namespace pollux::vhost {
namespace {

// How often a removal looks whether requests in flight have ended.
constexpr auto kDrainInterval = std::chrono::microseconds(500);

constexpr std::uint32_t kCommandsPerLun = 128;
constexpr std::uint32_t kMaxSectors = 0xffff;

}  // namespace

ScsiController::ScsiController(std::string name, std::uint16_t request_queues, Placement& placement,
                               scsi::LogicalUnits& units, ScsiStores stores)
    : name_(std::move(name)),
      request_queues_(request_queues),
      logical_units_(units),
      stores_(std::move(stores)) {
  for (std::size_t i = 0; i < placement.size(); ++i) {
    lanes_.push_back(std::make_unique<ScsiLane>());
    lanes_.back()->reactor = &placement.at(i).reactor();
  }
}

ScsiController::~ScsiController() {
  // Sessions are closed by now, so nothing is in flight.
  while (!units_.empty()) {
    const auto [target, lun] = units_.begin()->first;
    static_cast<void>(take_out({target, lun}, std::chrono::milliseconds::max()));
    units_.erase(units_.begin());
  }
  for (auto& lane : lanes_) {
    run_on(*lane->reactor, [&] {
      for (auto& target : lane->targets) target.reset();
    });
  }
}

ScsiLane& ScsiController::lane_of(const reactor::Reactor& reactor) {
  for (auto& lane : lanes_) {
    if (lane->reactor == &reactor) return *lane;
  }
  std::abort();  // every reactor of the placement has one
}

Status ScsiController::add(ScsiTarget where, const DiskSpec& disk, bool& added) {
  const std::string place =
      "target " + std::to_string(where.target) + " lun " + std::to_string(where.lun) + " of scsi controller " + name_;
  std::vector<std::shared_ptr<scsi::Nexus>> siblings;
  {
    std::lock_guard lock(mutex_);
    if (auto found = units_.find({where.target, where.lun}); found != units_.end()) {
      if (found->second.disk.uuid == disk.uuid && found->second.disk.read_only == disk.read_only) return {};
      return fail(ErrorCode::kExists, place + " holds another volume");
    }
    for (const auto& [key, unit] : units_) {
      if (key.first == where.target) siblings.push_back(unit.nexus);
    }
  }
  auto unit = logical_units_.get({.bdev = disk.bdev,
                                   .uuid = disk.uuid,
                                   .reservations = stores_.reservations,
                                   .settings = stores_.settings});
  if (!unit) return fail(std::move(unit.error()));
  // A volume that a guest has twice is reached through two ports.
  // To a guest that is running, a new disk has just been switched on. One that comes back after a restart of the
  // service, before its guest does, has not: the guest must not notice.
  auto nexus = (*unit)->join({.initiator = name_,
                              .relative_target_port = static_cast<std::uint16_t>(where.target + 1),
                              .read_only = disk.read_only,
                              .announce_power_on = inboxes_.any()});
  if (!nexus) return fail(std::move(nexus.error()));
  for (auto& lane : lanes_) {
    Status opened = run_on(*lane->reactor, [&]() -> Status {
      auto channel = (*nexus)->open_channel(*lane->reactor);
      if (!channel) return fail(std::move(channel.error()));
      auto& target = lane->targets[where.target];
      if (!target) target = std::make_unique<scsi::TargetChannel>();
      target->add(where.lun, std::move(*channel));
      return {};
    });
    if (!opened) {
      // No request can have reached it for long.
      static_cast<void>(take_out(where, std::chrono::milliseconds::max()));
      return opened;
    }
  }
  {
    std::lock_guard lock(mutex_);
    units_[{where.target, where.lun}] = {disk, std::move(*unit), std::move(*nexus)};
  }
  added = true;
  for (const auto& sibling : siblings) sibling->raise(scsi::UnitAttention::kReportedLunsChanged);
  inboxes_.raise({ScsiEvent::kTransportReset, encode_lun(static_cast<std::uint8_t>(where.target), where.lun),
                  ScsiEvent::kReasonRescan});
  return {};
}

Status ScsiController::take_out(ScsiTarget where, std::chrono::milliseconds patience) {
  // First nobody gets to it any more, then what has got to it ends, then it goes.
  std::vector<std::unique_ptr<scsi::LunChannel>> leaving;
  for (auto& lane : lanes_) {
    leaving.push_back(run_on(*lane->reactor, [&]() -> std::unique_ptr<scsi::LunChannel> {
      auto& target = lane->targets[where.target];
      if (!target) return nullptr;
      auto channel = target->remove(where.lun);
      if (target->empty()) target.reset();
      return channel;
    }));
  }
  const auto quiet = [&] {
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      const bool idle = run_on(*lanes_[i]->reactor, [&] {
        if (leaving[i]) leaving[i]->expedite();
        return lanes_[i]->managing == 0 && (!leaving[i] || leaving[i]->idle());
      });
      if (!idle) return false;
    }
    return true;
  };
  const auto begin = std::chrono::steady_clock::now();
  bool ended = quiet();
  while (!ended && std::chrono::steady_clock::now() - begin < patience) {
    std::this_thread::sleep_for(kDrainInterval);
    ended = quiet();
  }
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    run_on(*lanes_[i]->reactor, [&] {
      if (ended || !leaving[i]) return leaving[i].reset();
      auto& target = lanes_[i]->targets[where.target];
      if (!target) target = std::make_unique<scsi::TargetChannel>();
      target->add(where.lun, std::move(leaving[i]));
    });
  }
  if (ended) return {};
  return fail(ErrorCode::kBusy, "target " + std::to_string(where.target) + " of scsi controller " + name_ +
                                    " stays: the device has requests that do not end");
}

Status ScsiController::remove(ScsiTarget where, std::chrono::milliseconds patience) {
  {
    std::lock_guard lock(mutex_);
    if (!units_.contains({where.target, where.lun})) return {};
  }
  POLLUX_TRY(take_out(where, patience));
  Unit gone;
  std::vector<std::shared_ptr<scsi::Nexus>> siblings;
  {
    std::lock_guard lock(mutex_);
    auto node = units_.extract(Key{where.target, where.lun});
    gone = std::move(node.mapped());
    for (const auto& [key, unit] : units_) {
      if (key.first == where.target) siblings.push_back(unit.nexus);
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
  return bit(kScsiHotplug) | bit(kScsiChange);
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
      return std::make_unique<ScsiControlQueue>(std::move(ring), std::move(fds), lane_of(reactor));
    case kScsiEventQueue:
      return std::make_unique<ScsiEventQueue>(std::move(ring), std::move(fds), inboxes_, reactor);
    default:
      return std::make_unique<ScsiRequestQueue>(std::move(ring), std::move(fds), lane_of(reactor));
  }
}

}  // namespace pollux::vhost
