#pragma once
// State: everything the metadata says, in memory, and the one place where it changes.
//
// Each change is a journal record. apply() carries it out at once, without waiting for anything, so that running and
// replaying are the same code and end in the same state. What apply() needs in memory (leaves, index pages) and on disk
// (free metadata pages) is the caller's to bring first; see store.h and recovery.h.
//
// It knows nothing of who reads and writes volumes meanwhile. A MapObserver is told of changes that concern them; that
// is the Publication, or nobody, as in recovery. Home reactor only.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/result.h"
#include "blob/dirty_pages.h"
#include "blob/geometry.h"
#include "blob/page_store.h"
#include "blob/refcounts.h"
#include "blob/volume.h"

namespace pollux::blob {

// Told within apply(), or a load, when the change has been made.
class MapObserver {
 public:
  virtual ~MapObserver() = default;
  // It is in memory now, all entries closed.
  virtual void leaf_loaded(Leaf& leaf) = 0;
  // Another leaf names the same clusters from here on.
  virtual void leaf_copied(Leaf& original) = 0;
  // The volume has another leaf there, or shares it with more or fewer volumes.
  virtual void slot_changed(Volume& volume, std::size_t slot) = 0;
  virtual void resized(Volume& volume) = 0;
};

// Who else names a volume's own cluster.
enum class Sharing : std::uint8_t {
  kUnmapped,   // there is no such cluster
  kShared,     // another map names it too
  kContested,  // nobody, but a crash may bring another that does: wait for Space::settle()
  kAlone,      // nobody
};

// One cluster of a volume.
struct ClusterState {
  MapEntry entry;
  Sharing sharing = Sharing::kUnmapped;

  bool alone() const { return sharing == Sharing::kAlone; }
};

class State : public PageSource {
 public:
  explicit State(const Geometry& geometry);
  ~State() override;

  // Carries out the record at `bytes` (its length is in its header and was checked). kCorrupt when it does not fit the
  // state, which while running means a fault of ours; the state may then be half changed and must not be used.
  Status apply(const RecordHeader& record);
  // The same for a change of this volume's map, which the record names: without a look for it.
  Status apply(Volume& volume, const MapSetRecord& record);

  Geometry geometry;
  DirtyPages dirty;
  Refcounts refcounts;
  PageStore pages;

  // ---- Volumes
  Volume* find(VolumeNo number) const;
  Volume* find(const Uuid& id) const;
  Volume* find_name(const std::string& name) const;
  const std::map<VolumeNo, std::unique_ptr<Volume>>& volumes() const { return volumes_; }
  // The number the next new volume must have; 0 when a page for it has to be allocated, which apply() then does.
  VolumeNo next_volume_number() const;
  std::uint64_t clusters_of(std::uint64_t size_bytes) const {
    return div_ceil<std::uint64_t>(size_bytes, geometry.cluster_bytes);
  }
  std::size_t leaves_of(std::uint64_t size_bytes) const {
    return static_cast<std::size_t>(div_ceil<std::uint64_t>(clusters_of(size_bytes), kLeafEntries));
  }
  // At load.
  Status load_volume(VolumeNo number, const VolumeRecord& record);
  void load_free_record(VolumeNo number) { free_records_.insert(number); }
  Status load_index(Volume& volume, std::size_t chunk, const PageNo* pages);

  // For a repair: how many entries of the volume are mapped.
  void repair_mapped(Volume& volume, std::uint32_t mapped) {
    touch_volume(volume);
    volume.mapped = mapped;
  }

  // Whether the pages that volumes name as leaves and indexes are that, and count no fewer references than they have,
  // as far as memory knows: indexes that are not loaded are looked at when they are. kCorrupt: a change would destroy
  // what another volume still needs.
  Status check_names() const;

  // ---- Leaves
  // For the checker, before the replay: leaves that it frees stay in memory, so that one that is still named can get
  // its page back.
  void keep_freed_leaves() { keep_freed_ = true; }
  // With that, true when a freed leaf's page was taken for something else since: the leaf is gone.
  bool reused(PageNo page) const { return reused_.contains(page); }
  // A leaf that names a cluster counted as free is damaged. Not for the checker, which compares the counts itself.
  bool trust_counts = true;
  Leaf* leaf(PageNo page) const { return page < leaves_.size() ? leaves_[page].get() : nullptr; }
  void load_leaf(PageNo page, const LeafPage& bytes);
  void load_damaged_leaf(PageNo page);
  // The entry of a cluster; its leaf must be loaded if there is one. All zeros when there is no leaf.
  MapEntry entry(const Volume& volume, std::uint32_t index) const {
    const PageNo page = volume.leaves[index / kLeafEntries];
    return page == 0 ? MapEntry{} : leaves_[page]->entries[index % kLeafEntries].get();
  }
  // The same precondition.
  ClusterState cluster(const Volume& volume, std::uint32_t index) const {
    const PageNo page = volume.leaves[index / kLeafEntries];
    if (page == 0) return {};
    const MapEntry entry = leaves_[page]->entries[index % kLeafEntries].get();
    return {.entry = entry, .sharing = sharing(page, entry.own)};
  }
  Sharing sharing(const Volume& volume, std::uint32_t index) const { return cluster(volume, index).sharing; }
  bool alone(const Volume& volume, std::uint32_t index) const { return sharing(volume, index) == Sharing::kAlone; }
  // The object of a volume of `before`, the state that this one replaces, and its users go on as this state's, with the
  // contents that the volume has here. Its index is loaded.
  Volume& take_over(State& before, VolumeNo number);
  // Null: nobody.
  void set_observer(MapObserver* observer) { observer_ = observer; }

