#pragma once
// Publication: what the data path of all reactors sees of the maps, and the one owner of "may be written in place".
//
// State says what the metadata is; this shows it to the data path. It keeps the views of open volumes up to date, as
// State's observer, and opens and closes clusters for writes in place: what has to be known about one is its condition
// in the table of in_place.h. Conditions that need more than the entry's own bit are kept here, for as long as there is
// something under way at home. The Writer says what happens; nobody else opens an entry.
//
// Home reactor only.

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "blob/cluster_table.h"
#include "blob/in_place.h"
#include "blob/map.h"
#include "blob/state.h"

namespace pollux::blob {

class Publication final : public MapObserver {
 public:
  // `clusters`: with how many the Writer may be at work at one time.
  Publication(State& state, std::size_t clusters);
  ~Publication() override { state_.set_observer(nullptr); }
  Publication(const Publication&) = delete;
  Publication& operator=(const Publication&) = delete;

  // Opens what is alone in the leaves that are in memory, of a state that nobody uses yet: takes time in proportion to
  // them, on any reactor. All that the state was made from outlives the process.
  static void open_loaded(State& state);

  // ---- Views
  // The volume can be read and written through its view, which is made here.
  void show(Volume& volume);
  // Volumes that are open in `before`, which this one's state replaces, keep their Volume and VolumeView, which get the
  // contents they have here. Their indexes are loaded. `before` lives on until a grace period has passed.
  void take_over(State& before);
  // Sends all writes home until thaw(); those that looked at the map before are over after a grace period.
  void freeze(Volume& volume);
  void thaw(Volume& volume);
  static bool frozen(const Volume& volume) {
    return volume.view && volume.view->frozen.load(std::memory_order_relaxed);
  }
  // That the volume is alone with a leaf shows late: others drop theirs without knowing of it.
  void refresh(Volume& volume, std::size_t slot) {
    if (volume.view) show_slot(volume, slot);
  }

  // ---- Clusters
  // Its entry changed, by a record that is in the journal's queue. `outlives_process`: a kill does not forget it. True:
  // committed() has to follow.
  bool changed(const Volume& volume, std::uint32_t index, bool outlives_process);
  // The record of one changed() is on the device, or will never be there.
  void committed(const Volume& volume, std::uint32_t index, bool ok);
  bool uncommitted(const Volume& volume, std::uint32_t index);
  // An operation has the cluster for itself until release(). What the data path has under way there is over after a
  // grace period.
  void hold(const Volume& volume, std::uint32_t index) { move(volume, index, InPlaceEvent::kHold); }
  void release(const Volume& volume, std::uint32_t index) { move(volume, index, InPlaceEvent::kRelease); }
  // A write is made in place at home.
  void looked(const Volume& volume, std::uint32_t index) { move(volume, index, InPlaceEvent::kLooked); }
  InPlace condition(const Volume& volume, std::uint32_t index);
  // With how many clusters something is under way.
  std::size_t at_work() const { return work_.size(); }

  // Tables that no view leads to any more, to be destroyed after a grace period.
  using Retired = std::vector<std::unique_ptr<LeafTable>>;
  Retired collect_retired() { return std::exchange(retired_, {}); }
  bool has_retired() const { return !retired_.empty(); }

  // MapObserver
  void leaf_loaded(Leaf& leaf) override;
  void leaf_copied(Leaf& original) override;
  void slot_changed(Volume& volume, std::size_t slot) override;
  void resized(Volume& volume) override;

 private:
  // One that is held or uncommitted.
  struct Work {
    VolumeNo volume = 0;
    std::uint32_t index = 0;
    InPlace condition = InPlace::kClosed;
    std::uint32_t records = 0;  // that are not committed
    Work* next = nullptr;
  };

  // Precondition: it has a view.
  void show_slot(Volume& volume, std::size_t slot) {
    std::atomic<std::uintptr_t>& at = volume.view->owned_table->slots[slot];
    const std::uintptr_t value = slot_value(volume.leaves[slot]);
    if (at.load(std::memory_order_relaxed) != value) at.store(value, std::memory_order_release);
  }
  std::uintptr_t slot_value(PageNo page) const {
    if (page == 0) return 0;
    const Leaf* const loaded = state_.leaf(page);
    if (loaded == nullptr) return kNotLoaded;
    return reinterpret_cast<std::uintptr_t>(loaded) | (state_.pages.refs(page) > 1 ? kClosedTag : 0);
  }
  Entry* entry(const Volume& volume, std::uint32_t index) const;
  Work* find(const Volume& volume, std::uint32_t index) {
    return work_.size() == 0 ? nullptr : work_.find(volume.number, index);
  }
  // Makes the move; the cluster's work, if there is some afterwards.
  Work* move(const Volume& volume, std::uint32_t index, InPlaceEvent event);
  void build_table(Volume& volume);
  static void open_alone(const State& state, Leaf& leaf);

  State& state_;
  ClusterTable<Work> work_;
  Retired retired_;
};

}  // namespace pollux::blob
