#include "blob/recovery.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/crc32c.h"
#include "base/growing_array.h"
#include "base/log.h"
#include "blob/aligned_buffer.h"
#include "blob/loader.h"
#include "blob/page_codec.h"
#include "blob/parallel.h"

namespace pollux::blob {

namespace {

constexpr std::size_t kReadsInFlight = 64;
constexpr std::size_t kRingReadBytes = 1 * kMiB;

class Recovery {
 public:
  Recovery(bdev::Channel& channel, reactor::Reactor& home, const Superblock& super, Purpose purpose, JournalQueue* queue)
      : channel_(channel),
        home_(home),
        super_(super),
        purpose_(purpose),
        queue_(queue),
        seed_(checksum_seed(super.pool_id)) {}

  reactor::Task<Result<Recovered>> run() {
    auto geometry = Geometry::from(super_.cluster_bytes, super_.cluster_count, super_.journal_bytes);
    state_ = std::make_unique<State>(geometry);
    if (purpose_ == Purpose::kCheck) state_->keep_freed_leaves();
    loader_ = std::make_unique<Loader>(*state_, channel_, home_, seed_, super_.checkpoint);
    POLLUX_CO_TRY(co_await read_refcounts());
    POLLUX_CO_TRY(co_await read_directories());
    POLLUX_CO_TRY(co_await read_volumes());
    const JournalPosition tail{super_.replay_offset, super_.replay_sequence, super_.replay_previous_crc};
    head_ = tail;
    POLLUX_CO_TRY(co_await replay());
    POLLUX_CO_TRY(co_await apply_queue());
    if (purpose_ == Purpose::kUse) {
      if (auto names = state_->check_names(); !names) {
        co_return fail(ErrorCode::kCorrupt, names.error().message + "; a check with repair may put that right");
      }
    }
    co_return Recovered{super_, std::move(state_), tail, head_, std::move(queued_), records_};
  }

 private:
  // The two slots of a page lie side by side: the newer of the valid ones wins.
  struct Choice {
    const std::byte* page = nullptr;
    unsigned slot = 0;
    // The other slot is left over from a checkpoint that did not finish, and would look valid after the next one
    // unless that writes it.
    bool leftover = false;
  };
  Choice choose(const std::byte* pair, PageType type, std::uint64_t number) const {
    Choice choice;
    std::uint64_t best = 0;
    for (unsigned slot = 0; slot < 2; ++slot) {
      const std::byte* page = pair + std::size_t{slot} * kPageBytes;
      if (page_from_future(page, type, number, super_.checkpoint, seed_)) choice.leftover = true;
      if (!page_valid(page, type, number, super_.checkpoint, seed_)) continue;
      const std::uint64_t generation = reinterpret_cast<const PageHeader*>(page)->generation;
      if (choice.page == nullptr || generation > best) {
        choice.page = page;
        choice.slot = slot;
        best = generation;
      }
    }
    return choice;
  }

  reactor::Task<Status> read_refcounts() {
    words_.grow(super_.cluster_count);
    POLLUX_CO_TRY(co_await parallel(home_, state_->geometry.zones(), 8,
                                    [this](std::size_t zone) { return read_zone(static_cast<std::uint32_t>(zone)); }));
    std::uint32_t metadata = 0;
    for (ClusterNo cluster = 0; cluster < words_.size(); ++cluster) {
      const std::uint32_t word = words_[cluster];
      if ((word == kSystemCluster) != state_->geometry.is_system(cluster)) {
        co_return corrupt("reference count of cluster " + std::to_string(cluster) + " contradicts the layout");
      }
      if (word & kMetadataCluster) ++metadata;
    }
    metadata_clusters_.assign(metadata, 0);
    for (ClusterNo cluster = 0; cluster < words_.size(); ++cluster) {
      const std::uint32_t word = words_[cluster];
      if (!(word & kMetadataCluster)) continue;
      const std::uint32_t number = word & ~kMetadataCluster;
      if (number >= metadata || metadata_clusters_[number] != 0) {
        co_return corrupt("metadata cluster " + std::to_string(number) + " is out of range or there twice");
      }
      metadata_clusters_[number] = cluster;
    }
    state_->refcounts.assign(std::move(words_));
    for (std::uint32_t page : leftover_refcounts_) state_->dirty.touch(PageKey::refcounts(page));
    co_return Status{};
  }

