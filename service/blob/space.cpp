#include "blob/space.h"

namespace pollux::blob {

std::uint64_t Space::metadata_reserve() const {
  const std::uint64_t wanted = state_.refcounts.cluster_count() / 1024;
  const std::uint64_t have = state_.refcounts.metadata_count();
  return 2 + (wanted > have ? wanted - have : 0);
}

std::optional<ClusterNo> Space::allocate(const Volume& volume) {
  // What a thick volume takes comes out of its own promise.
  const std::uint64_t promised = state_.reservation(volume) > 0 ? 0 : state_.reserved_clusters();
  if (state_.refcounts.free_count() <= promised + metadata_reserve()) return std::nullopt;
  return state_.refcounts.allocate();
}

std::uint64_t Space::available() const {
  const std::uint64_t free = std::uint64_t{state_.refcounts.free_count()} + state_.refcounts.released_count();
  const std::uint64_t taken = state_.reserved_clusters() + metadata_reserve();
  return free > taken ? free - taken : 0;
}

Status Space::ensure_pages(std::uint32_t count) {
  while (state_.pages.free_pages() < count) {
    const auto cluster = state_.refcounts.allocate();
    if (!cluster) return fail(ErrorCode::kNoSpace, "the pool has no space left for metadata");
    const MetadataGrowRecord record{
        .header = {.type = RecordType::kMetadataGrow, .bytes = sizeof(MetadataGrowRecord), .volume = 0},
        .number = state_.pages.cluster_count(),
        .cluster = *cluster};
    if (auto applied = state_.apply(record.header); !applied) {
      state_.refcounts.give_back(*cluster);
      return applied;
    }
    journal_.append(record.header);
  }
  return {};
}

bool Space::reclaim() {
  if (reclaiming_) return true;
  if (journal_.failed() || (!state_.refcounts.has_released() && !state_.has_retired())) return false;
  reclaiming_ = true;
  reactor::spawn(run_reclaim());
  return true;
}

reactor::Task<void> Space::run_reclaim() {
  while (state_.refcounts.has_released() || state_.has_retired()) {
    const auto clusters = state_.refcounts.collect_released();
    {
      const auto retired = state_.collect_retired();
      // A crash before this commit brings the clusters back to who had them, with their contents untouched.
      const auto committed = co_await journal_.commit();
      co_await lanes_.grace();
      if (!committed) break;
    }
    state_.refcounts.make_free(clusters);
    events_.on_reclaimed();
  }
  reclaiming_ = false;
  events_.on_reclaimed();
}

void Space::settle() {
  if (settling_ || journal_.failed() || !state_.refcounts.has_contested()) return;
  settling_ = true;
  reactor::spawn(run_settle());
}

reactor::Task<void> Space::run_settle() {
  while (state_.refcounts.has_contested()) {
    state_.refcounts.begin_settling();
    // A crash before this commit gives the clusters back to who let them go, who must find them as they were.
    const auto committed = co_await journal_.commit();
    co_await lanes_.grace();
    if (!committed) break;
    state_.refcounts.end_settling();
    events_.on_settled();
  }
  settling_ = false;
  events_.on_settled();
}

}  // namespace pollux::blob
