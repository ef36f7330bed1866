#include "blob/store.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <iterator>

#include "base/log.h"
#include "blob/page_codec.h"

namespace pollux::blob {

namespace {

// More than this many changed pages, and a checkpoint is due however empty the journal is: it bounds what a crash makes
// the next start write, and the memory a cut may need.
constexpr std::size_t kMaxDirtyPages = 16384;
// How far, in percent, a pool has to fall below a watermark before it warns of that one again.
constexpr unsigned kCalmPercent = 2;
// Metadata pages that one structural change needs at most besides a fork's or resize's index pages.
constexpr std::uint32_t kPagesPerChange = 2;

VolumeCreateRecord make_create(const CreateOptions& options, VolumeNo number) {
  auto record = make_record<VolumeCreateRecord>(RecordType::kVolumeCreate, number);
  record.id = options.id;
  record.size_bytes = options.size_bytes;
  record.created_ms = options.created_ms;
  record.flags =
      static_cast<std::uint8_t>((options.thick ? kVolumeThick : 0) | (options.snapshot ? kVolumeSnapshot : 0));
  record.block_shift =
      options.block_bytes == 0 ? 0 : static_cast<std::uint8_t>(std::countr_zero(options.block_bytes));
  record.name_bytes = static_cast<std::uint8_t>(options.name.size());
  std::memcpy(record.name, options.name.data(), options.name.size());
  return record;
}

std::uint32_t index_pages(const Volume& volume) {
  return static_cast<std::uint32_t>(volume.index_pages.size());
}

}  // namespace

Store::Store(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& home, const OpenOptions& options)
    : gate_(home),
      loads_on_(options.loads_on != nullptr ? *options.loads_on : home),
      queue_source_(options.queue),
      longest_queued_us_(options.longest_queued_us),
      lanes_(std::move(device), home, options.data_layer),
      loss_log_(options.losses),
      discard_pace_(options.discard_pace) {}
Store::~Store() = default;

std::string Store::name() const {
  return {super().name, super().name_bytes};
}

Result<Volume*> Store::live(const Uuid& id) const {
  Volume* volume = state_->find(id);
  if (volume == nullptr) return fail(ErrorCode::kNotFound, "volume " + id.to_string() + " does not exist");
  return volume;
}

// Applies a record and queues it. An error leaves the state half changed, so the store takes no more.
Status Store::change(const RecordHeader& record) {
  if (journal_->failed()) {
    return fail(ErrorCode::kIoError, "pool '" + name() + "' has failed and takes no changes: " + failure_->reason);
  }
  if (auto applied = state_->apply(record); !applied) {
    journal_->give_up(applied.error().message, Journal::Loss::kNone);
    return fail(ErrorCode::kInternal, applied.error().message);
  }
  journal_->append(record);
  return {};
}

Status Store::check_create(const CreateOptions& options) const {
  if (options.id.is_nil()) return fail(ErrorCode::kInvalid, "a volume needs an id");
  if (options.name.empty() || options.name.size() > kMaxNameBytes) {
    return fail(ErrorCode::kInvalid, "the name must have 1 to 255 bytes");
  }
  if (options.size_bytes == 0 || options.size_bytes % kPageBytes != 0) {
    return fail(ErrorCode::kInvalid, "the size must be a multiple of 4096 bytes and not 0");
  }
  if (options.block_bytes != 0 && options.block_bytes != 512 && options.block_bytes != 4096) {
    return fail(ErrorCode::kInvalid,
                "a volume has blocks of 512 or 4096 bytes, not " + std::to_string(options.block_bytes));
  }
  if (options.size_bytes / state_->geometry.cluster_bytes >= kMaxVolumeClusters) {
    return fail(ErrorCode::kInvalid, "the largest volume of this pool has " +
                                         std::to_string(kMaxVolumeClusters * state_->geometry.cluster_bytes / kGiB) +
                                         " GiB; a pool with larger clusters can have larger ones");
  }
  if (state_->find(options.id) != nullptr) {
    return fail(ErrorCode::kExists, "volume " + options.id.to_string() + " exists already");
  }
  if (state_->find_name(options.name) != nullptr) {
    return fail(ErrorCode::kExists, "the pool has a volume with the name '" + options.name + "' already");
  }
  return {};
}

Status Store::check_promise(std::uint64_t clusters) const {
  if (clusters <= space_->available()) return {};
  return fail(ErrorCode::kNoSpace,
              "pool '" + name() + "' has " + std::to_string(space_->available() * state_->geometry.cluster_bytes) +
                  " bytes left, " + std::to_string(clusters * state_->geometry.cluster_bytes) + " are needed");
}

Status Store::no_metadata_space(Status made) const {
  if (made || made.error().code != ErrorCode::kNoSpace) return made;
  return fail(ErrorCode::kNoSpace, "pool '" + name() +
                                       "' has no space left for metadata; delete volumes or snapshots, or grow its "
                                       "device: " +
                                       made.error().message);
}

Status Store::make_pages(std::uint32_t count) {
  return no_metadata_space(space_->ensure_pages(count));
}

reactor::Task<Status> Store::prepare_pages(std::uint32_t count) {
  co_return no_metadata_space(co_await space_->prepare_pages(count));
}

Status Store::check_unused(const Volume& volume) const {
  if (volume.view) {
    return fail(ErrorCode::kBusy, "volume " + volume.id.to_string() + " is in use; detach it first");
  }
  if (volume.pinned) {
    return fail(ErrorCode::kBusy,
                "volume " + volume.id.to_string() + " has a job running; wait for it or cancel the job");
  }
  return {};
}

reactor::Task<Result<Volume*>> Store::create(CreateOptions options) {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  VolumeNo made = 0;
  {
    auto guard = co_await structure_.lock();
    POLLUX_CO_TRY(check_create(options));
    POLLUX_CO_TRY(co_await prepare_pages(kPagesPerChange));
    if (options.thick) POLLUX_CO_TRY(check_promise(state_->clusters_of(options.size_bytes)));
    POLLUX_CO_TRY(make_pages(kPagesPerChange));
    const auto record = make_create(options, state_->next_volume_number());
    POLLUX_CO_TRY(change(record.header));
    made = state_->find(options.id)->number;
    state_->find(made)->durable = false;
  }
  POLLUX_CO_TRY(co_await journal_->commit());
  if (Volume* volume = state_->find(made); volume != nullptr && volume->id == options.id) {
    volume->durable = true;
    co_return volume;
  }
  co_return fail(ErrorCode::kNotFound, "volume " + options.id.to_string() + " was deleted meanwhile");
}

reactor::Task<Result<Volume*>> Store::fork(Uuid source_id, CreateOptions options) {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  {
    auto guard = co_await structure_.lock();
    auto found = live(source_id);
    if (!found) co_return fail(std::move(found.error()));
    Volume& source = **found;
    if (options.size_bytes == 0) options.size_bytes = source.size_bytes;
    options.block_bytes = source.block_shift == 0 ? 0 : 1U << source.block_shift;
    POLLUX_CO_TRY(check_create(options));
    if (options.size_bytes < source.size_bytes) {
      co_return fail(ErrorCode::kInvalid, "a clone cannot be smaller than its source, which has " +
                                              std::to_string(source.size_bytes) + " bytes");
    }
    POLLUX_CO_TRY(co_await loader_->index(source));
    const std::uint32_t index =
        static_cast<std::uint32_t>(div_ceil<std::size_t>(state_->leaves_of(options.size_bytes), kWordsPerPage));

    POLLUX_CO_TRY(co_await prepare_pages(kPagesPerChange + index));

    // Writes that looked at the map before stand in the source's clusters when the fork shares them; later ones wait.
    if (source.view) {
      publication_->freeze(source);
      co_await lanes_.grace();
    }
    const auto cut = [&]() -> Status {
      // What the source may overwrite again has to find new clusters; the same for the new volume if it is thick.
      std::uint64_t promise = options.thick ? state_->clusters_of(options.size_bytes) : 0;
      if (source.thick() && !source.snapshot()) promise += source.charged;
      POLLUX_TRY(check_promise(promise));
      POLLUX_TRY(make_pages(kPagesPerChange + index));
      auto record = make_record<ForkRecord>(RecordType::kFork, state_->next_volume_number());
      record.source = source.number;
      record.create = make_create(options, 0);
      POLLUX_TRY(change(record.header));
      state_->find(options.id)->durable = false;
      return {};
    };
    const Status done = cut();
    if (source.view) {
      publication_->thaw(source);
      writer_->resume(source.parked);
    }
    POLLUX_CO_TRY(done);
  }
  // What the source held at the cut is part of what becomes durable, in place as it may have been written.
  POLLUX_CO_TRY(co_await journal_->commit(Journal::Data::kFlush));
  auto made = live(options.id);
  if (made) (*made)->durable = true;
  co_return made;
}

reactor::Task<Status> Store::remove(Uuid id) {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  {
    auto guard = co_await structure_.lock();
    auto found = live(id);
    if (!found) co_return fail(std::move(found.error()));
    Volume& volume = **found;
    POLLUX_CO_TRY(check_unused(volume));
    POLLUX_CO_TRY(change(make_record<VolumeOnlyRecord>(RecordType::kDelete, volume.number).header));
    empty_in_background(volume);
  }
  co_return co_await journal_->commit();
}

reactor::Task<Status> Store::resize(Uuid id, std::uint64_t size_bytes) {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  {
    auto guard = co_await structure_.lock();
    auto found = live(id);
    if (!found) co_return fail(std::move(found.error()));
    Volume& volume = **found;
    if (volume.snapshot()) co_return fail(ErrorCode::kInvalid, "a snapshot cannot be resized");
    if (size_bytes % kPageBytes != 0 || size_bytes / state_->geometry.cluster_bytes >= kMaxVolumeClusters) {
      co_return fail(ErrorCode::kInvalid, "the size must be a multiple of 4096 bytes and within the pool's limit");
    }
    if (size_bytes < volume.size_bytes) {
      co_return fail(ErrorCode::kInvalid,
                     "a volume cannot shrink; it has " + std::to_string(volume.size_bytes) + " bytes");
    }
    if (size_bytes > volume.size_bytes) {
      POLLUX_CO_TRY(co_await loader_->index(volume));
      POLLUX_CO_TRY(co_await prepare_pages(kPagesPerChange));
      if (volume.thick()) {
        POLLUX_CO_TRY(check_promise(state_->clusters_of(size_bytes) - state_->clusters_of(volume.size_bytes)));
      }
      POLLUX_CO_TRY(make_pages(kPagesPerChange));
      auto record = make_record<ResizeRecord>(RecordType::kResize, volume.number);
      record.size_bytes = size_bytes;
      POLLUX_CO_TRY(change(record.header));
      space_->reclaim();
    }
  }
  co_return co_await journal_->commit();
}

reactor::Task<Status> Store::set_qos(Uuid id, Qos qos, Bursts bursts) {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  auto found = live(id);
  if (!found) co_return fail(std::move(found.error()));
  auto record = make_record<SetQosRecord>(RecordType::kSetQos, (*found)->number);
  record.qos = qos;
  auto with_bursts = make_record<SetBurstsRecord>(RecordType::kSetBursts, (*found)->number);
  with_bursts.bursts = bursts;
  const bool other_bursts = std::memcmp(&bursts, &(*found)->bursts, sizeof(bursts)) != 0;
  if (other_bursts && (*found)->name.size() > kMaxNameWithBurstsBytes) {
    co_return fail(ErrorCode::kInvalid, "bursts need a volume whose name has at most " +
                                            std::to_string(kMaxNameWithBurstsBytes) + " bytes");
  }
  POLLUX_CO_TRY(change(record.header));
  if (other_bursts) POLLUX_CO_TRY(change(with_bursts.header));
  co_return co_await journal_->commit();
}

reactor::Task<Status> Store::revert(Uuid id, Uuid snapshot_id) {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  {
    auto guard = co_await structure_.lock();
    auto found = live(id);
    if (!found) co_return fail(std::move(found.error()));
    auto from = live(snapshot_id);
    if (!from) co_return fail(std::move(from.error()));
    Volume& volume = **found;
    Volume& snapshot = **from;
    if (!snapshot.snapshot() || snapshot.parent_id != volume.id) {
      co_return fail(ErrorCode::kInvalid, snapshot_id.to_string() + " is not a snapshot of volume " + id.to_string());
    }
    POLLUX_CO_TRY(check_unused(volume));
    POLLUX_CO_TRY(co_await loader_->index(volume));
    POLLUX_CO_TRY(co_await loader_->index(snapshot));
    POLLUX_CO_TRY(co_await prepare_pages(kPagesPerChange + index_pages(volume)));
    if (volume.thick()) POLLUX_CO_TRY(check_promise(volume.charged));
    POLLUX_CO_TRY(make_pages(kPagesPerChange + index_pages(volume)));
    auto record = make_record<RevertRecord>(RecordType::kRevert, volume.number);
    record.snapshot = snapshot.number;
    record.trash = state_->next_volume_number();
    record.trash_id = Uuid::random();
    POLLUX_CO_TRY(change(record.header));
    for (const auto& [number, each] : state_->volumes()) {
      if (each->id == record.trash_id) {
        empty_in_background(*each);
        break;
      }
    }
  }
  co_return co_await journal_->commit();
}

reactor::Task<Result<Volume*>> Store::view(Uuid id) {
  auto inside = enter();
  if (!inside) co_return fail(std::move(inside.error()));
  auto guard = co_await structure_.lock();
  auto found = live(id);
  if (!found) co_return found;
  Volume& volume = **found;
  // A volume that somebody uses must be there when the pool is loaded again.
  if (!volume.durable) POLLUX_CO_TRY(co_await journal_->commit());
  POLLUX_CO_TRY(co_await loader_->index(volume));
  if (!volume.view) {
    volume.losses_told = losses_;
    publication_->show(volume);
  }
  ++volume.opens;
  co_return &volume;
}

void Store::unview(Volume& volume) {
  assert(volume.opens > 0);
  if (--volume.opens == 0) volume.view.reset();
}

std::uint32_t Store::used_percent() const {
  const std::uint64_t capacity = std::uint64_t{state_->refcounts.cluster_count()} - state_->refcounts.system_count();
  return static_cast<std::uint32_t>(100 - std::min<std::uint64_t>(100 * space_->available() / capacity, 100));
}

// Warns once for each watermark that is passed, again when it was left by kCalmPercent in between.
void Store::watch_space() {
  const std::uint32_t used = used_percent();
  constexpr std::size_t kCount = std::size(kWatermarksPercent);
  while (passed_ > 0 && used + kCalmPercent < kWatermarksPercent[passed_ - 1]) --passed_;
  if (passed_ == kCount || used < kWatermarksPercent[passed_]) return;
  while (passed_ < kCount && used >= kWatermarksPercent[passed_]) ++passed_;
  log::warn("pool '{}' is {} % full: {} MiB are left; delete something or grow its device", name(), used,
            space_->available() * state_->geometry.cluster_bytes / kMiB);
}

void Store::committed() {
  watch_space();
  if (state_->dirty.pending().size() > kMaxDirtyPages) checkpointer_->want();
  space_->reclaim();
  space_->settle();
  writer_->resume_backlog();
}

Usage Store::usage() const {
  const std::uint64_t cluster = state_->geometry.cluster_bytes;
  const Refcounts& counts = state_->refcounts;
  Usage usage;
  usage.capacity_bytes = (std::uint64_t{counts.cluster_count()} - counts.system_count()) * cluster;
  usage.free_bytes = space_->available() * cluster;
  usage.allocated_bytes = std::uint64_t{counts.used_count()} * cluster;
  usage.reserved_bytes = state_->reserved_clusters() * cluster;
  usage.metadata_bytes = (std::uint64_t{counts.metadata_count()} + counts.system_count()) * cluster;
  for (const auto& [number, volume] : state_->volumes()) {
    if (volume->deleting()) continue;
    usage.provisioned_bytes += volume->size_bytes;
    ++(volume->snapshot() ? usage.snapshots : usage.volumes);
  }
  usage.used_percent = used_percent();
  usage.discarded_bytes = discarded_before_bytes_ + discarder_->discarded_bytes();
  usage.discard_pending_bytes = discarder_->noted() * cluster;
  for (std::uint32_t watermark : kWatermarksPercent) {
    if (usage.used_percent >= watermark) usage.watermark_percent = watermark;
  }
  return usage;
}

}  // namespace pollux::blob
