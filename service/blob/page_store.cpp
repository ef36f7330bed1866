#include "blob/page_store.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>

namespace pollux::blob {

namespace {

// What a directory says of itself.
constexpr std::uint32_t kDirectoryWord = (static_cast<std::uint32_t>(PageType::kDirectory) << kDirTypeShift) | 1;

}  // namespace

std::vector<ClusterNo> PageStore::clusters_in_order() const {
  std::vector<ClusterNo> order;
  order.reserve(clusters_.size());
  for (const MetadataCluster& each : clusters_) order.push_back(each.cluster);
  std::sort(order.begin(), order.end());
  return order;
}

void PageStore::mark_free(PageNo page) {
  const std::uint32_t at = page / 64;
  if (at >= free_map_.size()) free_map_.resize(at + 1, 0);
  free_map_[at] |= 1ULL << (page % 64);
  if (at < lowest_free_word_) lowest_free_word_ = at;
  ++free_pages_;
}

void PageStore::add_cluster(ClusterNo cluster) {
  const std::uint32_t number = cluster_count();
  clusters_.push_back({.cluster = cluster,
                       .directory_slot = 1,
                       .fresh = true,
                       .words = std::vector<std::uint32_t>(geometry_.pages_per_cluster, 0)});
  touch_directory(number);
  clusters_.back().words[0] = kDirectoryWord;
  for (std::uint32_t i = 1; i < geometry_.pages_per_cluster; ++i) mark_free(directory_page(number) + i);
}

Status PageStore::load_cluster(ClusterNo cluster, const std::uint32_t* words, unsigned directory_slot) {
  const std::uint32_t number = cluster_count();
  clusters_.push_back({.cluster = cluster,
                       .directory_slot = static_cast<std::uint8_t>(directory_slot),
                       .fresh = false,
                       .words = std::vector<std::uint32_t>(words, words + geometry_.pages_per_cluster)});
  const auto impossible = [number](PageNo page) {
    return fail(ErrorCode::kCorrupt, "directory of metadata cluster " + std::to_string(number) + ": page " +
                                         std::to_string(page) + " has an impossible entry");
  };
  if (words[0] != kDirectoryWord) return impossible(directory_page(number));
  for (std::uint32_t i = 1; i < geometry_.pages_per_cluster; ++i) {
    const PageNo page = directory_page(number) + i;
    const PageType kind = type(page);
    const bool used = refs(page) != 0;
    if (used != (kind != PageType::kFree) ||
        (used && kind != PageType::kVolumes && kind != PageType::kIndex && kind != PageType::kLeaf) ||
        (used && kind != PageType::kLeaf && refs(page) != 1)) {
      return impossible(page);
    }
    if (!used) mark_free(page);
  }
  return {};
}

std::uint32_t PageStore::used_pages() const {
  return cluster_count() * (geometry_.pages_per_cluster - 1) - free_pages_;
}

PageNo PageStore::allocate(PageType type) {
  assert(free_pages_ > 0);
  while (free_map_[lowest_free_word_] == 0) ++lowest_free_word_;
  auto& word = free_map_[lowest_free_word_];
  const PageNo page = lowest_free_word_ * 64 + static_cast<std::uint32_t>(std::countr_zero(word));
  word &= word - 1;
  --free_pages_;
  std::uint32_t& entry = change(page);
  entry = (entry & kDirSlotBit) | (static_cast<std::uint32_t>(type) << kDirTypeShift) | 1;
  dirty_.touch(PageKey::metadata(page));
  return page;
}

void PageStore::add_ref(PageNo page) {
  assert(refs(page) > 0 && refs(page) < kDirRefsMask);
  ++change(page);
}

std::uint32_t PageStore::drop_ref(PageNo page) {
  assert(refs(page) > 0);
  if (refs(page) > 1) {
    --change(page);
    return refs(page);
  }
  // A checkpoint under way may still need the contents, which the owner drops after this.
  dirty_.touch(PageKey::metadata(page));
  change(page) &= kDirSlotBit;
  mark_free(page);
  return 0;
}

void PageStore::repair_refs(PageNo page, std::uint32_t refs) {
  if (refs == 0) {
    change(page) &= kDirSlotBit;
    mark_free(page);
  } else {
    change(page) = (word(page) & ~kDirRefsMask) | refs;
  }
}

void PageStore::repair_freed_leaf(PageNo page, std::uint32_t refs) {
  assert(type(page) == PageType::kFree && refs > 0);
  free_map_[page / 64] &= ~(1ULL << (page % 64));
  --free_pages_;
  std::uint32_t& entry = change(page);
  entry = (entry & kDirSlotBit) | (static_cast<std::uint32_t>(PageType::kLeaf) << kDirTypeShift) | refs;
  dirty_.touch(PageKey::metadata(page));
}

std::uint64_t PageStore::slot_offset(PageNo page, unsigned slot) const {
  const auto& home = clusters_[page / geometry_.pages_per_cluster];
  const std::uint32_t index = page % geometry_.pages_per_cluster;
  return geometry_.cluster_offset(home.cluster) + (std::uint64_t{index} * 2 + slot) * kPageBytes;
}

unsigned PageStore::flip_slot(PageNo page) {
  change(page) ^= kDirSlotBit;
  return valid_slot(page);
}

unsigned PageStore::flip_directory_slot(std::uint32_t cluster) {
  return clusters_[cluster].directory_slot ^= 1;
}

bool PageStore::take_fresh(std::uint32_t cluster) {
  return std::exchange(clusters_[cluster].fresh, false);
}

void PageStore::serialize_directory(std::uint32_t cluster, std::byte* bytes) const {
  const auto& words = clusters_[cluster].words;
  std::memcpy(bytes + sizeof(PageHeader), words.data(), words.size() * sizeof(std::uint32_t));
}

}  // namespace pollux::blob
