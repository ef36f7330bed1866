// Making, opening, growing and closing a pool. The operations on volumes are in store.cpp.

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "blob/aligned_buffer.h"
#include "blob/page_codec.h"
#include "blob/reserve.h"
#include "blob/store.h"

namespace pollux::blob {

namespace {

constexpr std::uint64_t kMaxJournalBytes = 32 * kMiB;
constexpr std::uint64_t kMinJournalBytes = 1 * kMiB;
constexpr std::uint32_t kMaxInitialMetadataClusters = 8;
// Of a device that grew.
constexpr std::uint32_t kOpenedPerTurn = 65536;
constexpr std::size_t kSpareSlots = 8;

std::uint64_t journal_bytes_for(std::uint64_t device_bytes, std::uint64_t cluster_bytes) {
  const std::uint64_t wanted = std::clamp(device_bytes / 64, kMinJournalBytes, kMaxJournalBytes);
  return align_up(wanted, cluster_bytes);
}

// What is wrong with clusters of this size on this device, and what to do; empty when the pool can use all of it.
std::string too_many_clusters(std::uint64_t device_bytes, std::uint32_t cluster_bytes) {
  if (device_bytes / cluster_bytes <= kMaxClusters) return {};
  const std::uint32_t better = cluster_bytes_for(device_bytes);
  return "the device has " + std::to_string(device_bytes / kGiB) + " GiB, and a pool with clusters of " +
         std::to_string(cluster_bytes / kKiB) + " KiB can use " +
         std::to_string(max_pool_bytes(cluster_bytes) / kGiB) + " GiB of it; " +
         (better == 0 ? "divide the device: no pool can use all of it"
                      : "one with clusters of " + std::to_string(better / kKiB) + " KiB can use all of it");
}

}  // namespace

reactor::Task<Status> Store::format(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& on, FormatOptions options) {
  co_await on.enter();
  auto channel = co_await device->open_channel(on);
  if (!channel) co_return fail(std::move(channel.error()));
  Status done = co_await format_steps(*device, **channel, on, std::move(options));
  // This may run in a completion of the channel, which ends with this scope.
  co_await on.yield();
  co_return done;
}

reactor::Task<Status> Store::format_steps(bdev::Bdev& device, bdev::Channel& channel, reactor::Reactor& on,
                                          FormatOptions options) {
  const std::uint32_t cluster_bytes = options.cluster_bytes == 0 ? kDefaultClusterBytes : options.cluster_bytes;
  if (!std::has_single_bit(cluster_bytes) || cluster_bytes < kMinClusterBytes || cluster_bytes > kMaxClusterBytes) {
    co_return fail(ErrorCode::kInvalid, "the cluster size must be a power of two from 64 KiB to 4 MiB");
  }
  if (options.name.empty() || options.name.size() > kMaxNameBytes || options.id.is_nil()) {
    co_return fail(ErrorCode::kInvalid, "a pool needs an id and a name of 1 to 255 bytes");
  }
  if (std::string why = too_many_clusters(device.size_bytes(), cluster_bytes); !why.empty()) {
    co_return fail(ErrorCode::kInvalid, std::move(why));
  }
  const std::uint64_t journal_bytes = journal_bytes_for(device.size_bytes(), cluster_bytes);
  const auto clusters = static_cast<std::uint32_t>(usable_clusters(device.size_bytes(), cluster_bytes));
  const Geometry geometry = Geometry::from(cluster_bytes, clusters, journal_bytes);
  const std::uint32_t fixed = 1 + geometry.journal_clusters + geometry.zone_head_clusters;
  if (device.size_bytes() < kMinPoolBytes || clusters < fixed + 8) {
    co_return fail(
        ErrorCode::kInvalid,
        "the device is too small for a pool: " + std::to_string(device.size_bytes()) + " bytes, at least " +
            std::to_string(std::max<std::uint64_t>(kMinPoolBytes, std::uint64_t{fixed + 8} * cluster_bytes)) +
            " are needed with this cluster size");
  }

  // Before anything is lost. What is there stays as it is, unless the file system cannot promise room.
  for (const ByteRange& range : system_ranges(geometry, 0)) {
    POLLUX_CO_TRY(co_await reserve_new(device, channel, on, range));
  }
  // From here to the last step the device holds no pool, neither the old nor the new.
  POLLUX_CO_TRY(
      bdev::to_status(co_await bdev::write_zeroes(channel, 0, 2 * kSuperSlotStride), "erasing the superblock"));
  POLLUX_CO_TRY(bdev::to_status(co_await bdev::flush(channel), "flush"));
  for (std::uint32_t zone = 0; zone < geometry.zones(); ++zone) {
    POLLUX_CO_TRY(bdev::to_status(
        co_await bdev::write_zeroes(channel, geometry.cluster_offset(geometry.zone_head(zone)), kZoneRefcountBytes),
        "erasing the reference counts"));
  }
  // An older pool's commits cannot pass (other id), but a ring that starts with zeros is easier on the eye.
  POLLUX_CO_TRY(
      bdev::to_status(co_await bdev::write_zeroes(channel, cluster_bytes, kMinClusterBytes), "erasing the journal"));

  State state(geometry);
  state.refcounts.grow(clusters);
  state.refcounts.open_grown(0);
  const std::uint32_t metadata = std::clamp(clusters / 1024, 1U, kMaxInitialMetadataClusters);
  for (std::uint32_t number = 0; number < metadata; ++number) {
    const MetadataGrowRecord record{
        .header = {.type = RecordType::kMetadataGrow, .bytes = sizeof(MetadataGrowRecord), .volume = 0},
        .number = number,
        .cluster = *state.refcounts.allocate()};
    POLLUX_CO_TRY(co_await reserve_new(device, channel, on,
                                       {geometry.cluster_offset(record.cluster), geometry.cluster_bytes}));
    POLLUX_CO_TRY(state.apply(record.header));
  }

  Superblock super{};
  super.magic = kSuperMagic;
  super.version = kFormatVersion;
  super.pool_id = options.id;
  super.created_ms = options.created_ms;
  super.cluster_bytes = cluster_bytes;
  super.cluster_count = clusters;
  super.journal_offset = cluster_bytes;
  super.journal_bytes = journal_bytes;
  super.compatible_flags = options.discard ? 0 : kSuperNoDiscard;
  super.name_bytes = static_cast<std::uint32_t>(options.name.size());
  std::memcpy(super.name, options.name.data(), options.name.size());
  const JournalPosition start;
  Journal journal(channel,
                  {.ring_offset = super.journal_offset,
                   .ring_bytes = journal_bytes,
                   .pool_id = options.id,
                   .checksum_seed = checksum_seed(options.id),
                   .data = nullptr,
                   .on_half_full = {},
                   .on_committed = {},
                   .on_failed = {}},
                  start, start);
  Checkpointer first(state, journal, channel, on, super);
  co_return co_await first.run();
}

reactor::Task<Result<Superblock>> Store::probe(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& on) {
  co_await on.enter();
  auto channel = co_await device->open_channel(on);
  if (!channel) co_return fail(std::move(channel.error()));
  auto super = co_await read_super(**channel, device->size_bytes());
  co_await on.yield();
  co_return super;
}

reactor::Task<Result<std::unique_ptr<Store>>> Store::open(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& home,
                                                          OpenOptions options) {
  co_await home.enter();
  std::unique_ptr<Store> store(new Store(device, home, options));
  auto recovered = co_await store->load(Uuid{});
  if (!recovered) co_return fail(std::move(recovered.error()));
  store->cluster_bytes_ = recovered->super.cluster_bytes;
  store->lanes_.set_cluster_bytes(store->cluster_bytes_);
  auto lane = co_await store->lanes_.open(home);
  if (!lane) {
    co_await store->dispose(std::move(recovered->state));
    co_return fail(std::move(lane.error()));
  }
  store->lane_ = *lane;
  store->replayed_records_ = recovered->replayed_records;
  store->start(store->make_parts(std::move(*recovered)));
  co_return store;
}

reactor::Task<Result<Recovered>> Store::load(Uuid expected) {
  co_await loads_on_.enter();
  auto channel = co_await lanes_.device().open_channel(loads_on_);
  if (!channel) {
    co_await home().enter();
    co_return fail(std::move(channel.error()));
  }
  auto recovered = co_await load_steps(**channel, expected);
  // This may run in a completion of the channel.
  co_await loads_on_.yield();
  channel->reset();
  co_await home().enter();
  co_return recovered;
}

reactor::Task<Result<Recovered>> Store::load_steps(bdev::Channel& channel, Uuid expected) {
  bdev::Bdev& device = lanes_.device();
  auto super = co_await read_super(channel, device.size_bytes());
  if (!super) co_return fail(std::move(super.error()));
  if (!expected.is_nil() && super->pool_id != expected) {
    co_return fail(ErrorCode::kCorrupt, "the device holds another pool");
  }
  // Of a pool that was made without, or copied.
  const Geometry geometry = Geometry::from(super->cluster_bytes, super->cluster_count, super->journal_bytes);
  auto ranges = system_ranges(geometry, 0);
  ranges.resize(1);
  if (const auto reserved = co_await reserve_used(device, loads_on_, std::move(ranges)); !reserved) {
    log::warn("the journal of the pool on {} has no room of its own: {}", device.name(), reserved.error().message);
  }
  POLLUX_CO_TRY(open_queue(*super));
  auto recovered = co_await recover(channel, loads_on_, *super, Purpose::kUse, queue_.get());
  if (recovered) Publication::open_loaded(*recovered->state);
  co_return recovered;
}

// Once; a pool that is loaded again goes on with what its last journal left there.
Status Store::open_queue(const Superblock& super) {
  if (queue_ || !queue_source_) return {};
  const std::size_t chunk_bytes = Journal::chunk_bytes(super.journal_bytes);
  // More than is queued before changes are held back.
  const std::size_t slots = super.journal_bytes / 8 / chunk_bytes + kSpareSlots;
  auto memory = queue_source_(super.pool_id, JournalQueue::bytes_for(chunk_bytes, slots));
  if (!memory && (memory.error().code == ErrorCode::kUnsupported || memory.error().code == ErrorCode::kNoSpace)) {
    log::warn("pool on {}: first writes wait for its device, since memory cannot keep them while the service restarts: "
              "{}",
              lanes_.device().name(), memory.error().message);
    return {};
  }
  auto queue = memory ? JournalQueue::open(std::move(*memory), super.pool_id, chunk_bytes, slots)
                     : Result<std::unique_ptr<JournalQueue>>(fail(std::move(memory.error())));
  if (!queue) {
    return fail(queue.error().code, "what was answered before the service ended cannot be read: " +
                                       queue.error().message +
                                       "; start the version of the service that ended, or remove the file: guests "
                                       "then lose first writes of their last half second");
  }
  queue_ = std::move(*queue);
  return {};
}

reactor::Task<void> Store::dispose(std::unique_ptr<State> state) {
  co_await loads_on_.enter();
  state.reset();
  co_await home().enter();
}

Store::Parts Store::make_parts(Recovered recovered) {
  const Superblock& super = recovered.super;
  const std::uint32_t seed = checksum_seed(super.pool_id);
  bdev::Channel& channel = lane_->metadata();
  Journal::Options options{
      .ring_offset = super.journal_offset,
      .ring_bytes = super.journal_bytes,
      .pool_id = super.pool_id,
      .checksum_seed = seed,
      .data = &lane_->data(),
      .queue = queue_.get(),
      .queued = std::move(recovered.queued),
      .on_half_full = [this] { checkpointer_->want(); },
      .on_committed = [this] { committed(); },
      .on_failed = [this](const std::string& reason, Journal::Loss loss) { fail_changes(reason, loss); }};
  Parts parts;
  parts.state = std::move(recovered.state);
  parts.publication = std::make_unique<Publication>(*parts.state, Writer::kClusters);
  parts.journal = std::make_unique<Journal>(channel, std::move(options), recovered.tail, recovered.head);
  parts.checkpointer = std::make_unique<Checkpointer>(*parts.state, *parts.journal, channel, home(), super);
  parts.loader = std::make_unique<Loader>(*parts.state, channel, home(), seed, parts.checkpointer->number());
  parts.discarder = std::make_unique<Discarder>(*parts.state, *lane_, lanes_.data_device(), discard_pace_,
                                                (super.compatible_flags & kSuperNoDiscard) == 0,
                                                [this] { writer_->resume_space_waiters(); });
  parts.space = std::make_unique<Space>(*parts.state, *parts.publication, *parts.journal, lanes_, channel, *parts.discarder,
                                        Space::Events{.on_reclaimed = [this] { writer_->resume_space_waiters(); },
                                                      .on_settled = [this] { writer_->resume_settle_waiters(); }});
  parts.writer = std::make_unique<Writer>(*parts.state, *parts.publication, *parts.journal, *parts.loader,
                                          *parts.space, *lane_, longest_queued_us_);
  return parts;
}

void Store::start(Parts parts) {
  // Those that refer to others go first.
  writer_ = std::move(parts.writer);
  space_ = std::move(parts.space);
  if (discarder_) discarded_before_bytes_ += discarder_->discarded_bytes();
  discarder_ = std::move(parts.discarder);
  loader_ = std::move(parts.loader);
  checkpointer_ = std::move(parts.checkpointer);
  journal_ = std::move(parts.journal);
  publication_ = std::move(parts.publication);
  state_ = std::move(parts.state);
  for (const auto& [number, volume] : state_->volumes()) {
    if (volume->deleting()) empty_in_background(*volume);
  }
  space_->refill_stock();
  // What was in the queue.
  journal_->kick();
  ++background_;
  reactor::spawn(reserve_metadata(), [this] { --background_; });
}

// Room for the rest of what an older pool has, while guests are served.
reactor::Task<void> Store::reserve_metadata() {
  auto ranges = system_ranges(state_->geometry, 1);
  const auto clusters = ranges_of(state_->geometry, state_->pages.clusters_in_order());
  ranges.insert(ranges.end(), clusters.begin(), clusters.end());
  for (const ByteRange& range : ranges) {
    if (gate_.closed()) co_return;
    std::vector<ByteRange> one{range};
    const auto reserved = co_await reserve_used(lanes_.device(), home(), std::move(one));
    if (reserved) continue;
    log::warn("the metadata of pool '{}' has no room of its own: {}", name(), reserved.error().message);
    co_return;
  }
}

Result<reactor::Gate::Holder> Store::enter() {
  if (closing_) return fail(ErrorCode::kRetry, "pool '" + name() + "' is being closed: repeat the request");
  return gate_.enter("pool '" + name() + "' is being loaded again after a failure");
}

reactor::Task<Status> Store::commit(Journal::Data data) {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  co_return co_await journal_->commit(data);
}

reactor::Task<Status> Store::checkpoint() {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  co_return co_await checkpointer_->run();
}

reactor::Task<Status> Store::grow() {
  co_await home().enter();
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  auto guard = co_await structure_.lock();
  const std::uint64_t device_bytes = lanes_.device().size_bytes();
  const auto clusters = static_cast<std::uint32_t>(usable_clusters(device_bytes, state_->geometry.cluster_bytes));
  const std::uint32_t old = state_->geometry.cluster_count;
  if (clusters < old) {
    co_return fail(ErrorCode::kUnsupported,
                   "the device is smaller than the pool on it: " + std::to_string(device_bytes) + " bytes");
  }
  if (const std::string why = too_many_clusters(device_bytes, state_->geometry.cluster_bytes); !why.empty()) {
    log::warn("pool '{}' does not grow with all of its device: {}", name(), why);
  }
  if (clusters == old) co_return Status{};
  Geometry wider = state_->geometry;
  wider.cluster_count = clusters;
  for (std::uint32_t zone = state_->geometry.zones(); zone < wider.zones(); ++zone) {
    POLLUX_CO_TRY(co_await reserve_new(lanes_.device(), lane_->metadata(), home(),
                                       {wider.cluster_offset(wider.zone_head(zone)),
                                        std::uint64_t{wider.zone_head_clusters} * wider.cluster_bytes}));
    // Whatever lies there must not look like our pages.
    POLLUX_CO_TRY(bdev::to_status(
        co_await bdev::write_zeroes(lane_->metadata(), wider.cluster_offset(wider.zone_head(zone)), kZoneRefcountBytes),
        "erasing the reference counts of new space"));
  }
  state_->geometry.cluster_count = clusters;
  state_->refcounts.grow(clusters);
  POLLUX_CO_TRY(co_await checkpointer_->run());
  for (ClusterNo first = old; first < clusters; first += kOpenedPerTurn) {
    state_->refcounts.open_grown(first, kOpenedPerTurn);
    writer_->resume_space_waiters();
    co_await home().yield();
  }
  co_return Status{};
}

reactor::Task<Status> Store::close() {
  co_await home().enter();
  closing_ = true;
  co_await gate_.close();
  discarder_->stop();
  writer_->stop();
  // Background work looks at closing_ or the gate between steps; each turn of the reactor lets it take one.
  while (!idle()) co_await home().sleep_us(200);
  Status status;
  if (!fenced()) status = co_await checkpointer_->run();
  while (!idle()) co_await home().sleep_us(200);
  if (status && !fenced() && queue_) queue_->discard();
  co_await lanes_.close();
  co_return status;
}

}  // namespace pollux::blob
