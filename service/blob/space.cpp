#include "blob/space.h"

#include <algorithm>

#include "base/log.h"
#include "blob/reserve.h"

namespace pollux::blob {

namespace {

// What is kept for metadata at least; and how many of them are ready, at most: enough for a burst of new leaves.
constexpr std::uint64_t kMinReserve = 2;
constexpr std::uint64_t kMaxStock = 8;

}  // namespace

std::uint64_t Space::kept_for_metadata() const {
  const std::uint64_t wanted = state_.refcounts.cluster_count() / 1024;
  const std::uint64_t have = state_.refcounts.metadata_count();
  return kMinReserve + (wanted > have ? wanted - have : 0);
}

std::uint64_t Space::metadata_reserve() const {
  const std::uint64_t kept = kept_for_metadata();
  return kept > out_for_stock_ ? kept - out_for_stock_ : 0;
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

std::optional<ClusterNo> Space::take_for_metadata() {
  if (!stock_.empty()) {
    const ClusterNo cluster = stock_.back();
    stock_.pop_back();
    --out_for_stock_;
    return cluster;
  }
  if (no_room_) return std::nullopt;
  const auto cluster = state_.refcounts.allocate();
  // A burst was faster than the stock is filled: this one gets its room while it is already in use.
  if (cluster) reactor::spawn(reserve_late(*cluster));
  return cluster;
}

reactor::Task<void> Space::reserve_late(ClusterNo cluster) {
  ++reserving_;
  const auto ranges = ranges_of(state_.geometry, {cluster});
  if (const auto reserved = co_await reserve_used(lanes_.device(), lanes_.home(), ranges); !reserved) {
    log::warn("{}", reserved.error().message);
    no_room_ = true;
  }
  --reserving_;
}

reactor::Task<Status> Space::add_to_stock() {
  const auto cluster = state_.refcounts.allocate();
  if (!cluster) co_return fail(ErrorCode::kNoSpace, "the pool has no space left for metadata");
  ++reserving_;
  ++out_for_stock_;
  const ByteRange range{state_.geometry.cluster_offset(*cluster), state_.geometry.cluster_bytes};
  Status reserved = co_await reserve_new(lanes_.device(), metadata_, lanes_.home(), range);
  --reserving_;
  if (!reserved) {
    --out_for_stock_;
    state_.refcounts.give_back(*cluster);
    if (!std::exchange(no_room_, true)) log::warn("no room for more metadata: {}", reserved.error().message);
    co_return fail(ErrorCode::kNoSpace, reserved.error().message);
  }
  no_room_ = false;
  stock_.push_back(*cluster);
  co_return Status{};
}

void Space::refill_stock() {
  if (refilling_ || journal_.failed() || stock_.size() >= std::min(kept_for_metadata(), kMaxStock)) return;
  refilling_ = true;
  reactor::spawn(run_refill());
}

reactor::Task<void> Space::run_refill() {
  while (stock_.size() < std::min(kept_for_metadata(), kMaxStock)) {
    if (const Status added = co_await add_to_stock(); !added) break;
  }
  refilling_ = false;
}

reactor::Task<Status> Space::prepare_pages(std::uint32_t count) {
  const std::uint32_t per_cluster = state_.geometry.pages_per_cluster - 1;
  while (state_.pages.free_pages() + std::uint64_t{stock_.size()} * per_cluster < count) {
    POLLUX_CO_TRY(co_await add_to_stock());
  }
  co_return Status{};
}

Status Space::ensure_pages(std::uint32_t count) {
  while (state_.pages.free_pages() < count) {
    const auto cluster = take_for_metadata();
    refill_stock();
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

bool Space::has_reclaimable() const {
  return state_.refcounts.has_released() || state_.has_retired() || publication_.has_retired();
}

bool Space::reclaim() {
  if (reclaiming_) return true;
  if (journal_.failed()) return false;
  if (!has_reclaimable()) return discarder_.holds_clusters();
  reclaiming_ = true;
  reactor::spawn(run_reclaim());
  return true;
}

reactor::Task<void> Space::run_reclaim() {
  while (has_reclaimable()) {
    const auto clusters = state_.refcounts.collect_released();
    {
      const auto leaves = state_.collect_retired();
      const auto tables = publication_.collect_retired();
      // A crash before this commit brings the clusters back to who had them, with their contents untouched.
      const auto committed = co_await journal_.commit();
      co_await lanes_.grace();
      if (!committed) break;
    }
    state_.refcounts.make_free(clusters);
    discarder_.freed(clusters);
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
