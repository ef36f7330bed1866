#include "vhost/vhost_service.h"

#include <grp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "base/log.h"
#include "scsi/logical_unit.h"
#include "vhost/blk_device.h"
#include "vhost/endpoint.h"
#include "vhost/queue_poller.h"
#include "vhost/scsi_controller.h"
#include "vhost/transport.h"

namespace pollux::vhost {
namespace {

// VIRTIO 1.2 5.6.4: a target is one byte of the address, 255 is left out as in SAM's bus addressing.
constexpr std::uint16_t kMaxTarget = 254;

// Runs what must not run on a reactor, where block devices report that they have grown.
class Errands {
 public:
  Errands() : thread_([this] { run(); }) {}
  ~Errands() {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  void post(std::function<void()> errand) {
    {
      std::lock_guard lock(mutex_);
      errands_.push_back(std::move(errand));
    }
    changed_.notify_one();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return ending_ || !errands_.empty(); });
      if (errands_.empty()) return;
      auto errand = std::move(errands_.front());
      errands_.pop_front();
      lock.unlock();
      errand();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> errands_;
  bool ending_ = false;
  std::thread thread_;
};

Status check_name(const std::string& name) {
  const auto allowed = [](unsigned char c) { return std::isalnum(c) || c == '-'; };
  if (name.empty() || name.size() > 64 || !std::all_of(name.begin(), name.end(), allowed)) {
    return fail(ErrorCode::kInvalid, "name '" + name + "' is not 1 to 64 letters, digits and dashes");
  }
  return {};
}

bool same_disk(const DiskSpec& a, const DiskSpec& b) {
  return a.uuid == b.uuid && a.read_only == b.read_only;
}

}  // namespace

struct VhostService::Impl {
  Impl(reactor::ReactorGroup& reactors, Options opts) : options(std::move(opts)), placement(reactors) {}
  ~Impl();

  struct Blk {
    DiskSpec disk;
    std::uint16_t queues;
    // Listening ends, and with it every session, before the device goes.
    std::shared_ptr<Endpoint> endpoint;
    bdev::Bdev::ResizeToken resize;
  };
  struct Scsi {
    std::uint16_t queues;
    std::shared_ptr<Endpoint> endpoint;
    ScsiController* controller;  // the endpoint's device
    std::map<std::pair<std::uint16_t, std::uint16_t>, bdev::Bdev::ResizeToken> resize;
  };

  Result<std::uint16_t> check_queues(std::uint32_t queues) const;
  Result<std::shared_ptr<Endpoint>> open(const std::string& path, std::unique_ptr<Device> device);
  void close(Endpoint& endpoint) { transport->close(endpoint.path()); }
  std::string path(const std::string& kind, const std::string& name) const {
    return options.socket_dir + "/" + kind + "-" + name + ".sock";
  }

  const Options options;
  std::optional<gid_t> group;
  Placement placement;
  scsi::LogicalUnits units;
  Errands errands;
  std::unique_ptr<Transport> transport;

