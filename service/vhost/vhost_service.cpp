#include "vhost/vhost_service.h"

#include <grp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

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

// Whoever leaves is often followed by others, or comes back at once: what is uneven then need not stay so.
constexpr std::chrono::milliseconds kRebalanceAfter{50};

// A guest waits for a socket that could not be opened.
constexpr std::chrono::milliseconds kOpenAgainAfter{1000};

// Runs, one after the other, what must not run where its cause is found: reactors, where block devices report that they
// have grown; sessions, where queues leave.
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
  void post(std::function<void()> errand, std::chrono::milliseconds delay = {}) {
    {
      std::lock_guard lock(mutex_);
      errands_.emplace(Clock::now() + delay, std::move(errand));
    }
    changed_.notify_one();
  }

 private:
  using Clock = std::chrono::steady_clock;

  void run() {
    ::pthread_setname_np(::pthread_self(), "vhost-errands");
    std::unique_lock lock(mutex_);
    while (!ending_) {
      if (errands_.empty()) {
        changed_.wait(lock);
        continue;
      }
      if (const auto due = errands_.begin()->first; Clock::now() < due) {
        changed_.wait_until(lock, due);
        continue;
      }
      auto errand = std::move(errands_.extract(errands_.begin()).mapped());
      lock.unlock();
      errand();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<Clock::time_point, std::function<void()>> errands_;
  bool ending_ = false;
  std::thread thread_;
};

// The service's store, as the SCSI layer knows it.
class KeptReservations final : public scsi::ReservationStore {
 public:
  explicit KeptReservations(std::shared_ptr<vhost::ReservationStore> store) : store_(std::move(store)) {}
  Result<std::string> load(const Uuid& logical_unit) override { return store_->load(logical_unit); }
  void save(const Uuid& logical_unit, std::string state, Lasts lasts, std::function<void(Status)> done) override {
    store_->save(logical_unit, std::move(state), lasts == Lasts::kOverPowerLoss, std::move(done));
  }

 private:
  std::shared_ptr<vhost::ReservationStore> store_;
};

class KeptSettings final : public scsi::SettingStore {
 public:
  explicit KeptSettings(std::shared_ptr<vhost::SettingStore> store) : store_(std::move(store)) {}
  Result<std::string> load(const Uuid& logical_unit, const std::string& guest) override {
    return store_->load(logical_unit, guest);
  }
  void save(const Uuid& logical_unit, const std::string& guest, std::string state, Lasts lasts,
            std::function<void(Status)> done) override {
    store_->save(logical_unit, guest, std::move(state), lasts == Lasts::kOverPowerLoss, std::move(done));
  }

 private:
  std::shared_ptr<vhost::SettingStore> store_;
};

Status check_name(const std::string& name) {
  const auto allowed = [](unsigned char c) { return std::isalnum(c) || c == '-'; };
  if (name.empty() || name.size() > 64 || !std::all_of(name.begin(), name.end(), allowed)) {
    return fail(ErrorCode::kInvalid, "name '" + name + "' is not 1 to 64 letters, digits and dashes");
  }
  return {};
}

std::string being_added(const std::string& controller, ScsiTarget where) {
  return "target " + std::to_string(where.target) + " of scsi controller " + controller + " is being added";
}

bool same_disk(const DiskSpec& a, const DiskSpec& b) {
  return a.uuid == b.uuid && a.read_only == b.read_only;
}

}  // namespace

struct VhostService::Impl {
  Impl(std::unique_ptr<Placement> placed, Options opts)
      : options(std::move(opts)), placement(std::move(placed)), listening(!options.hold_sockets) {
    if (options.reservations) stores.reservations = std::make_shared<KeptReservations>(options.reservations);
    if (options.settings) stores.settings = std::make_shared<KeptSettings>(options.settings);
    placement->on_uneven([this] {
      if (!rebalancing.exchange(true)) errands->post([this] { rebalance(); }, kRebalanceAfter);
    });
  }
  ~Impl();

  struct Blk {
    DiskSpec disk;
    std::uint16_t queues;
    // Listening ends, and with it every session, before the device goes.
    std::shared_ptr<Endpoint> endpoint;
    bdev::Bdev::ResizeToken resize;
    // Once it is being removed.
    std::shared_future<void> closed = {};
  };
  struct Scsi {
    std::uint16_t queues;
    std::shared_ptr<Endpoint> endpoint;
    bool leaving = false;
    // Targets whose disks are being opened.
    std::set<std::pair<std::uint16_t, std::uint16_t>> coming = {};

