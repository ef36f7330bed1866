// Whose a pool is while it is open here: see blob/owner.h. The rest of opening and closing is in volume_service.cpp.

#include <algorithm>

#include "base/log.h"
#include "blob/recovery.h"
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
  auto channel = co_await device.open_channel(home);
  if (!channel) co_return fail(std::move(channel.error()));
  auto owner = co_await blob::Owner::claim(device, **channel, home, super, identity, force);
  // This may run in a completion of the channel, which ends with this scope.
  co_await home.yield();
  co_return owner;
}

// Of a service's guests some outlive it. What they have read, and have not written yet, is of the pool as it was when it
// was open here; so a service that comes back does not give them the pool that another has used since. The record on the
// device tells, however this service ended. It is looked at before this service's own is written over it: a crash in
// between would forget.
reactor::Task<Status> VolumeService::Impl::check_not_changed(const bdev::Spec& spec,
                                                             std::shared_ptr<bdev::Bdev> device,
                                                             const blob::Superblock& super,
                                                             const std::vector<Uuid>& attached,
                                                             blob::Owner::Force force) {
  // A service without a name is another at each start, and has no guests who outlive it.
  if (spec.kind == bdev::Spec::Kind::kRam || attached.empty() || identity.service.is_nil()) co_return Status{};
  auto channel = co_await device->open_channel(home);
  if (!channel) co_return fail(std::move(channel.error()));
  auto last = co_await blob::Owner::last_user(**channel, home, super);
  // While another has it open it cannot be read.
  if (last && !last->is_nil() && *last != identity.service && force == blob::Owner::Force::kNo) {
    if (auto vacant = co_await blob::Owner::look(*device, **channel, home, super, identity); !vacant) {
      last = fail(std::move(vacant.error()));
    }
  }
  co_await home.yield();
  channel->reset();
  if (!last) co_return fail(std::move(last.error()));
  if (last->is_nil() || *last == identity.service) co_return Status{};
  const auto found = co_await held(device, super, attached);
  if (!found) co_return fail(found.error());
  if (found->empty()) co_return Status{};
  std::string names;
  for (const Uuid& id : *found) names += (names.empty() ? "" : ", ") + id.to_string();
  co_return fail(ErrorCode::kBusy, "pool '" + std::string(super.name, super.name_bytes) + "' on " + device->name() +
                                       " was used by another service, " + last->to_string() +
                                       ", while guests here were attached to volumes of it: " + names +
                                       ". Stop those guests and detach the volumes, then import the pool");
}

// Those of the wanted volumes that the pool has, without writing to it.
reactor::Task<Result<std::vector<Uuid>>> VolumeService::Impl::held(std::shared_ptr<bdev::Bdev> device,
                                                                   const blob::Superblock& super,
                                                                   const std::vector<Uuid>& wanted) {
  co_await background.enter();
  std::vector<Uuid> found;
  Status read;
  {
    auto channel = co_await device->open_channel(background);
    if (channel) {
      const auto there = co_await blob::recover(**channel, background, super, blob::Purpose::kCheck);
      if (there) {
        std::copy_if(wanted.begin(), wanted.end(), std::back_inserter(found),
                     [&there](const Uuid& id) { return there->state->find(id) != nullptr; });
      } else {
        read = fail(there.error());
      }
      // This may run in a completion of the channel, which ends with this scope.
      co_await background.yield();
    } else {
      read = fail(std::move(channel.error()));
    }
  }
  co_await home.enter();
  if (!read) co_return fail(std::move(read.error()));
  co_return found;
}

reactor::Task<Status> VolumeService::Impl::release(bdev::Bdev& device, std::unique_ptr<blob::Owner> owner) {
  if (!owner || owner->lost()) co_return Status{};
  auto channel = co_await device.open_channel(home);
  if (!channel) co_return fail(std::move(channel.error()));
  Status released = co_await owner->release(**channel);
  co_await home.yield();
  co_return released;
}

void VolumeService::Impl::follow_owner(Pool& pool) {
  if (!pool.owner) return;
  pool.owner->start(pool.store->metadata(), [this, id = pool.id](const std::string& who) {
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
    Status vacant = co_await blob::Owner::look(*pool.device, pool.store->metadata(), home, pool.store->super(), identity);
    co_await home.yield();
    if (!vacant) co_return fail(std::move(vacant.error()));
  }
  co_return co_await close_pool(pool);
}

reactor::Task<Result<blob::CheckReport>> VolumeService::Impl::check(std::shared_ptr<bdev::Bdev> device,
                                                                    const blob::Superblock& super, blob::Repair repair,
                                                                    std::shared_ptr<blob::CheckProgress> progress) {
  auto channel = co_await device->open_channel(home);
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
      co_await blob::Owner::claim(*device, **channel, home, super, identity, blob::Owner::Force::kNo,
                                  blob::Owner::Purpose::kRepair);
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
