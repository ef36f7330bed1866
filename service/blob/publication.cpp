#include "blob/publication.h"

#include <algorithm>
#include <cassert>

namespace pollux::blob {

Publication::Publication(State& state, std::size_t clusters) : state_(state), work_(clusters) {
  state_.set_observer(this);
}

// ---- Views

void Publication::show(Volume& volume) {
  volume.view = std::make_unique<VolumeView>();
  resized(volume);
}

void Publication::resized(Volume& volume) {
  if (!volume.view) return;
  build_table(volume);
  volume.view->size_bytes.store(volume.size_bytes, std::memory_order_release);
}

void Publication::build_table(Volume& volume) {
  VolumeView& view = *volume.view;
  // Never smaller than before: who looked at the size before this may look up what lay behind the new end.
  const std::size_t before = view.owned_table ? view.owned_table->count : 0;
  auto table = std::make_unique<LeafTable>(std::max(volume.leaves.size(), before));
  std::swap(table, view.owned_table);
  for (std::size_t slot = 0; slot < volume.leaves.size(); ++slot) slot_changed(volume, slot);
  view.table.store(view.owned_table.get(), std::memory_order_release);
  if (table) retired_.push_back(std::move(table));
}

void Publication::slot_changed(Volume& volume, std::size_t slot) {
  refresh(volume, slot);
}

void Publication::take_over(State& before) {
  for (const auto& [number, theirs] : before.volumes()) {
    if (theirs && theirs->view) resized(state_.take_over(before, number));
  }
}

void Publication::freeze(Volume& volume) {
  volume.view->frozen.store(true, std::memory_order_release);
}

void Publication::thaw(Volume& volume) {
  volume.view->frozen.store(false, std::memory_order_release);
}

// ---- Clusters

void Publication::open_alone(const State& state, Leaf& leaf) {
  for (Entry& entry : leaf.entries) {
    const ClusterNo own = entry.get().own;
    if (own != 0 && state.refcounts.alone(own)) entry.open();
  }
}

void Publication::open_loaded(State& state) {
  for (PageNo page = 0; page < state.pages.page_limit(); ++page) {
    if (Leaf* leaf = state.leaf(page); leaf != nullptr && !leaf->damaged) open_alone(state, *leaf);
  }
}

// Nothing is under way yet with clusters of a leaf that was not there, so each of them is closed.
void Publication::leaf_loaded(Leaf& leaf) {
  static_assert(in_place_move(InPlace::kClosed, InPlaceEvent::kLoaded).if_alone == InPlace::kOpen);
  open_alone(state_, leaf);
}

// Whatever is under way with a cluster of it stays so, and keeps it closed as well.
void Publication::leaf_copied(Leaf& original) {
  static_assert(in_place_move(InPlace::kOpen, InPlaceEvent::kCopied).if_alone == InPlace::kClosed);
  for (Entry& entry : original.entries) {
    if (entry.get().own != 0) entry.close();
  }
}

Entry* Publication::entry(const Volume& volume, std::uint32_t index) const {
  const PageNo page = volume.leaves[index / kLeafEntries];
  return page == 0 ? nullptr : &state_.leaf(page)->entries[index % kLeafEntries];
}

InPlace Publication::condition(const Volume& volume, std::uint32_t index) {
  if (const Work* work = find(volume, index)) return work->condition;
  const Entry* at = entry(volume, index);
  return at == nullptr || at->closed() ? InPlace::kClosed : InPlace::kOpen;
}

Publication::Work* Publication::move(const Volume& volume, std::uint32_t index, InPlaceEvent event) {
  Work* work = find(volume, index);
  Entry* at = entry(volume, index);
  const InPlace from = work != nullptr ? work->condition
                                       : (at == nullptr || at->closed() ? InPlace::kClosed : InPlace::kOpen);
  const InPlaceMove& how = in_place_move(from, event);
  assert(!how.impossible);
  const InPlace to = how.depends() ? how.next(state_.alone(volume, index)) : how.if_alone;
  if (at != nullptr && at->closed() != (to != InPlace::kOpen)) to == InPlace::kOpen ? at->open() : at->close();
  if (to == InPlace::kOpen || to == InPlace::kClosed) {
    if (work != nullptr) work_.erase(*work);
    return nullptr;
  }
  if (work == nullptr) work = &work_.insert(volume.number, index);
  work->condition = to;
  return work;
}

bool Publication::changed(const Volume& volume, std::uint32_t index, bool outlives_process) {
  if (outlives_process) {
    move(volume, index, InPlaceEvent::kKept);
    return false;
  }
  ++move(volume, index, InPlaceEvent::kQueued)->records;
  return true;
}

void Publication::committed(const Volume& volume, std::uint32_t index, bool ok) {
  Work* work = find(volume, index);
  assert(work != nullptr && work->records != 0);
  if (--work->records == 0) move(volume, index, ok ? InPlaceEvent::kCommitted : InPlaceEvent::kLost);
}

bool Publication::uncommitted(const Volume& volume, std::uint32_t index) {
  const Work* work = find(volume, index);
  return work != nullptr && work->records != 0;
}

}  // namespace pollux::blob