    ScsiController& controller() const { return static_cast<ScsiController&>(endpoint->device()); }
  };

  Result<std::uint16_t> check_queues(std::uint32_t queues) const;
  Result<std::shared_ptr<Endpoint>> open(const std::string& path, std::unique_ptr<Device> device);
  Status open_socket(Endpoint& endpoint);
  void open_again(const std::weak_ptr<Endpoint>& closed);
  void close(Endpoint& endpoint) { transport->close(endpoint.path()); }
  std::vector<std::shared_ptr<Endpoint>> endpoints() const;
  void rebalance();
  std::string path(const std::string& kind, const std::string& name) const {
    return options.socket_dir + "/" + kind + "-" + name + ".sock";
  }

  const Options options;
  std::optional<gid_t> group;
  const std::unique_ptr<Placement> placement;
  const std::shared_ptr<MappedMemory> mapped = std::make_shared<MappedMemory>(options.guest_memory_bytes);
  ScsiStores stores;
  scsi::LogicalUnits units;
  std::atomic<bool> rebalancing{false};
  // Ends before what its errands use, and after the sessions that post them.
  std::optional<Errands> errands{std::in_place};
  std::unique_ptr<Transport> transport;

  // Serialises the calls that change things. Never held while one waits for a device: what is being added or removed
  // says so itself, and calls about anything else go on.
  std::mutex changes;
  bool listening;
  // Guards the maps, for the others.
  mutable std::mutex maps;
  std::map<std::string, Blk> blks;
  std::map<std::string, Scsi> scsis;
  // Blk devices whose disks are being opened; under `changes`.
  std::set<std::string> coming_blks;
};

VhostService::Impl::~Impl() {
  for (auto& [name, blk] : blks) {
    blk.resize.reset();
    if (blk.closed.valid()) blk.closed.wait();
    close(*blk.endpoint);
  }
  for (auto& [name, scsi] : scsis) close(*scsi.endpoint);
  {
    // An errand may be about to open a socket.
    std::lock_guard changing(changes);
    transport.reset();
  }
  // With the disks go those that post errands when they grow.
  {
    std::map<std::string, Scsi> ending;
    std::lock_guard lock(maps);
    ending.swap(scsis);
  }
  errands.reset();
}

std::vector<std::shared_ptr<Endpoint>> VhostService::Impl::endpoints() const {
  std::vector<std::shared_ptr<Endpoint>> found;
  std::lock_guard lock(maps);
  for (const auto& [name, blk] : blks) found.push_back(blk.endpoint);
  for (const auto& [name, scsi] : scsis) found.push_back(scsi.endpoint);
  return found;
}

void VhostService::Impl::rebalance() {
  // Before looking: who leaves from here on posts anew.
  rebalancing = false;
  for (const auto& endpoint : endpoints()) endpoint->rebalance();
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
  auto endpoint = std::make_shared<Endpoint>(path, std::move(device), *placement, mapped);
  if (listening) POLLUX_TRY(open_socket(*endpoint));
  return endpoint;
}

Status VhostService::Impl::open_socket(Endpoint& endpoint) {
  const std::string& path = endpoint.path();
  POLLUX_TRY(transport->open(path, endpoint));
  // The directory keeps others out until this is done.
  if (::chmod(path.c_str(), 0660) != 0 || (group && ::chown(path.c_str(), static_cast<uid_t>(-1), *group) != 0)) {
    const int error = errno;
    transport->close(path);
    return fail(ErrorCode::kInternal, "cannot set the permissions of " + path + ": " + std::strerror(error));
  }
  return {};
}

void VhostService::Impl::open_again(const std::weak_ptr<Endpoint>& closed) {
  const auto later = [this, closed] { errands->post([this, closed] { open_again(closed); }, kOpenAgainAfter); };
  // Other errands do not wait for a removal that does.
  std::unique_lock changing(changes, std::try_to_lock);
  if (!changing) return later();
  if (!transport) return;
  const auto endpoint = closed.lock();
  const auto all = endpoints();
  if (!endpoint || std::ranges::find(all, endpoint) == all.end()) return;
  if (!open_socket(*endpoint)) return later();
  log::info("vhost: {} is open now", endpoint->path());
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
  auto placement = Placement::make(reactors);
  if (!placement) return fail(std::move(placement.error()));
  std::unique_ptr<VhostService> service(new VhostService);
  service->impl_ = std::make_unique<Impl>(std::move(*placement), std::move(options));
  service->impl_->group = group;
  service->impl_->transport = std::move(*transport);
  return service;
}

