// Volumes: making, forking, resizing, deleting. What concerns leaves and entries is in state_map.cpp.

#include "blob/state.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace pollux::blob {

namespace {

Status corrupt(const std::string& what) {
  return fail(ErrorCode::kCorrupt, "metadata: " + what);
}

}  // namespace

State::State(const Geometry& g) : geometry(g), dirty(*this), refcounts(geometry, dirty), pages(geometry, dirty) {}
State::~State() = default;

Status State::apply(const RecordHeader& record) {
  switch (record.type) {
    case RecordType::kMapSet:
      return run(record, &State::apply_map_set);
    case RecordType::kVolumeCreate:
      return run(record, &State::apply_create);
    case RecordType::kFork:
      return run(record, &State::apply_fork);
    case RecordType::kResize:
      return run(record, &State::apply_resize);
    case RecordType::kDelete:
      return run(record, &State::apply_delete);
    case RecordType::kDropLeaf:
      return run(record, &State::apply_drop_leaf);
    case RecordType::kVolumeFree:
      return run(record, &State::apply_volume_free);
    case RecordType::kSetQos:
      return run(record, &State::apply_set_qos);
    case RecordType::kSetBursts:
      return run(record, &State::apply_set_bursts);
    case RecordType::kMetadataGrow:
      return run(record, &State::apply_metadata_grow);
    case RecordType::kRevert:
      return run(record, &State::apply_revert);
    case RecordType::kDetach:
      return run(record, &State::apply_detach);
  }
  return corrupt("journal record of unknown type " + std::to_string(static_cast<int>(record.type)));
}

Volume* State::find(VolumeNo number) const {
  auto found = volumes_.find(number);
  return found == volumes_.end() ? nullptr : found->second.get();
}

Volume* State::find(const Uuid& id) const {
  auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : found->second;
}

