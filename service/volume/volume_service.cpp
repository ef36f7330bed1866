#include "volume/volume_service.h"

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "blob/volume.h"
#include "volume/pool.h"

namespace pollux::volume {

using blob::Volume;

struct VolumeService::Impl {
  explicit Impl(reactor::ReactorGroup& group) : reactors(group), home(group.main()) {}

  reactor::ReactorGroup& reactors;
  // Everything here, and every store, is on this reactor.
  reactor::Reactor& home;
  std::map<Uuid, std::unique_ptr<Pool>> pools;
  // One pool comes or goes at a time.
  reactor::AsyncMutex pools_mutex;

  Result<Pool*> find_pool(const std::string& name_or_id) const {
    for (const auto& [id, pool] : pools) {
      if (pool->name == name_or_id || id.to_string() == name_or_id) return pool.get();
    }
    return fail(ErrorCode::kNotFound, "pool '" + name_or_id + "' does not exist or is not imported");
  }

  struct Place {
    Pool* pool;
    Volume* volume;
  };
  Result<Place> find_volume(const Uuid& id) const {
    for (const auto& [pool_id, pool] : pools) {
      if (Volume* volume = pool->store->state().find(id)) return Place{pool.get(), volume};
    }
    return fail(ErrorCode::kNotFound, "volume " + id.to_string() + " does not exist");
  }

  Result<VolumeInfo> describe(const Uuid& id) const {
    auto place = find_volume(id);
    if (!place) return fail(std::move(place.error()));
    return place->pool->info(*place->volume);
  }