  reactor::Task<Status> read_zone(std::uint32_t zone) {
    const std::uint32_t first = zone * kRefcountPagesPerZone;
    const std::uint32_t count = std::min(kRefcountPagesPerZone, state_->geometry.refcount_pages() - first);
    AlignedBuffer bytes(std::size_t{2} * count * kPageBytes);
    POLLUX_CO_TRY(bdev::to_status(
        co_await bdev::read(channel_, state_->geometry.refcount_slot_offset(first, 0), bytes.data(), bytes.size()),
        "read of reference counts"));
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint32_t page = first + i;
      const Choice choice = choose(bytes.data() + std::size_t{2} * i * kPageBytes, PageType::kRefcounts, page);
      if (choice.page == nullptr) {
        co_return corrupt("no valid copy of page " + std::to_string(page) + " of the reference counts");
      }
      state_->refcounts.set_slot(page, choice.slot);
      if (choice.leftover) leftover_refcounts_.push_back(page);
      const std::size_t at = std::size_t{page} * kWordsPerPage;
      std::memcpy(&words_[at], choice.page + sizeof(PageHeader),
                  std::min<std::size_t>(kWordsPerPage, words_.size() - at) * sizeof(std::uint32_t));
    }
    co_return Status{};
  }

  reactor::Task<Status> read_directories() {
    directories_ = AlignedBuffer(metadata_clusters_.size() * 2 * kPageBytes);
    POLLUX_CO_TRY(co_await parallel(home_, metadata_clusters_.size(), kReadsInFlight,
                                    [this](std::size_t number) { return read_directory(number); }));
    for (std::uint32_t number = 0; number < metadata_clusters_.size(); ++number) {
      const Choice choice = choose(directories_.data() + std::size_t{2} * number * kPageBytes, PageType::kDirectory,
                                   std::uint64_t{number} * state_->geometry.pages_per_cluster);
      if (choice.page == nullptr) {
        co_return corrupt("no valid directory of metadata cluster " + std::to_string(number));
      }
      POLLUX_CO_TRY(state_->pages.load_cluster(metadata_clusters_[number],
                                               reinterpret_cast<const std::uint32_t*>(choice.page + sizeof(PageHeader)),
                                               choice.slot));
      if (choice.leftover) state_->pages.touch_directory(number);
    }
    directories_ = AlignedBuffer();
    co_return Status{};
  }

  reactor::Task<Status> read_directory(std::size_t number) {
    const std::uint64_t offset = state_->geometry.cluster_offset(metadata_clusters_[number]);
    co_return bdev::to_status(
        co_await bdev::read(channel_, offset, directories_.data() + 2 * number * kPageBytes, 2 * kPageBytes),
        "read of a metadata directory");
  }

  reactor::Task<Status> read_volumes() {
    std::vector<PageNo> pages;
    for (PageNo page = 0; page < state_->pages.page_limit(); ++page) {
      if (state_->pages.type(page) == PageType::kVolumes) pages.push_back(page);
    }
    co_return co_await parallel(home_, pages.size(), kReadsInFlight,
                                [this, &pages](std::size_t i) { return read_volume_page(pages[i]); });
  }

  reactor::Task<Status> read_volume_page(PageNo page) {
    AlignedBuffer bytes(kPageBytes);
    const std::uint64_t offset = state_->pages.slot_offset(page, state_->pages.valid_slot(page));
    POLLUX_CO_TRY(
        bdev::to_status(co_await bdev::read(channel_, offset, bytes.data(), kPageBytes), "read of volume records"));
    if (!page_valid(bytes.data(), PageType::kVolumes, page, super_.checkpoint, seed_)) {
      co_return corrupt("page " + std::to_string(page) + " with volume records is damaged");
    }
    const auto& records = reinterpret_cast<const VolumesPage*>(bytes.data())->records;
    for (std::uint32_t i = 0; i < kRecordsPerPage; ++i) {
      const VolumeNo number = page * kRecordsPerPage + i;
      if (records[i].live == 0) {
        state_->load_free_record(number);
      } else {
        POLLUX_CO_TRY(state_->load_volume(number, records[i]));
      }
    }
    co_return Status{};
  }

  // ---- Journal

