// The calls on volumes, snapshots, jobs, and opening a volume for I/O. Pools are in volume_service.cpp.

#include <algorithm>

#include "base/clock.h"
#include "volume/volume_service_impl.h"

namespace pollux::volume {

namespace {

// Of one turn of the reactor: some 20 us.
constexpr std::size_t kStatsPerTurn = 32;

bool same_volume(const Pool& pool, const Volume& volume, const VolumeSpec& spec) {
  return !volume.snapshot() && volume.name == spec.name && volume.size_bytes == spec.size_bytes &&
         volume.thick() == (spec.provisioning == Provisioning::kThick) &&
         (spec.block_bytes == 0 || spec.block_bytes == volume.block_bytes(pool.device->block_bytes()));
}

blob::CreateOptions create_options(const VolumeSpec& spec) {
  return {.id = spec.id,
          .name = spec.name,
          .size_bytes = spec.size_bytes,
          .thick = spec.provisioning == Provisioning::kThick,
          .created_ms = wall_clock_ms(),
          .block_bytes = spec.block_bytes == 0 ? kDefaultBlockBytes : spec.block_bytes};
}

JobInfo job_info(const blob::Job& job) {
  return {.id = job.id,
          .kind = job.kind,
          .volume_id = job.volume_id,
          .state = static_cast<JobState>(job.state),
          .done = job.done,
          .total = job.total,
          .error = job.error};
}

Error taken(const Uuid& id) {
  return {ErrorCode::kExists, "volume " + id.to_string() + " exists already with other properties"};
}

}  // namespace

reactor::Task<Result<VolumeInfo>> VolumeService::create_volume(std::string pool_name, VolumeSpec spec) {
  co_await impl_->home.enter();
  auto entered = impl_->enter_pool(pool_name);
  if (!entered) co_return fail(std::move(entered.error()));
  Pool& pool = *entered->pool;
  if (auto there = impl_->find_volume(spec.id)) {
    if (there->pool != &pool || !same_volume(pool, *there->volume, spec)) co_return fail(taken(spec.id));
    // The first request may still be on its way to the device.
    POLLUX_CO_TRY(co_await pool.store->commit(blob::Journal::Data::kAsItIs));
    co_return impl_->describe(spec.id);
  }
  auto new_id = impl_->take_new_id(spec.id);
  if (!new_id) co_return fail(std::move(new_id.error()));
  blob::CreateOptions options = create_options(spec);
  auto made = co_await pool.store->create(std::move(options));
  if (!made) co_return fail(std::move(made.error()));
  co_return impl_->describe(spec.id);
}

reactor::Task<Status> VolumeService::delete_volume(Uuid id) {
  co_await impl_->home.enter();
  auto place = impl_->enter_volume(id);
  if (!place) co_return fail(std::move(place.error()));
  Pool& pool = *place->pool;
  POLLUX_CO_TRY(co_await pool.store->remove(id));
  pool.open.erase(id);
  co_return Status{};
}

reactor::Task<Result<VolumeInfo>> VolumeService::extend_volume(Uuid id, std::uint64_t size_bytes) {
  co_await impl_->home.enter();
  auto place = impl_->enter_volume(id);
  if (!place) co_return fail(std::move(place.error()));
  Pool& pool = *place->pool;
  POLLUX_CO_TRY(co_await pool.store->resize(id, size_bytes));
  if (auto open = pool.opened(id); open.top) open.volume->resized();
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
  auto place = impl_->enter_volume(volume);
  if (!place) co_return fail(std::move(place.error()));
  blob::Store& store = *place->pool->store;
  if (auto there = impl_->find_volume(snapshot)) {
    if (!there->volume->snapshot() || there->volume->parent_id != volume || there->volume->name != name) {
      co_return fail(taken(snapshot));
    }
    POLLUX_CO_TRY(co_await store.commit(blob::Journal::Data::kFlush));
    co_return impl_->describe(snapshot);
  }
  auto new_id = impl_->take_new_id(snapshot);
  if (!new_id) co_return fail(std::move(new_id.error()));
  blob::CreateOptions options{.id = snapshot, .name = name, .snapshot = true, .created_ms = wall_clock_ms()};
  auto made = co_await store.fork(volume, std::move(options));
  if (!made) co_return fail(std::move(made.error()));
  co_return impl_->describe(snapshot);
}

reactor::Task<Result<VolumeInfo>> VolumeService::clone(Uuid snapshot, VolumeSpec spec) {
  co_await impl_->home.enter();
  auto place = impl_->enter_volume(snapshot);
  if (!place) co_return fail(std::move(place.error()));
  blob::Store& store = *place->pool->store;
  if (spec.size_bytes == 0) spec.size_bytes = place->volume->size_bytes;
  if (auto there = impl_->find_volume(spec.id)) {
    if (!same_volume(*there->pool, *there->volume, spec) || there->volume->parent_id != snapshot) {
      co_return fail(taken(spec.id));
    }
    POLLUX_CO_TRY(co_await store.commit(blob::Journal::Data::kFlush));
    co_return impl_->describe(spec.id);
  }
  auto new_id = impl_->take_new_id(spec.id);
  if (!new_id) co_return fail(std::move(new_id.error()));
  const std::uint32_t block_bytes = place->volume->block_bytes(place->pool->device->block_bytes());
  if (spec.block_bytes != 0 && spec.block_bytes != block_bytes) {
    co_return fail(ErrorCode::kInvalid, "a clone has the blocks of its source, which are of " +
                                            std::to_string(block_bytes) + " bytes");
  }
  blob::CreateOptions options = create_options(spec);
  auto made = co_await store.fork(snapshot, std::move(options));
  if (!made) co_return fail(std::move(made.error()));
  co_return impl_->describe(spec.id);
}

reactor::Task<Result<VolumeInfo>> VolumeService::revert(Uuid volume, Uuid snapshot) {
  co_await impl_->home.enter();
  auto place = impl_->enter_volume(volume);
  if (!place) co_return fail(std::move(place.error()));
  POLLUX_CO_TRY(co_await place->pool->store->revert(volume, snapshot));
  co_return impl_->describe(volume);
}

reactor::Task<Result<VolumeInfo>> VolumeService::set_qos(Uuid volume, QosLimits limits) {
  co_await impl_->home.enter();
  auto place = impl_->enter_volume(volume);
  if (!place) co_return fail(std::move(place.error()));
  Pool& pool = *place->pool;
  POLLUX_CO_TRY(co_await pool.store->set_qos(volume, to_store(limits), bursts_to_store(limits)));
  if (auto open = pool.opened(volume); open.top) open.top->limiter().set(limits);
  co_return impl_->describe(volume);
}

reactor::Task<Result<VolumeStats>> VolumeService::stats(Uuid volume) {
  co_await impl_->home.enter();
  auto place = impl_->find_volume(volume);
  if (!place) co_return fail(std::move(place.error()));
  VolumeStats stats;
  if (auto open = place->pool->opened(volume); open.top) open.volume->add_stats(stats);
  co_return stats;
}

// Pools come and go, and volumes in them, while this pauses between turns: it goes on behind the last it has seen.
reactor::Task<Result<VolumeService::AllStats>> VolumeService::all_stats(std::size_t limit) {
  co_await impl_->home.enter();
  AllStats all;
  std::size_t volumes_now = 0;
  for (const auto& [id, pool] : impl_->pools) volumes_now += pool->store->state().volumes().size();
  all.volumes.reserve(std::min(volumes_now, limit));
  std::optional<Uuid> last_pool;
  const auto next_pool = [&] {
    return last_pool ? impl_->pools.upper_bound(*last_pool) : impl_->pools.begin();
  };
  for (auto at = next_pool(); at != impl_->pools.end(); at = next_pool()) {
    last_pool = at->first;
    blob::VolumeNo last_volume = 0;
    while (at != impl_->pools.end()) {
      const Pool& pool = *at->second;
      const auto& volumes = pool.store->state().volumes();
      std::size_t turn = 0;
      for (auto each = volumes.upper_bound(last_volume); each != volumes.end() && turn < kStatsPerTurn; ++each) {
        const Volume& volume = *each->second;
        last_volume = each->first;
        ++turn;
        const auto open = pool.opened(volume.id);
        // Snapshots are read through their clones; one that nobody opened has nothing to show.
        if (volume.deleting() || (volume.snapshot() && !open.top)) continue;
        if (all.volumes.size() == limit) {
          all.complete = false;
          co_return all;
        }
        NamedStats& named = all.volumes.emplace_back(NamedStats{.pool = pool.name, .volume = volume.id, .stats = {}});
        if (open.top) open.volume->add_stats(named.stats);
      }
      if (turn < kStatsPerTurn) break;
      co_await impl_->home.yield();
      at = impl_->pools.find(*last_pool);
    }
  }
  co_return all;
}

// ---- Jobs

reactor::Task<Result<JobInfo>> VolumeService::flatten(Uuid volume, Uuid job) {
  co_await impl_->home.enter();
  auto place = impl_->enter_volume(volume);
  if (!place) co_return fail(std::move(place.error()));
  const auto started = co_await place->pool->store->flatten(volume, job);
  if (!started) co_return fail(started.error());
  co_return job_info(*started);
}

reactor::Task<Result<JobInfo>> VolumeService::trim_pool(std::string name, Uuid job) {
  co_await impl_->home.enter();
  auto entered = impl_->enter_pool(name);
  if (!entered) co_return fail(std::move(entered.error()));
  const auto started = co_await entered->pool->store->trim(job);
  if (!started) co_return fail(started.error());
  co_return job_info(*started);
}

reactor::Task<Result<std::vector<JobInfo>>> VolumeService::list_jobs() {
  co_await impl_->home.enter();
  std::vector<JobInfo> jobs;
  for (const auto& [id, pool] : impl_->pools) {
    for (const blob::Job& each : pool->store->jobs()) jobs.push_back(job_info(each));
  }
  co_return jobs;
}

reactor::Task<Status> VolumeService::cancel_job(Uuid job) {
  co_await impl_->home.enter();
  for (const auto& [id, pool] : impl_->pools) {
    Status cancelled = pool->store->cancel(job);
    if (cancelled || cancelled.error().code != ErrorCode::kNotFound) co_return cancelled;
  }
  co_return fail(ErrorCode::kNotFound, "job " + job.to_string() + " does not exist");
}

// ---- I/O

reactor::Task<Result<std::shared_ptr<bdev::Bdev>>> VolumeService::open(Uuid id, blob::LossUntold loss) {
  co_await impl_->home.enter();
  auto place = impl_->enter_volume(id);
  if (!place) co_return fail(std::move(place.error()));
  Pool& pool = *place->pool;
  if (auto open = pool.opened(id); open.top) {
    if (loss == blob::LossUntold::kYes) pool.store->owe(*place->volume);
    co_return std::move(open.top);
  }
  auto volume = co_await pool.store->view(id);
  if (!volume) co_return fail(std::move(volume.error()));
  if (loss == blob::LossUntold::kYes) pool.store->owe(**volume);
  // Somebody else may have opened it while this waited for the map.
  if (auto open = pool.opened(id); open.top) {
    pool.store->unview(**volume);
    co_return std::move(open.top);
  }
  const auto device = std::make_shared<VolumeBdev>(*pool.store, **volume);
  auto top = std::make_shared<Limits>(device);
  top->limiter().set(from_store((*volume)->qos, (*volume)->bursts));
  pool.open[id] = {top, device.get()};
  co_return top;
}

}  // namespace pollux::volume
