// Pools: making, opening, growing, closing. The calls on volumes are in volume_calls.cpp.

#include "base/clock.h"
#include "base/log.h"
#include "blob/checker.h"
#include "blob/parallel.h"
#include "volume/volume_service_impl.h"

namespace pollux::volume {

namespace {

constexpr std::uint64_t kGrowthCheckUs = 1'000'000;
// How long to wait for a device that somebody else holds; for one whose pool belongs here, that is a predecessor.
constexpr std::uint64_t kPatienceNs = 2'000'000'000;
constexpr std::uint64_t kPatienceForOursNs = 10'000'000'000;
// Each may take memory in proportion to its pool while it is loaded.
constexpr std::size_t kImportsAtOnce = 32;

Status check_identity(const Uuid& found, const std::string& name, const std::string& path, const Uuid& expected) {
  if (expected.is_nil() || found == expected) return {};
  return fail(ErrorCode::kCorrupt, path + " holds the pool " + name + " (" + found.to_string() + ") instead of " +
                                       expected.to_string() + "; nothing was changed");
}

}  // namespace

VolumeService::VolumeService(reactor::ReactorGroup& reactors, blob::Owner::Identity identity,
                             std::shared_ptr<blob::LossLog> losses, blob::JournalQueue::Source queues)
    : impl_(std::make_unique<Impl>(reactors, std::move(identity), std::move(losses), std::move(queues))) {}
VolumeService::~VolumeService() = default;

// ---- Pools

// The kernel takes down the rings of a process that was killed in the background, and holds its lock on the device
// until then: tens of milliseconds, or as long as a slow disk takes, in which the next service must not give up.
reactor::Task<Result<std::shared_ptr<bdev::Bdev>>> VolumeService::Impl::open_device(bdev::Spec spec,
                                                                                    std::uint64_t patience_ns) {
  constexpr std::uint64_t kPauseUs = 10'000;
  constexpr std::uint64_t kSayNs = 1'000'000'000;
  const std::uint64_t begin_ns = monotonic_ns();
  std::uint64_t said_ns = begin_ns;
  while (true) {
    auto device = co_await blocking.run(home, [&spec] { return bdev::open(spec); });
    const std::uint64_t now_ns = monotonic_ns();
    if (device || device.error().code != ErrorCode::kBusy || now_ns - begin_ns >= patience_ns || gate.closed()) {
      co_return device;
    }
    if (now_ns - said_ns >= kSayNs) {
      said_ns = now_ns;
      log::warn("waiting for {}, for {} s at most: {}", spec.path, patience_ns / 1'000'000'000, device.error().message);
    }
    co_await home.sleep_us(kPauseUs);
  }
}

reactor::Task<Result<blob::Superblock>> VolumeService::Impl::probe(std::shared_ptr<bdev::Bdev> device) {
  auto super = co_await blob::Store::probe(std::move(device), background);
  co_await home.enter();
  co_return super;
}

reactor::Task<Status> VolumeService::Impl::format(std::shared_ptr<bdev::Bdev> device, blob::FormatOptions options) {
  Status done = co_await blob::Store::format(std::move(device), background, std::move(options));
  co_await home.enter();
  co_return done;
}

// Loads the pool on the device and takes it in. kExists when its name or id is taken.
reactor::Task<Result<Pool*>> VolumeService::Impl::adopt(bdev::Spec spec, std::shared_ptr<bdev::Bdev> device,
                                                        blob::Owner::Force force,
                                                        const std::vector<Uuid>& attached) {
  const auto super = co_await probe(device);
  if (!super) co_return fail(super.error());
  POLLUX_CO_TRY(check_not_open(*super));
  POLLUX_CO_TRY(co_await check_not_changed(spec, device, *super, attached, force));
  auto owner = co_await claim(spec, *device, *super, force);
  if (!owner) co_return fail(std::move(owner.error()));
  // Named, here and below: g++ 12 copies an aggregate that is made within a co_await expression byte by byte.
  blob::OpenOptions options{.discard_pace = {}, .loads_on = &background, .losses = losses, .queue = queues};
  if (spec.kind == bdev::Spec::Kind::kRam) options.queue = blob::JournalQueue::in_process();
  auto store = co_await blob::Store::open(device, home, options);
  if (!store) {
    if (const auto released = co_await release(*device, std::move(*owner)); !released) {
      log::warn("{}", released.error().message);
    }
    co_return fail(std::move(store.error()));
  }
  const std::string name(super->name, super->name_bytes);
  const Uuid id = super->pool_id;
  // A device that grew while the pool was closed.
  Status ready = co_await (*store)->grow();
  // Another that is opened at the same time may have taken the name, or the id.
  if (ready) ready = check_not_open(*super);
  if (!ready) {
    // Of the errors the first says why.
    static_cast<void>(co_await (*store)->close());
    static_cast<void>(co_await release(*device, std::move(*owner)));
    co_await blocking.run(home, [&store] {
      store->reset();
      return true;
    });
    co_return fail(std::move(ready.error()));
  }
  auto pool = std::make_unique<Pool>(home);
  pool->id = id;
  pool->name = name;
  pool->spec = std::move(spec);
  pool->device = std::move(device);
  pool->store = std::move(*store);
  pool->owner = std::move(*owner);
  Pool& taken = *pools.emplace(id, std::move(pool)).first->second;
  follow_growth(taken);
  follow_owner(taken);
  if (!growth.running()) growth.start(home, kGrowthCheckUs);
  log::info("pool {} ({}) is open: {} volumes, {} journal records replayed", taken.name, id.to_string(),
            taken.store->state().volumes().size(), taken.store->replayed_records());
  co_return &taken;
}

void VolumeService::Impl::follow_growth(Pool& pool) {
  pool.resize_token = pool.device->on_resize([this, id = pool.id](std::uint64_t) {
    home.post([this, id] {
      auto found = pools.find(id);
      if (found == pools.end()) return;
      auto inside = found->second->enter();
      // One that closes finds the new size when it opens again.
      if (!inside) return;
      reactor::spawn(found->second->store->grow(), [id, holder = std::move(*inside)](Status grown) {
        if (!grown)
          log::error("pool {} does not follow its device's growth: {}", id.to_string(), grown.error().message);
      });
    });
  });
}

// A device does not tell that it grew: a file or a logical volume under a running service has to be looked at.
void VolumeService::Impl::look_for_growth() {
  reactor::spawn(refresh_sizes());
}

reactor::Task<void> VolumeService::Impl::refresh_sizes() {
  // Closing the service waits for this.
  const auto inside = enter();
  if (!inside) co_return;
  std::vector<std::shared_ptr<bdev::Bdev>> devices;
  for (const auto& [id, pool] : pools) devices.push_back(pool->device);
  co_await blocking.run(home, [&devices] {
    for (const auto& device : devices) device->refresh_size();
    // Of a pool that was closed meanwhile this may be the last of its device.
    devices.clear();
    return true;
  });
  if (!pools.empty() && !growth.running()) growth.start(home, kGrowthCheckUs);
}

reactor::Task<Result<PoolInfo>> VolumeService::create_pool(PoolSpec spec) {
  co_await impl_->home.enter();
  auto inside = impl_->enter();
  if (!inside) co_return fail(std::move(inside.error()));
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
  auto device = co_await impl_->open_device(spec.bdev, kPatienceNs);
  if (!device) co_return fail(std::move(device.error()));
  auto there = co_await impl_->probe(*device);
  if (there) {
    const std::string name(there->name, there->name_bytes);
    if (there->pool_id != spec.id || name != spec.name) {
      co_return fail(ErrorCode::kExists, "the device holds the pool '" + name + "' (" + there->pool_id.to_string() +
                                             "); import it, or erase the first megabyte of the device");
    }
  } else if (there.error().code != ErrorCode::kNotFound) {
    co_return fail(there.error().code, "the device seems to hold a pool that cannot be opened (" +
                                           there.error().message + "); erase its first megabyte to give it up");
  } else if (!spec.may_format) {
    co_return fail(std::move(there.error()));
  } else {
    blob::FormatOptions options{
        .id = spec.id, .name = spec.name, .cluster_bytes = spec.cluster_bytes, .created_ms = wall_clock_ms(),
        .discard = spec.discard};
    POLLUX_CO_TRY(co_await impl_->format(*device, std::move(options)));
  }
  auto pool = co_await impl_->adopt(spec.bdev, *device, blob::Owner::Force::kNo, spec.attached);
  if (!pool) co_return fail(std::move(pool.error()));
  co_return (*pool)->info();
}

reactor::Task<Result<PoolInfo>> VolumeService::import_pool(bdev::Spec spec, Uuid expected, bool force,
                                                           std::vector<Uuid> attached) {
  co_await impl_->home.enter();
  auto inside = impl_->enter();
  if (!inside) co_return fail(std::move(inside.error()));
  auto guard = co_await impl_->pools_mutex.lock();
  const auto forced = force ? blob::Owner::Force::kYes : blob::Owner::Force::kNo;
  co_return co_await impl_->import_one(std::move(spec), expected, forced, attached);
}

reactor::Task<Result<std::vector<Result<PoolInfo>>>> VolumeService::import_pools(std::vector<ToImport> wanted,
                                                                                 std::vector<Uuid> attached) {
  co_await impl_->home.enter();
  auto inside = impl_->enter();
  if (!inside) co_return fail(std::move(inside.error()));
  auto guard = co_await impl_->pools_mutex.lock();
  std::vector<Result<PoolInfo>> answers(wanted.size(), Result<PoolInfo>(PoolInfo{}));
  const auto import = [&](std::size_t i) -> reactor::Task<Status> {
    answers[i] = co_await impl_->import_one(wanted[i].bdev, wanted[i].expected, blob::Owner::Force::kNo, attached);
    // One that does not open keeps none of the others.
    co_return Status{};
  };
  POLLUX_CO_TRY(co_await blob::parallel(impl_->home, wanted.size(), kImportsAtOnce, import));
  co_return answers;
}

reactor::Task<Result<PoolInfo>> VolumeService::Impl::import_one(bdev::Spec spec, Uuid expected,
                                                                blob::Owner::Force force,
                                                                const std::vector<Uuid>& attached) {
  for (const auto& [id, pool] : pools) {
    // A file that a pool was made in has a size in its specification, which an import does without.
    const bool same_file = spec.kind == bdev::Spec::Kind::kUring && pool->spec.path == spec.path;
    if (pool->spec == spec || (pool->spec.kind == spec.kind && same_file)) {
      POLLUX_CO_TRY(check_identity(pool->id, pool->name, spec.path, expected));
      if (!pool->store->fenced()) co_return pool->info();
      POLLUX_CO_TRY(co_await leave_lost(*pool, force));
      break;
    }
  }
  // Import never makes a file.
  if (spec.kind == bdev::Spec::Kind::kUring) spec.size_bytes = 0;
  auto device = co_await open_device(spec, expected.is_nil() ? kPatienceNs : kPatienceForOursNs);
  if (!device) co_return fail(std::move(device.error()));
  if (!expected.is_nil()) {
    // Opening writes a checkpoint: not into somebody else's pool.
    const auto super = co_await probe(*device);
    if (!super) co_return fail(super.error());
    const std::string name(super->name, super->name_bytes);
    POLLUX_CO_TRY(check_identity(super->pool_id, name, spec.path, expected));
  }
  auto pool = co_await adopt(spec, *device, force, attached);
  if (!pool) co_return fail(std::move(pool.error()));
  co_return (*pool)->info();
}

// kBusy: it stays as it is. Otherwise it is closed, and out of the list before that begins, whatever this answers.
reactor::Task<Status> VolumeService::Impl::close_pool(Pool& pool) {
  POLLUX_CO_TRY(pool.check_unused());
  co_await pool.gate.close();
  // Of the calls that were inside one may have opened a volume.
  if (auto unused = pool.check_unused(); !unused) {
    pool.gate.open();
    co_return unused;
  }
  pool.resize_token.reset();
  std::unique_ptr<Pool> leaving = std::move(pools.extract(pool.id).mapped());
  if (pools.empty()) growth.cancel();
  if (leaving->owner) co_await leaving->owner->stop();
  Status closed = co_await leaving->store->close();
  Status released = co_await release(*leaving->device, std::move(leaving->owner));
  // Memory in proportion to the pool, and a file.
  co_await blocking.run(home, [&leaving] {
    leaving.reset();
    return true;
  });
  co_return closed ? released : closed;
}

reactor::Task<Status> VolumeService::export_pool(std::string name) {
  co_await impl_->home.enter();
  auto inside = impl_->enter();
  if (!inside) co_return fail(std::move(inside.error()));
  auto guard = co_await impl_->pools_mutex.lock();
  auto pool = impl_->find_pool(name);
  if (!pool) co_return fail(std::move(pool.error()));
  co_return co_await impl_->close_pool(**pool);
}

reactor::Task<Result<PoolCheck>> VolumeService::check_pool(bdev::Spec spec, Uuid expected, bool repair,
                                                           std::shared_ptr<blob::CheckProgress> progress) {
  co_await impl_->home.enter();
  auto inside = impl_->enter();
  if (!inside) co_return fail(std::move(inside.error()));
  for (const auto& [id, pool] : impl_->pools) {
    if (pool->spec.kind == spec.kind && pool->spec.path == spec.path) {
      co_return fail(ErrorCode::kBusy, "pool '" + pool->name + "' on " + spec.path + " is open; export it first");
    }
  }
  // A check never makes a file.
  spec.size_bytes = 0;
  auto device = co_await impl_->open_device(spec, kPatienceNs);
  if (!device) co_return fail(std::move(device.error()));
  const auto super = co_await impl_->probe(*device);
  if (!super) co_return fail(super.error());
  const std::string name(super->name, super->name_bytes);
  POLLUX_CO_TRY(check_identity(super->pool_id, name, spec.path, expected));
  if (impl_->pools.contains(super->pool_id)) {
    co_return fail(ErrorCode::kBusy, "pool '" + name + "' on " + spec.path + " is open here; export it first");
  }
  auto report = co_await impl_->check(*device, *super, repair ? blob::Repair::kYes : blob::Repair::kNo,
                                      std::move(progress));
  if (!report) co_return fail(std::move(report.error()));
  PoolCheck check;
  check.id = super->pool_id;
  check.name = name;
  check.volumes = report->volumes;
  check.metadata_pages = report->metadata_pages;
  check.data_clusters = report->data_clusters;
  check.replayed_records = report->replayed_records;
  check.lost = report->lost;
  check.doubly_used = report->doubly_used;
  check.leaked = report->leaked;
  check.damaged = report->damaged;
  check.repaired = report->repaired;
  check.findings = std::move(report->findings);
  co_return check;
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

reactor::Task<Result<PoolInfo>> VolumeService::set_pool_discard(std::string name, bool discard) {
  co_await impl_->home.enter();
  auto entered = impl_->enter_pool(name);
  if (!entered) co_return fail(std::move(entered.error()));
  POLLUX_CO_TRY(co_await entered->pool->store->set_discard(discard));
  co_return entered->pool->info();
}

reactor::Task<Status> VolumeService::close() {
  co_await impl_->home.enter();
  co_await impl_->gate.close();
  impl_->growth.cancel();
  Status first;
  while (!impl_->pools.empty()) {
    Status closed = co_await impl_->close_pool(*impl_->pools.begin()->second);
    if (!closed && closed.error().code == ErrorCode::kBusy) {
      impl_->gate.open();
      co_return closed;
    }
    if (!closed && first) first = std::move(closed);
  }
  co_return first;
}

}  // namespace pollux::volume