  // Ring bytes [offset, + length) in memory, read ahead in larger pieces; nullptr past the end of the ring.
  reactor::Task<Result<const std::byte*>> ring(std::uint64_t offset, std::size_t length) {
    if (offset + length > super_.journal_bytes) co_return static_cast<const std::byte*>(nullptr);
    if (ring_.empty() || offset < ring_first_ || offset + length > ring_first_ + ring_valid_) {
      if (ring_.empty()) ring_ = AlignedBuffer(kRingReadBytes);
      ring_first_ = offset;
      ring_valid_ = std::min<std::uint64_t>(kRingReadBytes, super_.journal_bytes - offset);
      POLLUX_CO_TRY(
          bdev::to_status(co_await bdev::read(channel_, super_.journal_offset + offset, ring_.data(), ring_valid_),
                          "read of the journal"));
    }
    co_return ring_.data() + (offset - ring_first_);
  }

  // The commit that must come next, if it is whole at this offset: its bytes, else nullptr.
  reactor::Task<Result<const std::byte*>> commit_at(std::uint64_t offset) {
    auto start = co_await ring(offset, kPageBytes);
    if (!start || *start == nullptr) co_return start;
    CommitHeader header;
    std::memcpy(&header, *start, sizeof(header));
    const std::size_t bytes = sizeof(header) + std::size_t{header.record_bytes};
    if (header.magic != kCommitMagic || header.pool_id != super_.pool_id || header.sequence != head_.sequence ||
        header.previous_crc != head_.previous_crc || bytes > kMaxCommitBytes) {
      co_return static_cast<const std::byte*>(nullptr);
    }
    auto whole = co_await ring(offset, align_up<std::size_t>(bytes, kPageBytes));
    if (!whole || *whole == nullptr) co_return whole;
    const std::uint32_t expected = std::exchange(header.crc, 0);
    const std::uint32_t crc = crc32c(&header, sizeof(header), seed_);
    if (crc32c(*whole + sizeof(header), header.record_bytes, crc) != expected) {
      co_return static_cast<const std::byte*>(nullptr);
    }
    co_return whole;
  }

  reactor::Task<Status> replay() {
    while (true) {
      auto found = co_await commit_at(head_.offset);
      if (found && *found == nullptr && head_.offset != 0) {
        // It may not have fitted before the end of the ring.
        found = co_await commit_at(0);
        if (found && *found != nullptr) head_.offset = 0;
      }
      if (!found) co_return fail(std::move(found.error()));
      if (*found == nullptr) co_return Status{};
      CommitHeader header;
      std::memcpy(&header, *found, sizeof(header));
      // Applying may read pages, and with that nothing of the ring's buffer changes: copy not needed.
      POLLUX_CO_TRY(co_await apply_all(*found + sizeof(header), header.record_bytes, header.record_count));
      head_.offset += align_up<std::uint64_t>(sizeof(header) + header.record_bytes, kPageBytes);
      if (head_.offset == super_.journal_bytes) head_.offset = 0;
      ++head_.sequence;
      head_.previous_crc = header.crc;
      co_await home_.yield();
    }
  }

  // Leaves that the records will need, many at a time: one by one they would cost the device's latency each. What makes
  // no sense is skipped, and what cannot be read is for prepare() to report.
  reactor::Task<void> read_ahead(const std::byte* records, std::size_t bytes) {
    std::vector<std::pair<Volume*, std::size_t>> wanted;
    std::unordered_set<PageNo> pages;
    for (std::size_t at = 0; bytes - at >= sizeof(RecordHeader);) {
      const auto& record = *reinterpret_cast<const RecordHeader*>(records + at);
      if (record.bytes < sizeof(RecordHeader) || record.bytes % 8 != 0 || record.bytes > bytes - at) break;
      at += record.bytes;
      if (record.type != RecordType::kMapSet || record.bytes != sizeof(MapSetRecord)) continue;
      Volume* volume = state_->find(record.volume);
      if (volume == nullptr || !co_await loader_->index(*volume)) continue;
      const std::size_t slot = reinterpret_cast<const MapSetRecord&>(record).index / kLeafEntries;
      if (slot >= volume->leaves.size()) continue;
      const PageNo page = volume->leaves[slot];
      if (page != 0 && state_->leaf(page) == nullptr && pages.insert(page).second) wanted.emplace_back(volume, slot);
    }
    const auto one = [&](std::size_t i) -> reactor::Task<Status> {
      co_return co_await loader_->leaf_of(*wanted[i].first, wanted[i].second);
    };
    static_cast<void>(co_await parallel(home_, wanted.size(), kReadsInFlight, one));
  }

