// Leaves and their entries: finding, copying on write, setting, dropping. The rest of State is in state.cpp.

#include <algorithm>
#include <cassert>

#include "blob/state.h"

namespace pollux::blob {

namespace {

Status corrupt(const std::string& what) {
  return fail(ErrorCode::kCorrupt, "metadata: " + what);
}

}  // namespace

bool State::valid_entry(const LeafEntry& entry) const {
  if (entry.own == 0) return entry.base == 0 && entry.bits == 0;
  if (!refcounts.is_data(entry.own) || (entry.base != 0 && !refcounts.is_data(entry.base))) return false;
  if (entry.base == entry.own || (entry.bits == kAllBits && entry.base != 0)) return false;
  return (entry.bits & geometry.unused_bits()) == geometry.unused_bits();
}

Leaf& State::add_leaf(PageNo page) {
  if (page >= leaves_.size()) leaves_.resize(std::max<std::size_t>(page + 1, leaves_.size() * 3 / 2));
  leaves_[page] = std::make_unique<Leaf>();
  return *leaves_[page];
}

PageNo State::allocate_page(PageType type) {
  const PageNo page = pages.allocate(type);
  if (freed_.contains(page)) reused_.insert(page);
  return page;
}

void State::load_leaf(PageNo page, const LeafPage& bytes) {
  Leaf& leaf = add_leaf(page);
  for (std::uint32_t i = 0; i < kLeafEntries; ++i) {
    const LeafEntry& entry = bytes.entries[i];
    const bool counted =
        !trust_counts || entry.own == 0 ||
        (valid_entry(entry) && refcounts.word(entry.own) != 0 && (entry.base == 0 || refcounts.word(entry.base) != 0));
    if (!valid_entry(entry) || !counted) {
      for (std::uint32_t before = 0; before < i; ++before) leaf.entries[before].set({});
      leaf.damaged = true;
      return;
    }
    leaf.entries[i].set({.own = entry.own, .base = entry.base, .bits = entry.bits});
  }
  if (observer_ != nullptr) observer_->leaf_loaded(leaf);
}

void State::load_damaged_leaf(PageNo page) {
  add_leaf(page).damaged = true;
}

Volume& State::take_over(State& before, VolumeNo number) {
  std::unique_ptr<Volume>& mine = volumes_.at(number);
  std::unique_ptr<Volume>& theirs = before.volumes_.at(number);
  unindex_names(*mine);
  mine->take_users(*theirs);
  *theirs = std::move(*mine);
  mine = std::move(theirs);
  index_names(*mine);
  return *mine;
}

Status State::set_leaf(Volume& volume, std::size_t slot, PageNo page) {
  if (volume.indexed()) {
    const std::uint32_t chunk = static_cast<std::uint32_t>(slot / kWordsPerPage);
    PageNo& index = volume.index_pages[chunk];
    if (index == 0) {
      if (page == 0) return {};
      if (pages.free_pages() == 0) return corrupt("no page for an index");
      touch_volume(volume);
      index = allocate_page(PageType::kIndex);
      index_owners_[index] = {volume.number, chunk};
    } else {
      dirty.touch(PageKey::metadata(index));
    }
  } else {
    touch_volume(volume);
  }
  volume.leaves[slot] = page;
  changed_slot(volume, slot);
  return {};
}

Result<Leaf*> State::writable_leaf(Volume& volume, std::size_t slot) {
  const PageNo page = volume.leaves[slot];
  if (page != 0 && pages.type(page) != PageType::kLeaf) [[unlikely]] {
    return fail(ErrorCode::kCorrupt, "metadata: change of page " + std::to_string(page) + ", which is no leaf");
  }
  if (page != 0 && pages.refs(page) == 1) {
    if (leaf(page) == nullptr) return fail(ErrorCode::kCorrupt, "metadata: change of a leaf that is not loaded");
    dirty.touch(PageKey::metadata(page));
    return leaf(page);
  }
  if (pages.free_pages() == 0) return fail(ErrorCode::kCorrupt, "metadata: no page for a leaf");
  if (page != 0 && (leaf(page) == nullptr || leaf(page)->damaged)) {
    return fail(ErrorCode::kCorrupt, "metadata: copy of a leaf that is not loaded or damaged");
  }
  const PageNo made = allocate_page(PageType::kLeaf);
  Leaf& copy = add_leaf(made);
  if (page != 0) {
    // The clusters now hang on two leaves.
    Leaf& original = *leaf(page);
    for (std::uint32_t i = 0; i < kLeafEntries; ++i) {
      const MapEntry entry = original.entries[i].get();
      if (entry.own == 0) continue;
      if (!refcounts.add(entry.own) || (entry.base != 0 && !refcounts.add(entry.base))) {
        return fail(ErrorCode::kCorrupt, "metadata: reference count out of range");
      }
      copy.entries[i].set(entry);
    }
    pages.drop_ref(page);
    if (observer_ != nullptr) observer_->leaf_copied(original);
  }
  if (auto set = set_leaf(volume, slot, made); !set) return fail(std::move(set.error()));
  return &copy;
}

Status State::apply_map_set(const MapSetRecord& record) {
  Volume* volume = find(record.header.volume);
  return volume == nullptr ? corrupt("impossible map entry") : apply(*volume, record);
}

Status State::apply(Volume& volume, const MapSetRecord& record) {
  if (volume.deleting() || !volume.index_loaded || record.index >= clusters_of(volume.size_bytes) ||
      !valid_entry(record.entry)) {
    return corrupt("impossible map entry");
  }
  auto target = writable_leaf(volume, record.index / kLeafEntries);
  if (!target) return fail(std::move(target.error()));
  if ((*target)->damaged) return corrupt("change of a damaged leaf");
  Entry& at = (*target)->entries[record.index % kLeafEntries];
  const MapEntry old = at.get();
  const LeafEntry& fresh = record.entry;

  touch_volume(volume);
  reserved_ -= reservation(volume);
  // Add before dropping: what both name must not pass through zero.
  const bool takes_new = fresh.own != 0 && refcounts.word(fresh.own) == 0;
  bool counted = true;
  for (ClusterNo cluster : {fresh.own, fresh.base}) {
    if (cluster != 0 && cluster != old.own && cluster != old.base) counted = counted && refcounts.add(cluster);
  }
  for (ClusterNo cluster : {old.own, old.base}) {
    if (cluster != 0 && cluster != fresh.own && cluster != fresh.base) counted = counted && refcounts.drop(cluster);
  }
  if (!counted) return corrupt("reference count out of range");
  const bool gives_back = old.own != 0 && old.own != fresh.own && refcounts.word(old.own) == 0;
  volume.mapped += (fresh.own != 0) - (old.own != 0);
  if (takes_new) ++volume.charged;
  if (gives_back && volume.charged > 0) --volume.charged;
  reserved_ += reservation(volume);

  at.set({.own = fresh.own, .base = fresh.base, .bits = fresh.bits});
  return {};
}

Status State::drop_leaf_page(PageNo page) {
  if (pages.type(page) != PageType::kLeaf)
    return corrupt("drop of page " + std::to_string(page) + ", which is no leaf");
  if (pages.refs(page) > 1) {
    pages.drop_ref(page);
    return {};
  }
  Leaf* last = leaf(page);
  if (last == nullptr) return corrupt("drop of a leaf that is not loaded");
  // The page first: a checkpoint under way may still need it as it is.
  pages.drop_ref(page);
  // What a damaged leaf named is not known; its clusters stay taken until a repair.
  for (std::uint32_t i = 0; !last->damaged && i < kLeafEntries; ++i) {
    const MapEntry entry = last->entries[i].get();
    if (entry.own == 0) continue;
    if (!refcounts.drop(entry.own, /*of_deleted=*/true) ||
        (entry.base != 0 && !refcounts.drop(entry.base, /*of_deleted=*/true))) {
      return corrupt("reference count out of range");
    }
  }
  if (keep_freed_) {
    freed_.insert(page);
  } else {
    retired_.push_back(std::move(leaves_[page]));
  }
  return {};
}

Status State::apply_drop_leaf(const DropLeafRecord& record) {
  Volume* volume = find(record.header.volume);
  if (volume == nullptr || !volume->deleting() || !volume->index_loaded || record.slot >= volume->leaves.size()) {
    return corrupt("drop of an impossible leaf");
  }
  const PageNo page = volume->leaves[record.slot];
  if (page == 0) return {};
  POLLUX_TRY(set_leaf(*volume, record.slot, 0));
  return drop_leaf_page(page);
}

}  // namespace pollux::blob
