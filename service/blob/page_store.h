#pragma once
// PageStore: the metadata clusters and the pages in them: which exist, their type, their references, and which of the
// two slots holds the valid version. Contents live with their owners (leaves, volumes). Home reactor only.

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "blob/dirty_pages.h"
#include "blob/geometry.h"

namespace pollux::blob {

class PageStore {
 public:
  PageStore(const Geometry& geometry, DirtyPages& dirty) : geometry_(geometry), dirty_(dirty) {}

  // A new metadata cluster; its number is cluster_count(). All its pages but the directory are free.
  void add_cluster(ClusterNo cluster);
  // At load: the directory of the next metadata cluster and the slot it was found in. kCorrupt: unknown types.
  Status load_cluster(ClusterNo cluster, const std::uint32_t* words, unsigned directory_slot);

  // Where they lie, in ascending order.
  std::vector<ClusterNo> clusters_in_order() const;
  std::uint32_t cluster_count() const { return static_cast<std::uint32_t>(clusters_.size()); }
  std::uint32_t free_pages() const { return free_pages_; }
  std::uint32_t used_pages() const;

  // The free page with the lowest number, so that replay chooses as the original did. References: 1.
  // Precondition: free_pages() > 0.
  PageNo allocate(PageType type);
  void add_ref(PageNo page);
  // The references that remain; at 0 the page is free. Precondition: it has one.
  std::uint32_t drop_ref(PageNo page);

  // For a repair: the references that were found; at 0 the page is free.
  void repair_refs(PageNo page, std::uint32_t refs);
  // For a repair: a free page is a leaf again. Precondition: refs > 0; the leaf's contents are in memory.
  void repair_freed_leaf(PageNo page, std::uint32_t refs);

  bool exists(PageNo page) const { return page >> geometry_.pages_shift < clusters_.size(); }
  // kFree for a page number that lies nowhere.
  PageType type(PageNo page) const {
    return exists(page) ? static_cast<PageType>((word(page) >> kDirTypeShift) & 7) : PageType::kFree;
  }
  std::uint32_t refs(PageNo page) const { return word(page) & kDirRefsMask; }
  unsigned valid_slot(PageNo page) const { return (word(page) & kDirSlotBit) != 0; }
  std::uint64_t slot_offset(PageNo page, unsigned slot) const;
  PageNo directory_page(std::uint32_t cluster) const { return cluster * geometry_.pages_per_cluster; }
  std::uint32_t page_limit() const { return cluster_count() * geometry_.pages_per_cluster; }

  // For a checkpoint, at the cut: the slot this page goes to, which becomes the valid one.
  unsigned flip_slot(PageNo page);
  unsigned flip_directory_slot(std::uint32_t cluster);
  // True once for a cluster made since the last cut: its other directory slot holds old data that must be overwritten.
  bool take_fresh(std::uint32_t cluster);
  void touch_directory(std::uint32_t cluster) { dirty_.touch(PageKey::metadata(directory_page(cluster))); }

  void serialize_directory(std::uint32_t cluster, std::byte* bytes) const;

 private:
  struct MetadataCluster {
    ClusterNo cluster = 0;
    std::uint8_t directory_slot = 1;
    bool fresh = false;
    std::vector<std::uint32_t> words;
  };
  // Without a division: a first write looks here several times.
  std::uint32_t word(PageNo page) const {
    return clusters_[page >> geometry_.pages_shift].words[page & (geometry_.pages_per_cluster - 1)];
  }
  std::uint32_t& change(PageNo page) {
    touch_directory(page / geometry_.pages_per_cluster);
    return clusters_[page / geometry_.pages_per_cluster].words[page % geometry_.pages_per_cluster];
  }
  void mark_free(PageNo page);

  const Geometry& geometry_;
  DirtyPages& dirty_;
  std::vector<MetadataCluster> clusters_;
  std::vector<std::uint64_t> free_map_;
  std::uint32_t lowest_free_word_ = 0;  // no free page lies in a word before it
  std::uint32_t free_pages_ = 0;
};

}  // namespace pollux::blob