  reactor::Task<Status> apply_all(const std::byte* records, std::size_t bytes, std::uint32_t count) {
    co_await read_ahead(records, bytes);
    std::size_t at = 0;
    for (std::uint32_t i = 0; i < count; ++i) {
      if (bytes - at < sizeof(RecordHeader)) co_return corrupt("a commit of the journal ends within a record");
      const auto& record = *reinterpret_cast<const RecordHeader*>(records + at);
      if (record.bytes < sizeof(RecordHeader) || record.bytes % 8 != 0 || record.bytes > bytes - at) {
        co_return corrupt("a record of the journal has an impossible length");
      }
      POLLUX_CO_TRY(co_await prepare(record));
      POLLUX_CO_TRY(state_->apply(record));
      // Nobody holds an old map, and what the journal freed is durably free; a later record may take it again.
      state_->refcounts.make_free(state_->refcounts.collect_released());
      // All that was replayed is durable.
      state_->refcounts.begin_settling();
      state_->refcounts.end_settling();
      state_->collect_retired();
      at += record.bytes;
      if (++records_ % 64 == 0) co_await home_.yield();
    }
    if (at != bytes) co_return corrupt("a commit of the journal has bytes after its last record");
    co_return Status{};
  }

  // What was answered and is not on the device. Clusters that it frees are not free before it is.
  reactor::Task<Status> apply_queue() {
    if (queue_ == nullptr) co_return Status{};
    auto queued = queue_->unwritten(super_.checkpoint, head_.sequence, head_.previous_crc);
    if (!queued) {
      log::error("writes into new space of pool '{}' that were not flushed are lost: {}",
                 std::string(super_.name, super_.name_bytes), queued.error().message);
      co_return Status{};
    }
    queued_ = std::move(*queued);
    for (JournalQueue::Slot* slot : queued_) {
      const std::byte* const records = slot->data() + sizeof(CommitHeader);
      const std::size_t bytes = slot->used() - sizeof(CommitHeader);
      co_await read_ahead(records, bytes);
      std::size_t at = 0;
      for (std::uint32_t i = 0; i < slot->records(); ++i) {
        if (bytes - at < sizeof(RecordHeader)) co_return corrupt("the queue of the journal ends within a record");
        const auto& record = *reinterpret_cast<const RecordHeader*>(records + at);
        if (record.bytes < sizeof(RecordHeader) || record.bytes % 8 != 0 || record.bytes > bytes - at) {
          co_return corrupt("a record in the queue of the journal has an impossible length");
        }
        POLLUX_CO_TRY(co_await prepare(record));
        POLLUX_CO_TRY(state_->apply(record));
        at += record.bytes;
        if (++records_ % 64 == 0) co_await home_.yield();
      }
      // The process may have been killed between the bytes of a record and its count.
      JournalQueue::set(*slot, at + sizeof(CommitHeader), slot->records(), slot->has_data());
    }
    co_return Status{};
  }

