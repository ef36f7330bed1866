#pragma once
// Space: who may take a free cluster, and when freed ones can be taken again.
//
// Thick volumes have their space promised: others allocate only from what is left beyond the promises. A little is kept
// for metadata, so that a full pool can still be changed (a delete needs none, an unmap may need a leaf). Freed
// clusters come back when the journal says durably that they are free and no I/O of before is under way; the same makes
// clusters that others have released their last owner's alone. Home reactor only.

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "base/result.h"
#include "blob/discarder.h"
#include "blob/journal.h"
#include "blob/lanes.h"
#include "blob/publication.h"
#include "blob/state.h"
#include "reactor/task.h"

namespace pollux::blob {

class Space {
 public:
  struct Events {
    std::function<void()> on_reclaimed;  // clusters became free
    std::function<void()> on_settled;    // clusters are contested no more, or never will be settled
  };
  // `metadata`: the home reactor's channel to the device.
  Space(State& state, Publication& publication, Journal& journal, Lanes& lanes, bdev::Channel& metadata,
        Discarder& discarder, Events events)
      : state_(state),
        publication_(publication),
        journal_(journal),
        lanes_(lanes),
        metadata_(metadata),
        discarder_(discarder),
        events_(std::move(events)) {}

  // A cluster for data of this volume; none when the pool is full for it.
  std::optional<ClusterNo> allocate(const Volume& volume);
  // At least this many free metadata pages, taking clusters for them as needed. kNoSpace: the pool has none, or the file
  // system under it has no room for one.
  Status ensure_pages(std::uint32_t count);
  // It has nothing to do.
  bool has_pages(std::uint32_t count) const { return state_.pages.free_pages() >= count; }
  // The same for later, and with room of their own for all of them, so that ensure_pages() takes no others. kNoSpace.
  reactor::Task<Status> prepare_pages(std::uint32_t count);
  // Starts to get clusters ready that are to become metadata, with room of their own on the device, if there are few.
  void refill_stock();
  // Clusters that a thin volume or a new promise could take, those on their way back included.
  std::uint64_t available() const;

  // Starts bringing freed clusters back, if there are any and it is not under way. True when some may come.
  bool reclaim();
  // Starts settling contested clusters, if there are any and it is not under way.
  void settle();
  bool idle() const { return !reclaiming_ && !settling_ && !refilling_ && reserving_ == 0; }

 private:
  bool has_reclaimable() const;
  std::uint64_t kept_for_metadata() const;
  // Of that, what is still in the free map.
  std::uint64_t metadata_reserve() const;
  reactor::Task<void> run_reclaim();
  reactor::Task<void> run_settle();
  reactor::Task<void> run_refill();
  reactor::Task<void> reserve_late(ClusterNo cluster);
  reactor::Task<Status> add_to_stock();
  std::optional<ClusterNo> take_for_metadata();

  State& state_;
  Publication& publication_;
  Journal& journal_;
  Lanes& lanes_;
  bdev::Channel& metadata_;
  Discarder& discarder_;
  const Events events_;
  bool reclaiming_ = false;
  bool settling_ = false;
  // Ready to become metadata. With those on their way here: out of the free map, part of what is kept for metadata.
  std::vector<ClusterNo> stock_;
  std::uint64_t out_for_stock_ = 0;
  std::uint32_t reserving_ = 0;
  bool refilling_ = false;
  // The file system had no room for the last one.
  bool no_room_ = false;
};

}  // namespace pollux::blob
