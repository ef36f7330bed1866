// Whose a pool is while it is open here: see blob/owner.h. The rest of opening and closing is in volume_service.cpp.

#include "base/log.h"
#include "volume/volume_service_impl.h"

namespace pollux::volume {

Status VolumeService::Impl::check_not_open(const blob::Superblock& super) const {
  const std::string name(super.name, super.name_bytes);
  for (const auto& [id, pool] : pools) {
    if (id != super.pool_id && pool->name != name) continue;
    return fail(ErrorCode::kExists, "a pool with the name '" + name + "' or the id " + super.pool_id.to_string() +
                                        " is open already, on " + pool->device->name());
  }
  return {};
}

reactor::Task<Result<std::unique_ptr<blob::Owner>>> VolumeService::Impl::claim(const bdev::Spec& spec,
                                                                               bdev::Bdev& device,
                                                                               const blob::Superblock& super,
                                                                               blob::Owner::Force force) {
  if (spec.kind == bdev::Spec::Kind::kRam) co_return std::unique_ptr<blob::Owner>();
  auto channel = device.open_channel(home);
  if (!channel) co_return fail(std::move(channel.error()));
  auto owner = co_await blob::Owner::claim(device, **channel, home, super, identity, force);
  // This may run in a completion of the channel, which ends with this scope.
  co_await home.yield();
  co_return owner;
}

reactor::Task<Status> VolumeService::Impl::release(bdev::Bdev& device, std::unique_ptr<blob::Owner> owner) {
  if (!owner || owner->lost()) co_return Status{};
  auto channel = device.open_channel(home);
  if (!channel) co_return fail(std::move(channel.error()));
  Status released = co_await owner->release(**channel);
  co_await home.yield();
  co_return released;
}

void VolumeService::Impl::follow_owner(Pool& pool) {
  if (!pool.owner) return;
  pool.owner->start(pool.store->device(), [this, id = pool.id](const std::string& who) {
    const auto found = pools.find(id);
    if (found == pools.end()) return;
    found->second->device->stop_writing();
    found->second->store->fence(who);
    log::critical("pool {} on {} belongs to {} now: nothing is written to it from here any more; export it here, or "
                  "import it again when it is free",
                  found->second->name, found->second->device->name(), who);
  });
}

// For good: what the pool holds by now, its guests here have not seen, so it is not opened under them.
reactor::Task<Status> VolumeService::Impl::leave_lost(Pool& pool, blob::Owner::Force force) {
  if (const auto unused = pool.check_unused(); !unused) {
    co_return fail(ErrorCode::kBusy, unused.error().message + ", and the pool was lost to another owner: detach its "
                                                              "volumes and close their data sockets, then import it");
  }
  if (force == blob::Owner::Force::kNo) {
    const auto inside = pool.enter();
    if (!inside) co_return fail(inside.error());
    // Until it is known to be free it stays listed as lost.
    Status vacant = co_await blob::Owner::look(*pool.device, pool.store->device(), home, pool.store->super(), identity);
    co_await home.yield();
    if (!vacant) co_return fail(std::move(vacant.error()));
  }
  co_return co_await close_pool(pool);
}

reactor::Task<Result<blob::CheckReport>> VolumeService::Impl::check(std::shared_ptr<bdev::Bdev> device,
                                                                    const blob::Superblock& super, blob::Repair repair,
                                                                    std::shared_ptr<blob::CheckProgress> progress) {
  auto channel = device->open_channel(home);
  if (!channel) co_return fail(std::move(channel.error()));
  if (repair == blob::Repair::kNo) {
    Status vacant = co_await blob::Owner::look(*device, **channel, home, super, identity);
    co_await home.yield();
    if (!vacant) co_return fail(std::move(vacant.error()));
    auto report = co_await blob::check_pool(std::move(device), background, repair, std::move(progress));
    co_await home.enter();
    co_return report;
  }
  auto owner =
      co_await blob::Owner::claim(*device, **channel, home, super, identity, blob::Owner::Force::kNo);
  if (!owner) {
    co_await home.yield();
    co_return fail(std::move(owner.error()));
  }
  (*owner)->start(**channel, [device](const std::string& who) {
    device->stop_writing();
    log::critical("{} was taken by {} while it was repaired", device->name(), who);
  });
  auto report = co_await blob::check_pool(device, background, repair, std::move(progress));
  co_await home.enter();
  co_await (*owner)->stop();
  const Status released = co_await (*owner)->release(**channel);
  co_await home.yield();
  if (report && !released) co_return fail(released.error());
  co_return report;
}

}  // namespace pollux::volume