VhostService::~VhostService() = default;

void VhostService::listen() {
  std::lock_guard changing(impl_->changes);
  if (std::exchange(impl_->listening, true)) return;
  for (const auto& endpoint : impl_->endpoints()) {
    const auto opened = impl_->open_socket(*endpoint);
    if (opened) continue;
    log::error("vhost: {}; trying again until it can be opened", opened.error().message);
    impl_->errands->post([impl = impl_.get(), endpoint = std::weak_ptr(endpoint)] { impl->open_again(endpoint); },
                         kOpenAgainAfter);
  }
}

Result<std::string> VhostService::create_blk(const std::string& name, std::uint32_t queues, DiskSpec disk) {
  POLLUX_TRY(check_name(name));
  if (!disk.bdev) return fail(ErrorCode::kInvalid, "blk " + name + ": no volume");
  auto count = impl_->check_queues(queues);
  if (!count) return fail(std::move(count.error()));
  std::unique_lock changing(impl_->changes);
  const std::string path = impl_->path("blk", name);
  if (auto found = impl_->blks.find(name); found != impl_->blks.end()) {
    if (found->second.closed.valid()) return fail(ErrorCode::kBusy, "blk " + name + " is being removed");
    if (same_disk(found->second.disk, disk) && found->second.queues == *count) return path;
    return fail(ErrorCode::kExists, "blk " + name + " is there with another volume, queues or access");
  }
  if (!impl_->coming_blks.insert(name).second) return fail(ErrorCode::kBusy, "blk " + name + " is being added");
  changing.unlock();
  auto channels = DiskChannels::open(disk.bdev, *impl_->placement, impl_->options.drain_patience);
  changing.lock();
  impl_->coming_blks.erase(name);
  if (!channels) return fail(std::move(channels.error()));
  auto device = BlkDevice::make(disk, *count, std::move(*channels), impl_->options.settings,
                                impl_->options.path_patience);
  if (!device) return fail(std::move(device.error()));
  auto endpoint = impl_->open(path, std::move(*device));
  if (!endpoint) return fail(std::move(endpoint.error()));
  std::weak_ptr<Endpoint> weak = *endpoint;
  auto resize = disk.bdev->on_resize([errands = &*impl_->errands, weak](std::uint64_t) {
    errands->post([weak] {
      if (auto grown = weak.lock()) grown->config_changed();
    });
  });
  std::lock_guard lock(impl_->maps);
  impl_->blks.emplace(name, Impl::Blk{std::move(disk), *count, std::move(*endpoint), std::move(resize)});
  return path;
}

Status VhostService::remove_blk(const std::string& name) {
  std::shared_ptr<Endpoint> endpoint;
  std::shared_future<void> closed;
  {
    std::lock_guard changing(impl_->changes);
    if (impl_->coming_blks.contains(name)) return fail(ErrorCode::kBusy, "blk " + name + " is being added");
    const auto found = impl_->blks.find(name);
    if (found == impl_->blks.end()) return {};
    Impl::Blk& blk = found->second;
    endpoint = blk.endpoint;
    blk.resize.reset();
    if (!blk.closed.valid()) {
      blk.closed = std::async(std::launch::async, [this, endpoint] { impl_->close(*endpoint); }).share();
    }
    closed = blk.closed;
  }
  if (closed.wait_for(impl_->options.drain_patience) != std::future_status::ready) {
    return fail(ErrorCode::kBusy, "blk " + name + " is being removed: the device has requests that do not end");
  }
  decltype(impl_->blks)::node_type gone;
  std::lock_guard changing(impl_->changes);
  std::lock_guard lock(impl_->maps);
  // Another call may have waited for the same, and a new one be there already.
  const auto found = impl_->blks.find(name);
  if (found != impl_->blks.end() && found->second.endpoint == endpoint) gone = impl_->blks.extract(found);
  return {};
}

