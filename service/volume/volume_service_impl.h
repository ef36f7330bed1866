#pragma once
// What VolumeService works on: its pools, all on the service's reactor. Shared by volume_service.cpp (pools) and
// volume_calls.cpp (volumes and jobs).

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "blob/checker.h"
#include "blob/volume.h"
#include "reactor/blocking_thread.h"
#include "reactor/mutex.h"
#include "volume/pool.h"
#include "volume/volume_service.h"

namespace pollux::volume {

using blob::Volume;

struct VolumeService::Impl {
  Impl(reactor::ReactorGroup& group, blob::Owner::Identity who, std::shared_ptr<blob::LossLog> loss_log,
       blob::JournalQueue::Source journal_queues)
      : reactors(group),
        home(group.main()),
        background(group.background()),
        identity(std::move(who)),
        losses(std::move(loss_log)),
        queues(std::move(journal_queues)),
        gate(home) {}

  reactor::ReactorGroup& reactors;
  // Everything here, and every store, is on this reactor.
  reactor::Reactor& home;
  // What takes time in proportion to a pool: see Store::open.
  reactor::Reactor& background;
  const blob::Owner::Identity identity;
  const std::shared_ptr<blob::LossLog> losses;
  const blob::JournalQueue::Source queues;
  std::map<Uuid, std::unique_ptr<Pool>> pools;
  std::set<Uuid> new_ids;
  // Calls that make pools come and go, and checks, are inside.
  reactor::Gate gate;
  // One pool comes or goes at a time, but for those that are opened together.
  reactor::AsyncMutex pools_mutex;

  // Opens devices, looks at their size and lets closed pools go, none of which a reactor may wait for.
  reactor::BlockingThread blocking;
  // Looks for devices that grew.
  reactor::Timer growth{[this] { look_for_growth(); }};

  Result<reactor::Gate::Holder> enter() { return gate.enter("the service is being stopped"); }

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

  // A call that waits for something is inside the pool it works on, which stays until the call has ended.
  struct InPool {
    Pool* pool;
    reactor::Gate::Holder inside;
  };
  Result<InPool> enter_pool(const std::string& name_or_id) {
    auto pool = find_pool(name_or_id);
    if (!pool) return fail(std::move(pool.error()));
    auto inside = (*pool)->enter();
    if (!inside) return fail(std::move(inside.error()));
    return InPool{*pool, std::move(*inside)};
  }

  struct AtVolume {
    Pool* pool;
    Volume* volume;
    reactor::Gate::Holder inside;
  };
  Result<AtVolume> enter_volume(const Uuid& id) {
    auto place = find_volume(id);
    if (!place) return fail(std::move(place.error()));
    auto inside = place->pool->enter();
    if (!inside) return fail(std::move(inside.error()));
    return AtVolume{place->pool, place->volume, std::move(*inside)};
  }

  // An id that a volume or snapshot is being made with, in whatever pool: no other may be made with it until this goes. On
  // the home reactor.
  class NewId {
   public:
    NewId(std::set<Uuid>& all, const Uuid& id) : all_(&all), id_(id) { all.insert(id); }
    NewId(NewId&& other) noexcept : all_(std::exchange(other.all_, nullptr)), id_(other.id_) {}
    NewId& operator=(NewId&&) = delete;
    ~NewId() {
      if (all_ != nullptr) all_->erase(id_);
    }

   private:
    std::set<Uuid>* all_;
    const Uuid id_;
  };
  // kRetry: it is taken.
  Result<NewId> take_new_id(const Uuid& id) {
    if (!new_ids.contains(id)) return NewId(new_ids, id);
    return fail(ErrorCode::kRetry, "a volume " + id.to_string() + " is being made: repeat the request");
  }

  Result<VolumeInfo> describe(const Uuid& id) const {
    auto place = find_volume(id);
    if (!place) return fail(std::move(place.error()));
    return place->pool->info(*place->volume);
  }

  // What is on the device. Runs in the background, as the next does, and comes back home.
  reactor::Task<Result<blob::Superblock>> probe(std::shared_ptr<bdev::Bdev> device);
  reactor::Task<Status> format(std::shared_ptr<bdev::Bdev> device, blob::FormatOptions options);
  reactor::Task<Result<std::shared_ptr<bdev::Bdev>>> open_device(bdev::Spec spec, std::uint64_t patience_ns);
  reactor::Task<Result<Pool*>> adopt(bdev::Spec spec, std::shared_ptr<bdev::Bdev> device, blob::Owner::Force force,
                                     const std::vector<Uuid>& attached = {});
  // With pools_mutex held. Several may be under way.
  reactor::Task<Result<PoolInfo>> import_one(bdev::Spec spec, Uuid expected, blob::Owner::Force force,
                                             const std::vector<Uuid>& attached);
  // pool_owner.cpp. Nothing for a device in memory. kExists: a pool with this id or name is open here.
  Status check_not_open(const blob::Superblock& super) const;
  reactor::Task<Result<std::unique_ptr<blob::Owner>>> claim(const bdev::Spec& spec, bdev::Bdev& device,
                                                            const blob::Superblock& super, blob::Owner::Force force);
  reactor::Task<Status> release(bdev::Bdev& device, std::unique_ptr<blob::Owner> owner);
  // kBusy: another service had the pool open since this one, and it holds one of these volumes.
  reactor::Task<Status> check_not_changed(const bdev::Spec& spec, std::shared_ptr<bdev::Bdev> device,
                                          const blob::Superblock& super, const std::vector<Uuid>& attached,
                                          blob::Owner::Force force);
  reactor::Task<Result<std::vector<Uuid>>> held(std::shared_ptr<bdev::Bdev> device, const blob::Superblock& super,
                                                const std::vector<Uuid>& wanted);
  void follow_owner(Pool& pool);
  // Closes a pool that was lost to another owner, so that it can be opened anew. kBusy: in use here, or that owner is
  // alive.
  reactor::Task<Status> leave_lost(Pool& pool, blob::Owner::Force force);
  // blob::check_pool() in the background, on a pool that is nobody's, and with a repair this service's as long as it
  // runs. kBusy.
  reactor::Task<Result<blob::CheckReport>> check(std::shared_ptr<bdev::Bdev> device, const blob::Superblock& super,
                                                 blob::Repair repair, std::shared_ptr<blob::CheckProgress> progress);
  void follow_growth(Pool& pool);
  void look_for_growth();
  reactor::Task<void> refresh_sizes();
  reactor::Task<Status> close_pool(Pool& pool);
};

}  // namespace pollux::volume