  // Brings into memory what apply() will look at. What makes no sense is left for apply() to refuse.
  reactor::Task<Status> prepare(const RecordHeader& record) {
    Volume* volume = state_->find(record.volume);
    switch (record.type) {
      case RecordType::kMapSet:
        if (volume != nullptr && record.bytes == sizeof(MapSetRecord)) {
          POLLUX_CO_TRY(co_await loader_->index(*volume));
          const std::size_t slot = reinterpret_cast<const MapSetRecord&>(record).index / kLeafEntries;
          if (slot < volume->leaves.size()) POLLUX_CO_TRY(co_await loader_->leaf_of(*volume, slot));
        }
        break;
      case RecordType::kDropLeaf:
        if (volume != nullptr && record.bytes == sizeof(DropLeafRecord)) {
          POLLUX_CO_TRY(co_await loader_->index(*volume));
          const std::size_t slot = reinterpret_cast<const DropLeafRecord&>(record).slot;
          if (slot < volume->leaves.size()) POLLUX_CO_TRY(co_await loader_->leaf_of(*volume, slot));
        }
        break;
      case RecordType::kFork:
        if (record.bytes == sizeof(ForkRecord)) {
          Volume* source = state_->find(reinterpret_cast<const ForkRecord&>(record).source);
          if (source != nullptr) POLLUX_CO_TRY(co_await loader_->index(*source));
        }
        break;
      case RecordType::kRevert:
        if (volume != nullptr && record.bytes == sizeof(RevertRecord)) {
          POLLUX_CO_TRY(co_await loader_->index(*volume));
          Volume* snapshot = state_->find(reinterpret_cast<const RevertRecord&>(record).snapshot);
          if (snapshot != nullptr) POLLUX_CO_TRY(co_await loader_->index(*snapshot));
        }
        break;
      case RecordType::kResize:
      case RecordType::kVolumeFree:
        if (volume != nullptr) POLLUX_CO_TRY(co_await loader_->index(*volume));
        break;
      case RecordType::kVolumeCreate:
      case RecordType::kDelete:
      case RecordType::kSetQos:
      case RecordType::kSetBursts:
      case RecordType::kMetadataGrow:
      case RecordType::kDetach:
        break;
    }
    co_return Status{};
  }

  static Status corrupt(const std::string& what) { return fail(ErrorCode::kCorrupt, "metadata: " + what); }

  bdev::Channel& channel_;
  reactor::Reactor& home_;
  const Superblock super_;
  const Purpose purpose_;
  JournalQueue* const queue_;
  const std::uint32_t seed_;
  std::vector<JournalQueue::Slot*> queued_;
  std::unique_ptr<State> state_;
  std::unique_ptr<Loader> loader_;
  GrowingArray<std::uint32_t> words_;
  std::vector<std::uint32_t> leftover_refcounts_;
  std::vector<ClusterNo> metadata_clusters_;
  AlignedBuffer directories_;
  AlignedBuffer ring_;
  std::uint64_t ring_first_ = 0;
  std::size_t ring_valid_ = 0;
  JournalPosition head_;
  std::uint64_t records_ = 0;
};

// What a crash can leave of the very first superblock, which is written over zeros: its head, without the sector that
// ends with the checksum. Nothing was ever in that pool.
bool is_torn_first(const Superblock& super) {
  return super.version == kFormatVersion && super.checkpoint == 1 && super.crc == 0;
}

}  // namespace

reactor::Task<Result<Superblock>> read_super(bdev::Channel& channel, std::uint64_t device_bytes) {
  if (device_bytes < kMinClusterBytes) {
    co_return fail(ErrorCode::kNotFound, "the device is too small to hold a pool");
  }
  std::unique_ptr<Superblock> best;
  std::optional<Error> worst;
  bool blank = true;
  for (unsigned slot = 0; slot < 2; ++slot) {
    AlignedBuffer bytes(kPageBytes);
    POLLUX_CO_TRY(bdev::to_status(co_await bdev::read(channel, slot * kSuperSlotStride, bytes.data(), kPageBytes),
                                  "read of the superblock"));
    auto super = std::make_unique<Superblock>();
    std::memcpy(super.get(), bytes.data(), sizeof(Superblock));
    if (super->magic == kSuperMagic && !is_torn_first(*super)) blank = false;
    if (auto checked = check_super(*super, device_bytes); !checked) {
      if (super->magic == kSuperMagic && (!worst || checked.error().code == ErrorCode::kUnsupported)) {
        worst = std::move(checked.error());
      }
      continue;
    }
    if (best == nullptr || super->checkpoint > best->checkpoint) best = std::move(super);
  }
  // One copy of a version we do not know means the pool was written by it: the other copy is its past.
  if (worst && worst->code == ErrorCode::kUnsupported) co_return fail(std::move(*worst));
  if (best != nullptr) co_return *best;
  if (blank) co_return fail(ErrorCode::kNotFound, "the device holds no Pollux pool");
  co_return fail(std::move(*worst));
}

reactor::Task<Result<Recovered>> recover(bdev::Channel& channel, reactor::Reactor& home, const Superblock& super,
                                         Purpose purpose, JournalQueue* queue) {
  Recovery recovery(channel, home, super, purpose, queue);
  co_return co_await recovery.run();
}

}  // namespace pollux::blob