Volume* State::find_name(const std::string& name) const {
  auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

VolumeNo State::next_volume_number() const {
  return free_records_.empty() ? 0 : *free_records_.begin();
}

std::uint64_t State::promise_to(const Volume& volume) const {
  if (volume.snapshot() || volume.deleting()) return 0;
  const std::uint64_t size = clusters_of(volume.size_bytes);
  return size > volume.charged ? size - volume.charged : 0;
}

void State::index_names(Volume& volume) {
  by_id_[volume.id] = &volume;
  by_name_[volume.name] = &volume;
}

void State::unindex_names(const Volume& volume) {
  by_id_.erase(volume.id);
  by_name_.erase(volume.name);
}

Result<Volume*> State::new_volume(VolumeNo number) {
  if (free_records_.empty()) {
    if (pages.free_pages() == 0) return fail(ErrorCode::kCorrupt, "metadata: no page for a new volume");
    const PageNo page = allocate_page(PageType::kVolumes);
    for (std::uint32_t i = 0; i < kRecordsPerPage; ++i) free_records_.insert(page * kRecordsPerPage + i);
  }
  // 0 while running means: the next one.
  const VolumeNo next = *free_records_.begin();
  if (number != 0 && number != next) {
    return fail(ErrorCode::kCorrupt, "metadata: journal makes volume number " + std::to_string(number) + " where " +
                                         std::to_string(next) + " comes next");
  }
  free_records_.erase(free_records_.begin());
  auto volume = std::make_unique<Volume>();
  volume->number = next;
  touch_volume(*volume);
  return volumes_.emplace(next, std::move(volume)).first->second.get();
}

Status State::check_create(const VolumeCreateRecord& create) const {
  if (create.name_bytes == 0 || create.size_bytes == 0 || clusters_of(create.size_bytes) > kMaxVolumeClusters ||
      create.id.is_nil() || !valid_block_shift(create.block_shift)) {
    return corrupt("volume with an impossible name, id, size or block size");
  }
  if (find(create.id) != nullptr) return corrupt("two volumes with id " + create.id.to_string());
  if (find_name(std::string(create.name, create.name_bytes)) != nullptr) return corrupt("two volumes with one name");
  return {};
}

void State::fill_volume(Volume& volume, const VolumeCreateRecord& create) {
  volume.id = create.id;
  volume.name.assign(create.name, create.name_bytes);
  volume.size_bytes = create.size_bytes;
  volume.created_ms = create.created_ms;
  volume.flags = create.flags & (kVolumeSnapshot | kVolumeThick);
  volume.block_shift = create.block_shift;
  volume.leaves.assign(leaves_of(create.size_bytes), 0);
  if (volume.indexed()) volume.index_pages.assign(div_ceil<std::size_t>(volume.leaves.size(), kWordsPerPage), 0);
  index_names(volume);
  reserved_ += reservation(volume);
}

Status State::apply_create(const VolumeCreateRecord& record) {
  POLLUX_TRY(check_create(record));
  auto volume = new_volume(record.header.volume);
  if (!volume) return fail(std::move(volume.error()));
  fill_volume(**volume, record);
  return {};
}

Status State::share_leaves(Volume& from, Volume& to) {
  const std::size_t count = std::min(from.leaves.size(), to.leaves.size());
  for (std::size_t slot = 0; slot < count; ++slot) {
    const PageNo page = from.leaves[slot];
    if (page == 0) continue;
    if (pages.type(page) != PageType::kLeaf) return corrupt("page " + std::to_string(page) + " is no leaf");
    if (pages.refs(page) >= kDirRefsMask) return corrupt("too many references to leaf " + std::to_string(page));
    pages.add_ref(page);
    POLLUX_TRY(set_leaf(to, slot, page));
    changed_slot(from, slot);
  }
  to.mapped = from.mapped;
  touch_volume(to);
  return {};
}

Status State::apply_fork(const ForkRecord& record) {
  Volume* source = find(record.source);
  if (source == nullptr || source->deleting() || !source->index_loaded) return corrupt("fork of a missing volume");
  POLLUX_TRY(check_create(record.create));
  if (record.create.size_bytes < source->size_bytes) return corrupt("fork smaller than its source");
  auto made = new_volume(record.header.volume);
  if (!made) return fail(std::move(made.error()));
  Volume& volume = **made;
  fill_volume(volume, record.create);
  volume.parent_id = source->id;
  POLLUX_TRY(share_leaves(*source, volume));
  // All of the source's clusters are shared now: what it overwrites from here on takes new ones.
  touch_volume(*source);
  reserved_ -= reservation(*source);
  source->charged = 0;
  reserved_ += reservation(*source);
  return {};
}

Status State::apply_resize(const ResizeRecord& record) {
  Volume* volume = find(record.header.volume);
  if (volume == nullptr || volume->deleting() || !volume->index_loaded) return corrupt("resize of a missing volume");
  if (record.size_bytes < volume->size_bytes || clusters_of(record.size_bytes) > kMaxVolumeClusters) {
    return corrupt("resize to an impossible size");
  }
  touch_volume(*volume);
  reserved_ -= reservation(*volume);
  volume->size_bytes = record.size_bytes;
  reserved_ += reservation(*volume);

  const bool was_indexed = volume->indexed();
  const std::vector<PageNo> old = volume->leaves;
  volume->leaves.resize(leaves_of(record.size_bytes), 0);
  if (volume->indexed()) {
    volume->index_pages.resize(div_ceil<std::size_t>(volume->leaves.size(), kWordsPerPage), 0);
    if (!was_indexed) {
      // The roots held the leaves themselves until now.
      for (std::size_t slot = 0; slot < old.size(); ++slot) {
        if (old[slot] != 0) POLLUX_TRY(set_leaf(*volume, slot, old[slot]));
      }
    }
  }
  if (observer_ != nullptr) observer_->resized(*volume);
  return {};
}

Status State::apply_delete(const RecordHeader& record) {
  Volume* volume = find(record.volume);
  if (volume == nullptr || volume->deleting()) return corrupt("delete of a missing volume");
  touch_volume(*volume);
  reserved_ -= reservation(*volume);
  unindex_names(*volume);
  volume->flags |= kVolumeDeleting;
  return {};
}

Status State::apply_volume_free(const RecordHeader& record) {
  Volume* volume = find(record.volume);
  if (volume == nullptr || !volume->deleting() || !volume->index_loaded) return corrupt("free of a missing volume");
  for (PageNo leaf : volume->leaves) {
    if (leaf != 0) return corrupt("free of a volume that still has leaves");
  }
  for (PageNo page : volume->index_pages) {
    if (page == 0) continue;
    if (pages.type(page) != PageType::kIndex) return corrupt("page " + std::to_string(page) + " is no index");
    pages.drop_ref(page);
    index_owners_.erase(page);
  }
  touch_volume(*volume);
  const PageNo page = volume->number / kRecordsPerPage;
  free_records_.insert(volume->number);
  volumes_.erase(record.volume);
  for (std::uint32_t i = 0; i < kRecordsPerPage; ++i) {
    if (!free_records_.contains(page * kRecordsPerPage + i)) return {};
  }
  for (std::uint32_t i = 0; i < kRecordsPerPage; ++i) free_records_.erase(page * kRecordsPerPage + i);
  pages.drop_ref(page);
  return {};
}

Status State::apply_set_qos(const SetQosRecord& record) {
  Volume* volume = find(record.header.volume);
  if (volume == nullptr || volume->deleting()) return corrupt("limits for a missing volume");
  touch_volume(*volume);
  volume->qos = record.qos;
  return {};
}

Status State::apply_set_bursts(const SetBurstsRecord& record) {
  Volume* volume = find(record.header.volume);
  if (volume == nullptr || volume->deleting() || volume->name.size() > kMaxNameWithBurstsBytes) {
    return corrupt("bursts for a volume that is missing, or has no room for them");
  }
  touch_volume(*volume);
  volume->bursts = record.bursts;
  return {};
}

Status State::apply_detach(const RecordHeader& record) {
  Volume* volume = find(record.volume);
  if (volume == nullptr || volume->deleting()) return corrupt("detach of a missing volume");
  touch_volume(*volume);
  volume->parent_id = Uuid{};
  return {};
}

Status State::apply_metadata_grow(const MetadataGrowRecord& record) {
  if (record.number != pages.cluster_count() || !refcounts.is_data(record.cluster) ||
      refcounts.word(record.cluster) != 0) {
    return corrupt("metadata cluster " + std::to_string(record.number) + " in an impossible place");
  }
  if (std::uint64_t{record.number} * geometry.pages_per_cluster > UINT32_MAX / (2 * kRecordsPerPage)) {
    return corrupt("more metadata than page numbers");
  }
  refcounts.set_metadata(record.cluster, record.number);
  pages.add_cluster(record.cluster);
  return {};
}

Status State::apply_revert(const RevertRecord& record) {
  Volume* volume = find(record.header.volume);
  Volume* snapshot = find(record.snapshot);
  if (volume == nullptr || snapshot == nullptr || volume->deleting() || snapshot->deleting() ||
      !volume->index_loaded || !snapshot->index_loaded || snapshot->size_bytes > volume->size_bytes) {
    return corrupt("impossible revert");
  }
  touch_volume(*volume);
  auto made = new_volume(record.trash);
  if (!made) return fail(std::move(made.error()));
  Volume& trash = **made;
  trash.id = record.trash_id;
  trash.flags = kVolumeDeleting;
  trash.size_bytes = volume->size_bytes;
  trash.mapped = volume->mapped;
  trash.leaves = std::move(volume->leaves);
  trash.index_pages = std::move(volume->index_pages);
  for (std::uint32_t chunk = 0; chunk < trash.index_pages.size(); ++chunk) {
    if (PageNo page = trash.index_pages[chunk]) index_owners_[page] = {trash.number, chunk};
  }
  volume->leaves.assign(trash.leaves.size(), 0);
  volume->index_pages.assign(trash.index_pages.size(), 0);
  reserved_ -= reservation(*volume);
  volume->charged = 0;
  reserved_ += reservation(*volume);
  return share_leaves(*snapshot, *volume);
}

Status State::load_volume(VolumeNo number, const VolumeRecord& record) {
  const auto where = [number] { return "record of volume number " + std::to_string(number) + ": "; };
  const std::uint64_t clusters = clusters_of(record.size_bytes);
  const bool is_deleting = record.flags & kVolumeDeleting;
  if (record.size_bytes == 0 || clusters > kMaxVolumeClusters) return corrupt(where() + "impossible size");
  if (record.id.is_nil() || (record.name_bytes == 0 && !is_deleting)) return corrupt(where() + "no id or name");
  if (!valid_block_shift(record.block_shift)) return corrupt(where() + "impossible block size");
  if (volumes_.contains(number)) return corrupt(where() + "found twice");
  auto volume = std::make_unique<Volume>();
  volume->number = number;
  volume->id = record.id;
  volume->parent_id = record.parent_id;
  volume->name.assign(record.name, record.name_bytes);
  volume->size_bytes = record.size_bytes;
  volume->created_ms = record.created_ms;
  volume->flags = record.flags;
  volume->block_shift = record.block_shift;
  volume->qos = record.qos;
  if (record.name_bytes <= kMaxNameWithBurstsBytes) {
    std::memcpy(&volume->bursts, record.name + kMaxNameWithBurstsBytes, sizeof(Bursts));
  }
  volume->mapped = record.mapped;
  volume->charged = record.charged;
  volume->leaves.assign(leaves_of(record.size_bytes), 0);
  const std::size_t roots =
      volume->indexed() ? div_ceil<std::size_t>(volume->leaves.size(), kWordsPerPage) : volume->leaves.size();
  const PageType expected = volume->indexed() ? PageType::kIndex : PageType::kLeaf;
  for (std::size_t i = 0; i < kRoots; ++i) {
    const PageNo page = record.roots[i];
    if (page != 0 && (i >= roots || pages.type(page) != expected)) {
      return corrupt(where() + "root " + std::to_string(i) + " names page " + std::to_string(page) +
                     ", which is not what it should be");
    }
  }
  if (volume->indexed()) {
    volume->index_pages.assign(record.roots, record.roots + roots);
    volume->index_loaded = std::all_of(record.roots, record.roots + roots, [](PageNo page) { return page == 0; });
    for (std::uint32_t chunk = 0; chunk < roots; ++chunk) {
      const PageNo page = record.roots[chunk];
      if (page != 0 && !index_owners_.emplace(page, IndexOwner{number, chunk}).second) {
        return corrupt(where() + "index page " + std::to_string(page) + " belongs to two volumes");
      }
    }
  } else {
    std::copy_n(record.roots, roots, volume->leaves.begin());
  }
  if (!is_deleting) {
    if (find(volume->id) != nullptr || find_name(volume->name) != nullptr) {
      return corrupt(where() + "id or name is used twice");
    }
    index_names(*volume);
    reserved_ += reservation(*volume);
  }
  volumes_.emplace(number, std::move(volume));
  return {};
}

Status State::check_names() const {
  std::vector<std::uint32_t> names(pages.page_limit(), 0);
  for (const auto& [number, volume] : volumes_) {
    const auto wrong = [&id = volume->id](PageNo page, const char* what) {
      return corrupt("volume " + id.to_string() + " names page " + std::to_string(page) + ", " + what);
    };
    for (PageNo page : volume->index_pages) {
      if (page == 0) continue;
      if (pages.type(page) != PageType::kIndex) return wrong(page, "which is no index");
      if (++names[page] > 1) return wrong(page, "an index that has another owner");
    }
    for (PageNo page : volume->leaves) {
      if (page == 0) continue;
      if (pages.type(page) != PageType::kLeaf) return wrong(page, "which is no leaf");
      if (++names[page] > pages.refs(page)) return wrong(page, "a leaf that counts fewer references than it has");
    }
  }
  return {};
}

Status State::load_index(Volume& volume, std::size_t chunk, const PageNo* page_numbers) {
  const std::size_t first = chunk * kWordsPerPage;
  const std::size_t count = std::min<std::size_t>(kWordsPerPage, volume.leaves.size() - first);
  for (std::size_t i = 0; i < count; ++i) {
    if (page_numbers[i] != 0 && pages.type(page_numbers[i]) != PageType::kLeaf) {
      return corrupt("index of volume " + volume.id.to_string() + " names page " + std::to_string(page_numbers[i]) +
                     ", which is no leaf");
    }
    volume.leaves[first + i] = page_numbers[i];
  }
  return {};
}

void State::serialize_volume(const Volume& volume, VolumeRecord& record) const {
  record.live = 1;
  record.flags = volume.flags;
  record.block_shift = volume.block_shift;
  record.name_bytes = static_cast<std::uint8_t>(volume.name.size());
  record.id = volume.id;
  record.parent_id = volume.parent_id;
  record.size_bytes = volume.size_bytes;
  record.created_ms = volume.created_ms;
  record.qos = volume.qos;
  record.mapped = volume.mapped;
  record.charged = volume.charged;
  std::memcpy(record.name, volume.name.data(), volume.name.size());
  if (volume.name.size() <= kMaxNameWithBurstsBytes) {
    std::memcpy(record.name + kMaxNameWithBurstsBytes, &volume.bursts, sizeof(Bursts));
  }
  const auto& roots = volume.indexed() ? volume.index_pages : volume.leaves;
  std::copy(roots.begin(), roots.end(), record.roots);
}

void State::serialize(PageKey key, std::byte* page) const {
  if (key.is_refcounts()) {
    refcounts.serialize(key.number(), page);
    return;
  }
  const PageNo number = key.number();
  switch (pages.type(number)) {
    case PageType::kDirectory:
      pages.serialize_directory(number / geometry.pages_per_cluster, page);
      return;
    case PageType::kVolumes: {
      auto* out = reinterpret_cast<VolumesPage*>(page);
      for (std::uint32_t i = 0; i < kRecordsPerPage; ++i) {
        if (const Volume* volume = find(number * kRecordsPerPage + i)) serialize_volume(*volume, out->records[i]);
      }
      return;
    }
    case PageType::kIndex: {
      const IndexOwner owner = index_owners_.at(number);
      const Volume* volume = find(owner.volume);
      const std::size_t first = std::size_t{owner.chunk} * kWordsPerPage;
      const std::size_t count = std::min<std::size_t>(kWordsPerPage, volume->leaves.size() - first);
      std::memcpy(page + sizeof(PageHeader), &volume->leaves[first], count * sizeof(PageNo));
      return;
    }
    case PageType::kLeaf: {
      auto* out = reinterpret_cast<LeafPage*>(page);
      const Leaf* source = leaf(number);
      for (std::uint32_t i = 0; i < kLeafEntries; ++i) {
        const MapEntry entry = source->entries[i].get();
        out->entries[i] = {.own = entry.own, .base = entry.base, .bits = entry.bits};
      }
      return;
    }
    case PageType::kFree:
    case PageType::kRefcounts:
      return;
  }
}

}  // namespace pollux::blob
