#include "blob/refcounts.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace pollux::blob {

void Refcounts::assign(GrowingArray<std::uint32_t> words) {
  words_ = std::move(words);
  free_ = FreeMap(cluster_count());
  for (Contested& each : contested_) each = {.bits = GrowingArray<std::uint64_t>(free_.words()), .list = {}};
  released_.clear();
  cursor_ = 0;
  used_count_ = metadata_count_ = system_count_ = released_count_ = 0;
  for (ClusterNo cluster = 0; cluster < words_.size(); ++cluster) {
    const std::uint32_t word = words_[cluster];
    if (word == 0) {
      mark_free(cluster);
    } else if (word == kSystemCluster) {
      ++system_count_;
    } else if (word & kMetadataCluster) {
      ++metadata_count_;
    } else {
      ++used_count_;
    }
  }
}

void Refcounts::grow(std::uint32_t cluster_count) {
  const auto first = static_cast<ClusterNo>(words_.size());
  assert(cluster_count >= first);
  // A page that changes must be touched before; a page that is new has nothing to save.
  for (std::uint32_t page = first / kWordsPerPage; page < div_ceil(cluster_count, kWordsPerPage); ++page) {
    dirty_.touch(PageKey::refcounts(page));
  }
  words_.grow(cluster_count);
  free_.grow(cluster_count);
  for (Contested& each : contested_) each.bits.grow(free_.words());
  mark_system(first);
}

// Only the head of a zone is not for data.
void Refcounts::mark_system(ClusterNo first) {
  for (std::uint32_t zone = first / kZoneClusters; zone * kZoneClusters < words_.size(); ++zone) {
    const ClusterNo begin = std::max(first, zone * kZoneClusters);
    for (ClusterNo cluster = begin; cluster < words_.size() && geometry_.is_system(cluster); ++cluster) {
      words_[cluster] = kSystemCluster;
      ++system_count_;
    }
  }
}

void Refcounts::open_grown(ClusterNo first, std::uint32_t count) {
  const ClusterNo end = first + std::min(count, cluster_count() - first);
  for (ClusterNo cluster = first; cluster < end; ++cluster) {
    if (words_[cluster] == 0) mark_free(cluster);
  }
}

void Refcounts::mark_free(ClusterNo cluster) {
  assert(words_[cluster] == 0 && !in_free_map(cluster));
  free_.add(cluster);
}

std::optional<ClusterNo> Refcounts::allocate() {
  if (free_.count() == 0) return std::nullopt;
  const ClusterNo cluster = free_.find(cursor_);
  cursor_ = cluster / 64;
  take(cluster);
  return cluster;
}

bool Refcounts::add(ClusterNo cluster) {
  const std::uint32_t word = words_[cluster];
  if (word >= kMaxRefs) return false;
  if (word == 0) {
    // While running the cluster was taken before; a journal that is replayed names a free one.
    if (in_free_map(cluster)) take(cluster);
    ++used_count_;
  }
  set_word(cluster, word + 1);
  return true;
}

bool Refcounts::drop(ClusterNo cluster, bool of_deleted) {
  const std::uint32_t word = words_[cluster];
  if (word == 0 || word >= kMaxRefs) return false;
  set_word(cluster, word - 1);
  if (word == 2 && !of_deleted) contested_[settling_].add(cluster);
  if (word == 1) {
    --used_count_;
    ++released_count_;
    released_.push_back(cluster);
  }
  return true;
}

void Refcounts::set_metadata(ClusterNo cluster, std::uint32_t number) {
  assert(words_[cluster] == 0);
  if (in_free_map(cluster)) take(cluster);
  set_word(cluster, kMetadataCluster | number);
  ++metadata_count_;
}

void Refcounts::repair(ClusterNo cluster, std::uint32_t refs) {
  const std::uint32_t old = words_[cluster];
  set_word(cluster, refs);
  if (old == 0 && refs != 0) {
    take(cluster);
    ++used_count_;
  } else if (old != 0 && refs == 0) {
    --used_count_;
    mark_free(cluster);
  }
}

void Refcounts::serialize(std::uint32_t page, std::byte* bytes) const {
  const std::size_t first = std::size_t{page} * kWordsPerPage;
  // Beyond the end of the pool the words are zero.
  if (first >= words_.size()) return;
  const std::size_t count = std::min<std::size_t>(kWordsPerPage, words_.size() - first);
  std::memcpy(bytes + sizeof(PageHeader), &words_[first], count * sizeof(std::uint32_t));
}

void Refcounts::set_slot(std::uint32_t page, unsigned slot) {
  if (page >= slots_.size()) slots_.resize(page + 1, 1);
  slots_[page] = static_cast<std::uint8_t>(slot);
}

unsigned Refcounts::flip_slot(std::uint32_t page) {
  if (page >= slots_.size()) slots_.resize(page + 1, 1);
  return slots_[page] ^= 1;
}

}  // namespace pollux::blob