  // Serialises the calls that change things.
  std::mutex changes;
  // Guards the maps, for the others.
  mutable std::mutex maps;
  std::map<std::string, Blk> blks;
  std::map<std::string, Scsi> scsis;
};

VhostService::Impl::~Impl() {
  for (auto& [name, blk] : blks) {
    blk.resize.reset();
    close(*blk.endpoint);
  }
  for (auto& [name, scsi] : scsis) {
    scsi.resize.clear();
    close(*scsi.endpoint);
  }
  transport.reset();
}

Result<std::uint16_t> VhostService::Impl::check_queues(std::uint32_t queues) const {
  const std::uint32_t wanted = queues == 0 ? options.default_queues : queues;
  if (wanted > options.max_queues) {
    return fail(ErrorCode::kInvalid, std::to_string(wanted) + " queues are more than the " +
                                         std::to_string(options.max_queues) + " allowed");
  }
  return static_cast<std::uint16_t>(wanted);
}

Result<std::shared_ptr<Endpoint>> VhostService::Impl::open(const std::string& path, std::unique_ptr<Device> device) {
  auto endpoint = std::make_shared<Endpoint>(path, std::move(device), placement);
  POLLUX_TRY(transport->open(path, *endpoint));
  // The directory keeps others out until this is done.
  if (::chmod(path.c_str(), 0660) != 0 || (group && ::chown(path.c_str(), static_cast<uid_t>(-1), *group) != 0)) {
    const int error = errno;
    transport->close(path);
    return fail(ErrorCode::kInternal, "cannot set the permissions of " + path + ": " + std::strerror(error));
  }
  return endpoint;
}

VhostService::VhostService() = default;

Result<std::unique_ptr<VhostService>> VhostService::start(reactor::ReactorGroup& reactors, Options options) {
  if (options.default_queues == 0 || options.default_queues > options.max_queues || options.max_queues > 64) {
    return fail(ErrorCode::kInvalid, "queues: the default is 1 to the maximum, and the maximum at most 64");
  }
  std::optional<gid_t> group;
  if (!options.socket_group.empty()) {
    const struct group* entry = ::getgrnam(options.socket_group.c_str());
    if (!entry) return fail(ErrorCode::kInvalid, "group " + options.socket_group + " does not exist");
    group = entry->gr_gid;
  }
  std::error_code error;
  if (std::filesystem::create_directories(options.socket_dir, error)) {
    if (::chmod(options.socket_dir.c_str(), 0750) != 0 ||
        (group && ::chown(options.socket_dir.c_str(), static_cast<uid_t>(-1), *group) != 0)) {
      return fail(ErrorCode::kInternal,
                  "cannot set the permissions of " + options.socket_dir + ": " + std::strerror(errno));
    }
  }
  if (error) return fail(ErrorCode::kInternal, "cannot make " + options.socket_dir + ": " + error.message());
  auto transport = make_socket_transport();
  if (!transport) return fail(std::move(transport.error()));
  std::unique_ptr<VhostService> service(new VhostService);
  service->impl_ = std::make_unique<Impl>(reactors, std::move(options));
  service->impl_->group = group;
  service->impl_->transport = std::move(*transport);
  return service;
}

VhostService::~VhostService() = default;

Result<std::string> VhostService::create_blk(const std::string& name, std::uint32_t queues, DiskSpec disk) {
  POLLUX_TRY(check_name(name));
  if (!disk.bdev) return fail(ErrorCode::kInvalid, "blk " + name + ": no volume");
  auto count = impl_->check_queues(queues);
  if (!count) return fail(std::move(count.error()));
  std::lock_guard changing(impl_->changes);
  const std::string path = impl_->path("blk", name);
  if (auto found = impl_->blks.find(name); found != impl_->blks.end()) {
    if (same_disk(found->second.disk, disk) && found->second.queues == *count) return path;
    return fail(ErrorCode::kExists, "blk " + name + " is there with another volume, queues or access");
  }
  auto device = BlkDevice::make(disk, *count, impl_->placement);
  if (!device) return fail(std::move(device.error()));
  auto endpoint = impl_->open(path, std::move(*device));
  if (!endpoint) return fail(std::move(endpoint.error()));
  std::weak_ptr<Endpoint> weak = *endpoint;
  auto resize = disk.bdev->on_resize([errands = &impl_->errands, weak](std::uint64_t) {
    errands->post([weak] {
      if (auto grown = weak.lock()) grown->config_changed();
    });
  });
  std::lock_guard lock(impl_->maps);
  impl_->blks.emplace(name, Impl::Blk{std::move(disk), *count, std::move(*endpoint), std::move(resize)});
  return path;
}

Status VhostService::remove_blk(const std::string& name) {
  std::lock_guard changing(impl_->changes);
  auto found = impl_->blks.find(name);
  if (found == impl_->blks.end()) return {};
  found->second.resize.reset();
  impl_->close(*found->second.endpoint);
  std::lock_guard lock(impl_->maps);
  impl_->blks.erase(found);
  return {};
}

Result<std::string> VhostService::ensure_scsi_controller(const std::string& name, std::uint32_t queues) {
  POLLUX_TRY(check_name(name));
  auto count = impl_->check_queues(queues);
  if (!count) return fail(std::move(count.error()));
  std::lock_guard changing(impl_->changes);
  const std::string path = impl_->path("scsi", name);
  if (auto found = impl_->scsis.find(name); found != impl_->scsis.end()) {
    // Asked for without a number of queues, it is the same whatever it has.
    if (queues == 0 || found->second.queues == *count) return path;
    return fail(ErrorCode::kExists,
                "scsi controller " + name + " is there with " + std::to_string(found->second.queues) + " queues");
  }
  auto controller = std::make_unique<ScsiController>(name, *count, impl_->placement, impl_->units);
  ScsiController* raw = controller.get();
  auto endpoint = impl_->open(path, std::move(controller));
  if (!endpoint) return fail(std::move(endpoint.error()));
  std::lock_guard lock(impl_->maps);
  impl_->scsis.emplace(name, Impl::Scsi{*count, std::move(*endpoint), raw, {}});
  return path;
}

Status VhostService::remove_scsi_controller(const std::string& name) {
  std::lock_guard changing(impl_->changes);
  auto found = impl_->scsis.find(name);
  if (found == impl_->scsis.end()) return {};
  if (!found->second.controller->empty())
    return fail(ErrorCode::kBusy, "scsi controller " + name + " still has targets: remove them first");
  impl_->close(*found->second.endpoint);
  std::lock_guard lock(impl_->maps);
  impl_->scsis.erase(found);
  return {};
}

Status VhostService::add_scsi_target(const std::string& name, ScsiTarget where, DiskSpec disk) {
  if (!disk.bdev) return fail(ErrorCode::kInvalid, "scsi controller " + name + ": no volume");
  if (where.target > kMaxTarget || where.lun > scsi::kMaxLun) {
    return fail(ErrorCode::kInvalid, "scsi controller " + name + ": targets go to " + std::to_string(kMaxTarget) +
                                         ", LUNs to " + std::to_string(scsi::kMaxLun));
  }
  std::lock_guard changing(impl_->changes);
  auto found = impl_->scsis.find(name);
  if (found == impl_->scsis.end()) return fail(ErrorCode::kNotFound, "scsi controller " + name + " does not exist");
  Impl::Scsi& scsi = found->second;
  bool added = false;
  POLLUX_TRY(scsi.controller->add(where, disk, added));
  if (!added) return {};
  std::weak_ptr<Endpoint> weak = scsi.endpoint;
  scsi.resize[{where.target, where.lun}] =
      disk.bdev->on_resize([errands = &impl_->errands, weak, where](std::uint64_t) {
        errands->post([weak, where] {
          if (auto endpoint = weak.lock()) static_cast<ScsiController&>(endpoint->device()).capacity_changed(where);
        });
      });
  return {};
}

Status VhostService::remove_scsi_target(const std::string& name, ScsiTarget where) {
  std::lock_guard changing(impl_->changes);
  auto found = impl_->scsis.find(name);
  if (found == impl_->scsis.end()) return {};
  found->second.resize.erase({where.target, where.lun});
  found->second.controller->remove(where);
  return {};
}

std::vector<SessionInfo> VhostService::sessions() const {
  std::vector<std::shared_ptr<Endpoint>> endpoints;
  {
    std::lock_guard lock(impl_->maps);
    for (const auto& [name, blk] : impl_->blks) endpoints.push_back(blk.endpoint);
    for (const auto& [name, scsi] : impl_->scsis) endpoints.push_back(scsi.endpoint);
  }
  std::vector<SessionInfo> infos;
  for (const auto& endpoint : endpoints) infos.push_back(endpoint->info());
  return infos;
}

}  // namespace pollux::vhost
