#pragma once
// Where things lie on the device, computed from the few numbers of the superblock. Immutable but for cluster_count.

#include <cstdint>

#include "blob/format.h"

namespace pollux::blob {

struct Geometry {
  std::uint32_t cluster_bytes = 0;
  std::uint32_t cluster_shift = 0;
  std::uint32_t sub_block_shift = 0;
  std::uint32_t cluster_count = 0;
  std::uint32_t journal_clusters = 0;
  std::uint32_t zone_head_clusters = 0;
  std::uint32_t pages_per_cluster = 0;  // a power of two
  std::uint32_t pages_shift = 0;

  static Geometry from(std::uint32_t cluster_bytes, std::uint32_t cluster_count, std::uint64_t journal_bytes) {
    Geometry g;
    g.cluster_bytes = cluster_bytes;
    g.cluster_shift = static_cast<std::uint32_t>(std::countr_zero(cluster_bytes));
    g.sub_block_shift = static_cast<std::uint32_t>(std::countr_zero(sub_block_bytes(cluster_bytes)));
    g.cluster_count = cluster_count;
    g.journal_clusters = static_cast<std::uint32_t>(journal_bytes / cluster_bytes);
    g.zone_head_clusters = static_cast<std::uint32_t>(div_ceil<std::uint64_t>(kZoneRefcountBytes, cluster_bytes));
    g.pages_per_cluster = pages_per_metadata_cluster(cluster_bytes);
    g.pages_shift = static_cast<std::uint32_t>(std::countr_zero(g.pages_per_cluster));
    return g;
  }

  std::uint32_t zones() const { return div_ceil(cluster_count, kZoneClusters); }
  std::uint32_t refcount_pages() const { return div_ceil(cluster_count, kWordsPerPage); }
  // The first cluster of a zone's reference counts. A last zone too short to hold them does not exist: see
  // usable_clusters().
  ClusterNo zone_head(std::uint32_t zone) const { return zone == 0 ? 1 + journal_clusters : zone * kZoneClusters; }
  bool is_system(ClusterNo cluster) const {
    const std::uint32_t zone = cluster / kZoneClusters;
    if (zone == 0) return cluster < zone_head(0) + zone_head_clusters;
    return cluster - zone_head(zone) < zone_head_clusters;
  }
  std::uint64_t cluster_offset(ClusterNo cluster) const { return std::uint64_t{cluster} << cluster_shift; }
  std::uint64_t refcount_slot_offset(std::uint32_t page, unsigned slot) const {
    const std::uint32_t zone = page / kRefcountPagesPerZone;
    const std::uint32_t index = page % kRefcountPagesPerZone;
    return cluster_offset(zone_head(zone)) + (std::uint64_t{index} * 2 + slot) * kPageBytes;
  }
  // Sub-blocks [first, last] of a cluster as a mask.
  static std::uint64_t mask(std::uint32_t first, std::uint32_t last) {
    return (kAllBits >> (63 - (last - first))) << first;
  }
  // With fewer than 64 sub-blocks in a cluster the bits beyond count as set.
  std::uint64_t unused_bits() const {
    const std::uint32_t count = cluster_bytes >> sub_block_shift;
    return count == 64 ? 0 : kAllBits << count;
  }
};

// The largest device that a pool with clusters of this size can use whole, and the smallest size with which it can use
// this device whole; 0: none can.
constexpr std::uint64_t max_pool_bytes(std::uint32_t cluster_bytes) {
  return kMaxClusters * cluster_bytes;
}
constexpr std::uint32_t cluster_bytes_for(std::uint64_t device_bytes) {
  for (std::uint32_t bytes = kMinClusterBytes; bytes <= kMaxClusterBytes; bytes *= 2) {
    if (device_bytes / bytes <= kMaxClusters) return bytes;
  }
  return 0;
}

// How many clusters of a device a pool can use: a last zone must have room for more than its reference counts.
constexpr std::uint64_t usable_clusters(std::uint64_t device_bytes, std::uint32_t cluster_bytes) {
  std::uint64_t count = device_bytes / cluster_bytes;
  if (count > kMaxClusters) count = kMaxClusters;
  const std::uint64_t head = div_ceil<std::uint64_t>(kZoneRefcountBytes, cluster_bytes);
  const std::uint64_t tail = count % kZoneClusters;
  if (count > kZoneClusters && tail != 0 && tail <= head) count -= tail;
  return count;
}

}  // namespace pollux::blob