  // ---- Space
  // Clusters promised to thick volumes and not taken yet.
  std::uint64_t reserved_clusters() const { return reserved_; }
  std::uint64_t reservation(const Volume& volume) const { return volume.thick() ? promise_to(volume) : 0; }

  // Leaves that no map leads to any more, to be destroyed after a grace period.
  using Retired = std::vector<std::unique_ptr<Leaf>>;
  Retired collect_retired() { return std::exchange(retired_, {}); }
  bool has_retired() const { return !retired_.empty(); }

  void serialize(PageKey key, std::byte* page) const override;

 private:
  Status apply_map_set(const MapSetRecord& record);
  Status apply_create(const VolumeCreateRecord& record);
  Status apply_fork(const ForkRecord& record);
  Status apply_resize(const ResizeRecord& record);
  Status apply_delete(const RecordHeader& record);
  Status apply_drop_leaf(const DropLeafRecord& record);
  Status apply_volume_free(const RecordHeader& record);
  Status apply_set_qos(const SetQosRecord& record);
  Status apply_set_bursts(const SetBurstsRecord& record);
  Status apply_metadata_grow(const MetadataGrowRecord& record);
  Status apply_revert(const RevertRecord& record);
  Status apply_detach(const RecordHeader& record);

  template <typename Record>
  Status run(const RecordHeader& record, Status (State::*step)(const Record&)) {
    if (record.bytes != sizeof(Record))
      return fail(ErrorCode::kCorrupt, "metadata: journal record of the wrong length");
    return (this->*step)(reinterpret_cast<const Record&>(record));
  }
  Result<Volume*> new_volume(VolumeNo number);
  Status check_create(const VolumeCreateRecord& create) const;
  void fill_volume(Volume& volume, const VolumeCreateRecord& create);
  void index_names(Volume& volume);
  void unindex_names(const Volume& volume);
  void touch_volume(const Volume& volume) { dirty.touch(PageKey::metadata(volume.number / kRecordsPerPage)); }
  Status set_leaf(Volume& volume, std::size_t slot, PageNo page);
  Result<Leaf*> writable_leaf(Volume& volume, std::size_t slot);
  Status share_leaves(Volume& from, Volume& to);
  Status drop_leaf_page(PageNo page);
  bool valid_entry(const LeafEntry& entry) const;
  Leaf& add_leaf(PageNo page);
  // What reservation() is for a thick one.
  std::uint64_t promise_to(const Volume& volume) const;
  // Of a cluster that a leaf's entry names as the volume's own.
  Sharing sharing(PageNo leaf_page, ClusterNo own) const {
    if (own == 0) return Sharing::kUnmapped;
    if (pages.refs(leaf_page) != 1 || refcounts.word(own) > 1) return Sharing::kShared;
    return refcounts.contested(own) ? Sharing::kContested : Sharing::kAlone;
  }
  void changed_slot(Volume& volume, std::size_t slot) {
    if (observer_ != nullptr) observer_->slot_changed(volume, slot);
  }
  PageNo allocate_page(PageType type);
  void serialize_volume(const Volume& volume, VolumeRecord& record) const;

  std::map<VolumeNo, std::unique_ptr<Volume>> volumes_;
  std::unordered_map<Uuid, Volume*> by_id_;
  std::unordered_map<std::string, Volume*> by_name_;
  std::set<VolumeNo> free_records_;
  struct IndexOwner {
    VolumeNo volume;
    std::uint32_t chunk;
  };
  std::unordered_map<PageNo, IndexOwner> index_owners_;
  std::vector<std::unique_ptr<Leaf>> leaves_;
  Retired retired_;
  MapObserver* observer_ = nullptr;
  std::uint64_t reserved_ = 0;
  bool keep_freed_ = false;
  std::unordered_set<PageNo> freed_;
  std::unordered_set<PageNo> reused_;
};

}  // namespace pollux::blob