Result<std::string> VhostService::ensure_scsi_controller(const std::string& name, std::uint32_t queues) {
  POLLUX_TRY(check_name(name));
  auto count = impl_->check_queues(queues);
  if (!count) return fail(std::move(count.error()));
  std::lock_guard changing(impl_->changes);
  const std::string path = impl_->path("scsi", name);
  if (auto found = impl_->scsis.find(name); found != impl_->scsis.end()) {
    if (found->second.leaving) return fail(ErrorCode::kBusy, "scsi controller " + name + " is being removed");
    // Asked for without a number of queues, it is the same whatever it has.
    if (queues == 0 || found->second.queues == *count) return path;
    return fail(ErrorCode::kExists,
                "scsi controller " + name + " is there with " + std::to_string(found->second.queues) + " queues");
  }
  auto controller = std::make_unique<ScsiController>(name, *count, *impl_->placement, impl_->units, impl_->stores);
  // The process before this one may have ended before it told its guest of a change. Nobody knows, and a look at its
  // disks for nothing does not harm a guest.
  if (!impl_->listening) controller->came_back();
  auto endpoint = impl_->open(path, std::move(controller));
  if (!endpoint) return fail(std::move(endpoint.error()));
  std::lock_guard lock(impl_->maps);
  impl_->scsis.emplace(name, Impl::Scsi{*count, std::move(*endpoint)});
  return path;
}

Status VhostService::remove_scsi_controller(const std::string& name) {
  std::shared_ptr<Endpoint> endpoint;
  {
    std::lock_guard changing(impl_->changes);
    const auto found = impl_->scsis.find(name);
    if (found == impl_->scsis.end()) return {};
    if (!found->second.controller().empty() || !found->second.coming.empty())
      return fail(ErrorCode::kBusy, "scsi controller " + name + " still has targets: remove them first");
    if (std::exchange(found->second.leaving, true))
      return fail(ErrorCode::kBusy, "scsi controller " + name + " is being removed");
    endpoint = found->second.endpoint;
  }
  impl_->close(*endpoint);
  std::lock_guard changing(impl_->changes);
  std::lock_guard lock(impl_->maps);
  impl_->scsis.erase(name);
  return {};
}

Status VhostService::add_scsi_target(const std::string& name, ScsiTarget where, DiskSpec disk) {
  if (!disk.bdev) return fail(ErrorCode::kInvalid, "scsi controller " + name + ": no volume");
  if (where.target > kMaxTarget || where.lun > scsi::kMaxLun) {
    return fail(ErrorCode::kInvalid, "scsi controller " + name + ": targets go to " + std::to_string(kMaxTarget) +
                                         ", LUNs to " + std::to_string(scsi::kMaxLun));
  }
  std::unique_lock changing(impl_->changes);
  auto found = impl_->scsis.find(name);
  if (found == impl_->scsis.end()) return fail(ErrorCode::kNotFound, "scsi controller " + name + " does not exist");
  Impl::Scsi& scsi = found->second;
  if (scsi.leaving) return fail(ErrorCode::kBusy, "scsi controller " + name + " is being removed");
  const auto there = scsi.controller().has(where, disk);
  if (!there) return fail(there.error());
  if (*there) return {};
  const std::pair place(where.target, where.lun);
  if (!scsi.coming.insert(place).second) return fail(ErrorCode::kBusy, being_added(name, where));
  // The controller stays: it is not removed while something is coming.
  changing.unlock();
  auto channels = DiskChannels::open(disk.bdev, *impl_->placement, impl_->options.drain_patience);
  changing.lock();
  scsi.coming.erase(place);
  if (!channels) return fail(std::move(channels.error()));
  std::weak_ptr<Endpoint> weak = scsi.endpoint;
  auto resize = disk.bdev->on_resize([errands = &*impl_->errands, weak, where](std::uint64_t) {
    errands->post([weak, where] {
      if (auto endpoint = weak.lock()) static_cast<ScsiController&>(endpoint->device()).capacity_changed(where);
    });
  });
  POLLUX_TRY(scsi.controller().add(where, disk, **channels, std::move(resize)));
  if (!impl_->listening) scsi.controller().capacity_changed(where);
  return {};
}

Status VhostService::remove_scsi_target(const std::string& name, ScsiTarget where) {
  std::shared_ptr<Endpoint> endpoint;
  {
    std::lock_guard changing(impl_->changes);
    const auto found = impl_->scsis.find(name);
    if (found == impl_->scsis.end()) return {};
    if (found->second.coming.contains({where.target, where.lun})) return fail(ErrorCode::kBusy, being_added(name, where));
    endpoint = found->second.endpoint;
  }
  return static_cast<ScsiController&>(endpoint->device()).remove(where, impl_->options.drain_patience);
}

std::vector<SessionInfo> VhostService::sessions() const {
  std::vector<SessionInfo> infos;
  for (const auto& endpoint : impl_->endpoints()) infos.push_back(endpoint->info());
  return infos;
}

std::vector<unsigned> VhostService::queues_by_reactor() const {
  return impl_->placement->loads();
}

}  // namespace pollux::vhost
