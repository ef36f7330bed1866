#pragma once
// Refcounts: how many leaf entries name each cluster, and from that which clusters are free. The allocator of the pool.
//
// A cluster is in one of these conditions:
//   free       count 0, in the free map; allocate() takes it from there
//   taken      count 0, out of the free map: allocate() handed it out and no map entry names it yet; what is not mapped
//              in the end comes back with give_back()
//   used       count > 0
//   contested  used, and the count fell to 1 by a journal record that is not durable yet: the volume that gave the
//              cluster up may have it back after a crash, so its last owner is not alone until it is settled
//   released   count fell to 0, but the journal record that says so is not durable yet, or an I/O that looked the
//              cluster up earlier may still be on its way; the caller of collect_released() waits for both and then
//              calls make_free(). Also a free cluster that hold_free() keeps from being allocated until make_free() is
//              called for it
//
// A pool has up to 2^30 clusters, so only assign() goes through all of them.
// Home reactor only.

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/growing_array.h"
#include "blob/dirty_pages.h"
#include "blob/free_map.h"
#include "blob/geometry.h"

namespace pollux::blob {

class Refcounts {
 public:
  Refcounts(const Geometry& geometry, DirtyPages& dirty) : geometry_(geometry), dirty_(dirty) {}

  // Takes over the words of all clusters, at load; not on a reactor that serves.
  void assign(GrowingArray<std::uint32_t> words);
  // The pool grows: counts of the new clusters, with the zones' own clusters marked. The new ones are allocated only
  // after open_grown(), since until a checkpoint knows them no journal record may name them.
  void grow(std::uint32_t cluster_count);
  // Of the new clusters [first, first + count), as far as they are there.
  void open_grown(ClusterNo first, std::uint32_t count = kMaxClusters);

  std::uint32_t word(ClusterNo cluster) const { return words_[cluster]; }
  // True for a cluster that a map entry may name.
  bool is_data(ClusterNo cluster) const {
    return cluster < words_.size() && (words_[cluster] & kMetadataCluster) == 0 && words_[cluster] != kSystemCluster &&
           cluster != 0;
  }
  // One map entry names it, and never again another that a crash might bring back.
  bool alone(ClusterNo cluster) const { return words_[cluster] == 1 && !contested(cluster); }
  bool contested(ClusterNo cluster) const { return contested_[0].has(cluster) || contested_[1].has(cluster); }

  std::optional<ClusterNo> allocate();
  void give_back(ClusterNo cluster) { mark_free(cluster); }

  // References from leaf entries. Precondition: is_data(). False when the count would leave its range, which only
  // rotten metadata can cause.
  bool add(ClusterNo cluster);
  // `of_deleted`: of a volume whose deletion is durable, which never asks for the cluster again.
  bool drop(ClusterNo cluster, bool of_deleted = false);
  // For a repair: the references that were found.
  void repair(ClusterNo cluster, std::uint32_t refs);
  // From count 0.
  void set_metadata(ClusterNo cluster, std::uint32_t number);

  std::vector<ClusterNo> collect_released() { return std::exchange(released_, {}); }
  bool has_released() const { return !released_.empty(); }
  // Precondition: is_free().
  void hold_free(ClusterNo cluster) {
    take(cluster);
    ++released_count_;
  }
  bool is_free(ClusterNo cluster) const { return cluster < words_.size() && in_free_map(cluster); }
  // The free map, 64 clusters a word; 0 beyond its end.
  std::uint64_t free_word(std::size_t index) const { return free_.word(index); }
  std::size_t free_words() const { return free_.words(); }
  void make_free(const std::vector<ClusterNo>& clusters) {
    released_count_ -= static_cast<std::uint32_t>(clusters.size());
    for (ClusterNo cluster : clusters) mark_free(cluster);
  }

  // Begins with what is contested now. end_settling() follows when the records of before are durable and no I/O that
  // looked the clusters up earlier is on its way.
  void begin_settling() { settling_ ^= 1; }
  void end_settling() { contested_[settling_ ^ 1].clear(); }
  bool has_contested() const { return !contested_[0].list.empty() || !contested_[1].list.empty(); }

  std::uint32_t free_count() const { return free_.count(); }
  // Released and not free yet; they count as free space for what people see.
  std::uint32_t released_count() const { return released_count_; }
  std::uint32_t used_count() const { return used_count_; }
  std::uint32_t metadata_count() const { return metadata_count_; }
  std::uint32_t system_count() const { return system_count_; }
  std::uint32_t cluster_count() const { return static_cast<std::uint32_t>(words_.size()); }

  void serialize(std::uint32_t page, std::byte* bytes) const;
  // The slot that holds the valid version of each page: set at load, flipped by a checkpoint at its cut.
  void set_slot(std::uint32_t page, unsigned slot);
  unsigned flip_slot(std::uint32_t page);

 private:
  void set_word(ClusterNo cluster, std::uint32_t word) {
    dirty_.touch(PageKey::refcounts(cluster / kWordsPerPage));
    words_[cluster] = word;
  }
  struct Contested {
    GrowingArray<std::uint64_t> bits;
    std::vector<ClusterNo> list;

    bool has(ClusterNo cluster) const { return ((bits[cluster / 64] >> (cluster % 64)) & 1) != 0; }
    void add(ClusterNo cluster) {
      if (has(cluster)) return;
      bits[cluster / 64] |= 1ULL << (cluster % 64);
      list.push_back(cluster);
    }
    void clear() {
      for (ClusterNo cluster : list) bits[cluster / 64] = 0;
      list.clear();
    }
  };

  void mark_free(ClusterNo cluster);
  void mark_system(ClusterNo first);
  void take(ClusterNo cluster) { free_.remove(cluster); }
  bool in_free_map(ClusterNo cluster) const { return free_.has(cluster); }

  const Geometry& geometry_;
  DirtyPages& dirty_;
  GrowingArray<std::uint32_t> words_;
  FreeMap free_;
  std::vector<ClusterNo> released_;
  // [settling_]: what becomes contested; the other: what is being settled.
  Contested contested_[2];
  unsigned settling_ = 0;
  std::vector<std::uint8_t> slots_;
  // Word of the free map where the search goes on: neighbours in time become neighbours on disk.
  std::size_t cursor_ = 0;
  std::uint32_t used_count_ = 0;
  std::uint32_t metadata_count_ = 0;
  std::uint32_t system_count_ = 0;
  std::uint32_t released_count_ = 0;
};

}  // namespace pollux::blob