  reactor::Task<Result<std::shared_ptr<bdev::Bdev>>> open_device(bdev::Spec spec);
  reactor::Task<Result<Pool*>> adopt(bdev::Spec spec, std::shared_ptr<bdev::Bdev> device);
  void follow_growth(Pool& pool);
  reactor::Task<Status> close_pool(Pool& pool);
};

VolumeService::VolumeService(reactor::ReactorGroup& reactors) : impl_(std::make_unique<Impl>(reactors)) {}
VolumeService::~VolumeService() = default;

// ---- Pools

// The kernel takes down the rings of a process that was killed in the background, and holds its lock on the device
// until then: tens of milliseconds in which the next service must not give up.
reactor::Task<Result<std::shared_ptr<bdev::Bdev>>> VolumeService::Impl::open_device(bdev::Spec spec) {
  constexpr std::uint64_t kPatienceNs = 2'000'000'000;
  constexpr std::uint64_t kPauseUs = 10'000;
  const std::uint64_t deadline_ns = monotonic_ns() + kPatienceNs;
  while (true) {
    auto device = bdev::open(spec);
    if (device || device.error().code != ErrorCode::kBusy || monotonic_ns() >= deadline_ns) co_return device;
    co_await home.sleep_us(kPauseUs);
  }
}

// Loads the pool on the device and takes it in. kExists when its name or id is taken.
reactor::Task<Result<Pool*>> VolumeService::Impl::adopt(bdev::Spec spec, std::shared_ptr<bdev::Bdev> device) {
  auto store = co_await blob::Store::open(device, home);
  if (!store) co_return fail(std::move(store.error()));
  const blob::Superblock& super = (*store)->super();
  const std::string name(super.name, super.name_bytes);
  const Uuid id = super.pool_id;
  for (const auto& [other_id, other] : pools) {
    if (other_id == id || other->name == name) {
      POLLUX_CO_TRY(co_await (*store)->close());
      co_return fail(ErrorCode::kExists,
                     "a pool with the name '" + name + "' or the id " + id.to_string() + " is open already");
    }
  }
  // A device that grew while the pool was closed.
  POLLUX_CO_TRY(co_await (*store)->grow());
  auto pool = std::make_unique<Pool>();
  pool->id = id;
  pool->name = name;
  pool->spec = std::move(spec);
  pool->device = std::move(device);
  pool->store = std::move(*store);
  Pool& taken = *pools.emplace(id, std::move(pool)).first->second;
  follow_growth(taken);
  log::info("pool {} ({}) is open: {} volumes, {} journal records replayed", taken.name, id.to_string(),
            taken.store->state().volumes().size(), taken.store->replayed_records());
  co_return &taken;
}

void VolumeService::Impl::follow_growth(Pool& pool) {
  pool.resize_token = pool.device->on_resize([this, id = pool.id](std::uint64_t) {
    home.post([this, id] {
      auto found = pools.find(id);
      if (found == pools.end()) return;
      reactor::spawn(found->second->store->grow(), [id](Status grown) {
        if (!grown)
          log::error("pool {} does not follow its device's growth: {}", id.to_string(), grown.error().message);
      });
    });
  });
}

reactor::Task<Result<PoolInfo>> VolumeService::create_pool(PoolSpec spec) {
  co_await impl_->home.enter();
  auto guard = co_await impl_->pools_mutex.lock();
  for (const auto& [id, pool] : impl_->pools) {
    const bool same = id == spec.id && pool->name == spec.name && pool->spec == spec.bdev &&
                      (spec.cluster_bytes == 0 || spec.cluster_bytes == pool->store->super().cluster_bytes);
    if (same) co_return pool->info();
    if (id == spec.id || pool->name == spec.name) {
      co_return fail(ErrorCode::kExists,
                     "a pool with the name '" + spec.name + "' or the id " + spec.id.to_string() + " is open already");
    }
  }
  if (spec.id.is_nil() || spec.name.empty()) co_return fail(ErrorCode::kInvalid, "a pool needs an id and a name");
  auto device = co_await impl_->open_device(spec.bdev);
  if (!device) co_return fail(std::move(device.error()));
  auto there = co_await blob::Store::probe(*device, impl_->home);
  if (there) {
    const std::string name(there->name, there->name_bytes);
    if (there->pool_id != spec.id || name != spec.name) {
      co_return fail(ErrorCode::kExists, "the device holds the pool '" + name + "' (" + there->pool_id.to_string() +
                                             "); import it, or erase the first megabyte of the device");
    }
  } else if (there.error().code != ErrorCode::kNotFound) {
    co_return fail(there.error().code, "the device seems to hold a pool that cannot be opened (" +
                                           there.error().message + "); erase its first megabyte to give it up");
  } else {
    // Named, here and below: g++ 12 copies an aggregate that is made within a co_await expression byte by byte.
    blob::FormatOptions options{
        .id = spec.id, .name = spec.name, .cluster_bytes = spec.cluster_bytes, .created_ms = wall_clock_ms()};
    POLLUX_CO_TRY(co_await blob::Store::format(*device, impl_->home, std::move(options)));
  }
  auto pool = co_await impl_->adopt(spec.bdev, *device);
  if (!pool) co_return fail(std::move(pool.error()));
  co_return (*pool)->info();
}

reactor::Task<Result<PoolInfo>> VolumeService::import_pool(bdev::Spec spec) {
  co_await impl_->home.enter();
  auto guard = co_await impl_->pools_mutex.lock();
  for (const auto& [id, pool] : impl_->pools) {
    if (pool->spec == spec) co_return pool->info();
  }
  // Import never makes a file.
  if (spec.kind == bdev::Spec::Kind::kUring) spec.size_bytes = 0;
  auto device = co_await impl_->open_device(spec);
  if (!device) co_return fail(std::move(device.error()));
  auto pool = co_await impl_->adopt(spec, *device);
  if (!pool) co_return fail(std::move(pool.error()));
  co_return (*pool)->info();
}

reactor::Task<Status> VolumeService::Impl::close_pool(Pool& pool) {
  for (const auto& [number, volume] : pool.store->state().volumes()) {
    if (volume->opens != 0) {
      co_return fail(ErrorCode::kBusy, "volume " + volume->id.to_string() + " of pool '" + pool.name + "' is in use");
    }
  }
  pool.resize_token.reset();
  const Status closed = co_await pool.store->close();
  pools.erase(pool.id);
  co_return closed;
}

reactor::Task<Status> VolumeService::export_pool(std::string name) {
  co_await impl_->home.enter();
  auto guard = co_await impl_->pools_mutex.lock();
  auto pool = impl_->find_pool(name);
  if (!pool) co_return fail(std::move(pool.error()));
  co_return co_await impl_->close_pool(**pool);
}

reactor::Task<Result<std::vector<PoolInfo>>> VolumeService::list_pools() {
  co_await impl_->home.enter();
  std::vector<PoolInfo> infos;
  for (const auto& [id, pool] : impl_->pools) infos.push_back(pool->info());
  co_return infos;
}

reactor::Task<Result<PoolInfo>> VolumeService::describe_pool(std::string name) {
  co_await impl_->home.enter();
  auto pool = impl_->find_pool(name);
  if (!pool) co_return fail(std::move(pool.error()));
  co_return (*pool)->info();
}

reactor::Task<Status> VolumeService::close() {
  co_await impl_->home.enter();
  auto guard = co_await impl_->pools_mutex.lock();
  Status first;
  while (!impl_->pools.empty()) {
    Status closed = co_await impl_->close_pool(*impl_->pools.begin()->second);
    if (!closed && closed.error().code == ErrorCode::kBusy) co_return closed;
    if (!closed && first) first = std::move(closed);
  }
  co_return first;
}

// ---- Volumes

namespace {

bool same_volume(const Volume& volume, const VolumeSpec& spec) {
  return !volume.snapshot() && volume.name == spec.name && volume.size_bytes == spec.size_bytes &&
         volume.thick() == (spec.provisioning == Provisioning::kThick);
}

blob::CreateOptions create_options(const VolumeSpec& spec) {
  return {.id = spec.id,
          .name = spec.name,
          .size_bytes = spec.size_bytes,
          .thick = spec.provisioning == Provisioning::kThick,
          .created_ms = wall_clock_ms()};
}

Error taken(const Uuid& id) {
  return {ErrorCode::kExists, "volume " + id.to_string() + " exists already with other properties"};
}

}  // namespace

reactor::Task<Result<VolumeInfo>> VolumeService::create_volume(std::string pool_name, VolumeSpec spec) {
  co_await impl_->home.enter();
  auto pool = impl_->find_pool(pool_name);
  if (!pool) co_return fail(std::move(pool.error()));
  if (auto there = impl_->find_volume(spec.id)) {
    if (there->pool != *pool || !same_volume(*there->volume, spec)) co_return fail(taken(spec.id));
    // The first request may still be on its way to the device.
    POLLUX_CO_TRY(co_await (*pool)->store->journal().commit());
    co_return impl_->describe(spec.id);
  }
  blob::CreateOptions options = create_options(spec);
  auto made = co_await (*pool)->store->create(std::move(options));
  if (!made) co_return fail(std::move(made.error()));
  co_return impl_->describe(spec.id);
}

reactor::Task<Status> VolumeService::delete_volume(Uuid id) {
  co_await impl_->home.enter();
  auto place = impl_->find_volume(id);
  if (!place) co_return fail(std::move(place.error()));
  Pool& pool = *place->pool;
  POLLUX_CO_TRY(co_await pool.store->remove(id));
  pool.open.erase(id);
  co_return Status{};
}

reactor::Task<Result<VolumeInfo>> VolumeService::extend_volume(Uuid id, std::uint64_t size_bytes) {
  co_await impl_->home.enter();
  auto place = impl_->find_volume(id);
  if (!place) co_return fail(std::move(place.error()));
  Pool& pool = *place->pool;
  POLLUX_CO_TRY(co_await pool.store->resize(id, size_bytes));
  if (auto open = pool.opened(id)) open->resized();
  co_return impl_->describe(id);
}

reactor::Task<Result<VolumeInfo>> VolumeService::describe_volume(Uuid id) {
  co_await impl_->home.enter();
  co_return impl_->describe(id);
}

reactor::Task<Result<std::vector<VolumeInfo>>> VolumeService::list_volumes(std::string pool_name,
                                                                           std::optional<Uuid> after,
                                                                           std::size_t limit) {
  co_await impl_->home.enter();
  auto pool = impl_->find_pool(pool_name);
  if (!pool) co_return fail(std::move(pool.error()));
  std::map<Uuid, const Volume*> sorted;
  for (const auto& [number, volume] : (*pool)->store->state().volumes()) {
    if (!volume->deleting() && (!after || volume->id > *after)) sorted.emplace(volume->id, volume.get());
  }
  std::vector<VolumeInfo> infos;
  for (const auto& [id, volume] : sorted) {
    if (infos.size() == limit) break;
    infos.push_back((*pool)->info(*volume));
  }
  co_return infos;
}

reactor::Task<Result<VolumeInfo>> VolumeService::create_snapshot(Uuid volume, Uuid snapshot, std::string name) {
  co_await impl_->home.enter();
  auto place = impl_->find_volume(volume);
  if (!place) co_return fail(std::move(place.error()));
  blob::Store& store = *place->pool->store;
  if (auto there = impl_->find_volume(snapshot)) {
    if (!there->volume->snapshot() || there->volume->parent_id != volume || there->volume->name != name) {
      co_return fail(taken(snapshot));
    }
    POLLUX_CO_TRY(co_await store.journal().commit(blob::Journal::Data::kFlush));
    co_return impl_->describe(snapshot);
  }
  blob::CreateOptions options{.id = snapshot, .name = name, .snapshot = true, .created_ms = wall_clock_ms()};
  auto made = co_await store.fork(volume, std::move(options));
  if (!made) co_return fail(std::move(made.error()));
  co_return impl_->describe(snapshot);
}

reactor::Task<Result<VolumeInfo>> VolumeService::clone(Uuid snapshot, VolumeSpec spec) {
  co_await impl_->home.enter();
  auto place = impl_->find_volume(snapshot);
  if (!place) co_return fail(std::move(place.error()));
  blob::Store& store = *place->pool->store;
  if (spec.size_bytes == 0) spec.size_bytes = place->volume->size_bytes;
  if (auto there = impl_->find_volume(spec.id)) {
    if (!same_volume(*there->volume, spec) || there->volume->parent_id != snapshot) co_return fail(taken(spec.id));
    POLLUX_CO_TRY(co_await store.journal().commit(blob::Journal::Data::kFlush));
    co_return impl_->describe(spec.id);
  }
  blob::CreateOptions options = create_options(spec);
  auto made = co_await store.fork(snapshot, std::move(options));
  if (!made) co_return fail(std::move(made.error()));
  co_return impl_->describe(spec.id);
}

reactor::Task<Result<VolumeInfo>> VolumeService::revert(Uuid volume, Uuid snapshot) {
  co_await impl_->home.enter();
  auto place = impl_->find_volume(volume);
  if (!place) co_return fail(std::move(place.error()));
  POLLUX_CO_TRY(co_await place->pool->store->revert(volume, snapshot));
  co_return impl_->describe(volume);
}

reactor::Task<Result<JobInfo>> VolumeService::flatten(Uuid volume, Uuid) {
  co_await impl_->home.enter();
  auto place = impl_->find_volume(volume);
  if (!place) co_return fail(std::move(place.error()));
  co_return fail(ErrorCode::kUnsupported,
                 "flatten is not available; it is not needed to delete a snapshot that has clones");
}

reactor::Task<Result<VolumeInfo>> VolumeService::set_qos(Uuid volume, QosLimits limits) {
  co_await impl_->home.enter();
  auto place = impl_->find_volume(volume);
  if (!place) co_return fail(std::move(place.error()));
  POLLUX_CO_TRY(co_await place->pool->store->set_qos(volume, to_store(limits)));
  co_return impl_->describe(volume);
}

reactor::Task<Result<VolumeStats>> VolumeService::stats(Uuid volume) {
  co_await impl_->home.enter();
  auto place = impl_->find_volume(volume);
  if (!place) co_return fail(std::move(place.error()));
  VolumeStats stats;
  if (auto open = place->pool->opened(volume)) open->add_stats(stats);
  co_return stats;
}

reactor::Task<Result<std::vector<JobInfo>>> VolumeService::list_jobs() {
  co_await impl_->home.enter();
  std::vector<JobInfo> jobs;
  for (const auto& [id, pool] : impl_->pools) {
    for (const blob::Progress& each : pool->store->progress()) {
      // A delete runs once for a volume, so the volume's id names the job too.
      jobs.push_back({.id = each.volume_id,
                      .kind = each.kind,
                      .volume_id = each.volume_id,
                      .state = JobState::kRunning,
                      .done = each.done,
                      .total = each.total,
                      .error = {}});
    }
  }
  co_return jobs;
}

reactor::Task<Status> VolumeService::cancel_job(Uuid job) {
  auto jobs = co_await list_jobs();
  if (!jobs) co_return fail(std::move(jobs.error()));
  for (const JobInfo& each : *jobs) {
    if (each.id == job) co_return fail(ErrorCode::kUnsupported, "a delete cannot be cancelled");
  }
  co_return fail(ErrorCode::kNotFound, "job " + job.to_string() + " is not running");
}

reactor::Task<Result<std::shared_ptr<bdev::Bdev>>> VolumeService::open(Uuid id) {
  co_await impl_->home.enter();
  auto place = impl_->find_volume(id);
  if (!place) co_return fail(std::move(place.error()));
  Pool& pool = *place->pool;
  if (auto open = pool.opened(id)) co_return open;
  auto volume = co_await pool.store->view(id);
  if (!volume) co_return fail(std::move(volume.error()));
  // Somebody else may have opened it while this waited for the map.
  if (auto open = pool.opened(id)) {
    pool.store->unview(**volume);
    co_return open;
  }
  auto device = std::make_shared<VolumeBdev>(*pool.store, **volume);
  pool.open[id] = device;
  co_return device;
}

}  // namespace pollux::volume
