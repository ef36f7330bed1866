#include "blob/checker.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "blob/checkpoint.h"
#include "blob/journal.h"
#include "blob/loader.h"
#include "blob/page_codec.h"
#include "blob/parallel.h"
#include "blob/recovery.h"

namespace pollux::blob {

namespace {

constexpr std::size_t kLeavesPerTurn = 64;
constexpr std::size_t kReadsInFlight = 32;

class Checker {
 public:
  Checker(bdev::Channel& channel, reactor::Reactor& home, Recovered recovered)
      : channel_(channel),
        home_(home),
        super_(recovered.super),
        tail_(recovered.tail),
        head_(recovered.head),
        state_(std::move(recovered.state)),
        loader_(*state_, channel, home, checksum_seed(super_.pool_id), super_.checkpoint) {
    report_.checkpoint = super_.checkpoint;
    report_.replayed_records = recovered.replayed_records;
    // What is counted as free and used all the same is for this to find, and no reason to give the whole leaf up.
    state_->trust_counts = false;
  }

  reactor::Task<Result<CheckReport>> run(Repair repair) {
    clusters_.assign(state_->refcounts.cluster_count(), 0);
    for (const auto& [number, volume] : state_->volumes()) {
      ++report_.volumes;
      ++pages_[number / kRecordsPerPage];
      co_await walk(*volume);
    }
    // From here on nothing is damaged that was not found damaged above.
    mend_ = repair == Repair::kYes;
    compare_mapped();
    compare_pages();
    compare_clusters();
    if (!report_.irreparable.empty()) {
      report_.repaired = 0;
      if (repair == Repair::kYes) report_.findings.push_back("nothing was repaired: " + report_.irreparable);
    } else if (report_.repaired != 0) {
      POLLUX_CO_TRY(co_await write());
    }
    co_return std::move(report_);
  }

 private:
  void found(std::uint64_t& counter, std::string what) {
    ++counter;
    if (report_.findings.size() < kMaxFindings) report_.findings.push_back(std::move(what));
  }

  // True: put this finding right. Space is given up only when all that leads to it could be read.
  bool mends(bool gives_space_up) {
    if (!mend_ || (gives_space_up && report_.damaged != 0)) return false;
    ++report_.repaired;
    return true;
  }

  // The state as it is now becomes the next checkpoint, and the journal before it is done with.
  reactor::Task<Status> write() {
    Journal journal(channel_,
                    {.ring_offset = super_.journal_offset,
                     .ring_bytes = super_.journal_bytes,
                     .pool_id = super_.pool_id,
                     .checksum_seed = checksum_seed(super_.pool_id),
                     .on_half_full = {},
                     .on_committed = {}},
                    tail_, head_);
    Checkpointer checkpointer(*state_, journal, channel_, home_, super_);
    co_return co_await checkpointer.run();
  }

  // A volume names a page that is something else, or whose contents are gone: written as it is, the pool would not
  // open.
  void misnamed(const Volume& volume, PageNo page, const char* what) {
    found(report_.doubly_used, "volume " + volume.id.to_string() + " names metadata page " + std::to_string(page) +
                                   " as its " + what + ", which was freed and used for something else");
    irreparable(page);
  }

  void irreparable(PageNo page) {
    if (!report_.irreparable.empty()) return;
    report_.irreparable = "what metadata page " + std::to_string(page) + " held for one of the volumes is gone";
  }

  bool holds_leaf(PageNo page) const {
    const PageType type = state_->pages.type(page);
    if (type == PageType::kLeaf) return true;
    return type == PageType::kFree && !state_->reused(page) && state_->leaf(page) != nullptr;
  }

  reactor::Task<void> walk(Volume& volume) {
    if (auto loaded = co_await loader_.index(volume); !loaded) {
      found(report_.damaged, "volume " + volume.id.to_string() + ": " + loaded.error().message);
      co_return;
    }
    for (PageNo page : volume.index_pages) {
      if (page == 0) continue;
      if (state_->pages.type(page) == PageType::kIndex) {
        ++pages_[page];
      } else {
        misnamed(volume, page, "index");
      }
    }
    std::uint32_t mapped = 0;
    for (std::size_t slot = 0; slot < volume.leaves.size(); ++slot) {
      if (slot % kLeavesPerTurn == 0) co_await read_ahead(volume, slot);
      const PageNo page = volume.leaves[slot];
      if (page == 0) continue;
      if (!holds_leaf(page)) {
        misnamed(volume, page, "leaf");
        continue;
      }
      const Leaf& leaf = *state_->leaf(page);
      // What a shared leaf names is counted once: one leaf, one reference.
      const bool first_time = ++pages_[page] == 1;
      if (leaf.damaged) {
        if (first_time) found(report_.damaged, "leaf in page " + std::to_string(page) + " is damaged");
        continue;
      }
      for (std::uint32_t i = 0; i < kLeafEntries; ++i) {
        const MapEntry entry = leaf.entries[i].get();
        if (entry.own == 0) continue;
        ++mapped;
        if (!first_time) continue;
        ++clusters_[entry.own];
        if (entry.base != 0) ++clusters_[entry.base];
      }
    }
    if (!volume.deleting() && mapped != volume.mapped) mapped_[volume.number] = mapped;
  }

  reactor::Task<void> read_ahead(Volume& volume, std::size_t first) {
    const std::size_t count = std::min(kLeavesPerTurn, volume.leaves.size() - first);
    const auto one = [&](std::size_t i) -> reactor::Task<Status> {
      if (holds_leaf(volume.leaves[first + i])) co_await loader_.leaf_of(volume, first + i);
      co_return Status{};
    };
    // What cannot be read is in memory as a damaged leaf: no step fails.
    static_cast<void>(co_await parallel(home_, count, kReadsInFlight, one));
    co_await home_.yield();
  }

  void compare_mapped() {
    for (const auto& [number, mapped] : mapped_) {
      Volume& volume = *state_->find(number);
      found(report_.leaked, "volume " + volume.id.to_string() + " says it maps " + std::to_string(volume.mapped) +
                                " clusters and maps " + std::to_string(mapped));
      if (mends(/*gives_space_up=*/true)) state_->repair_mapped(volume, mapped);
    }
  }

  void compare_pages() {
    for (PageNo page = 0; page < state_->pages.page_limit(); ++page) {
      const PageType type = state_->pages.type(page);
      const auto at = pages_.find(page);
      const std::uint32_t uses = at == pages_.end() ? 0 : at->second;
      if (type == PageType::kFree && uses != 0) compare_freed(page, uses);
      if (type == PageType::kFree || type == PageType::kDirectory) continue;
      ++report_.metadata_pages;
      // A page of volume records counts once however many of them live.
      const std::uint32_t expected = type == PageType::kVolumes ? std::min(uses, 1U) : uses;
      const std::uint32_t refs = state_->pages.refs(page);
      const std::string name = "metadata page " + std::to_string(page);
      if (type == PageType::kIndex && uses > 1) {
        found(report_.doubly_used, name + ", an index, has " + std::to_string(uses) + " owners");
      } else if (refs > expected) {
        found(report_.leaked,
              name + " counts " + std::to_string(refs) + " references and has " + std::to_string(expected));
        if (mends(/*gives_space_up=*/true)) state_->pages.repair_refs(page, expected);
      } else if (refs < expected && state_->reused(page)) {
        found(report_.doubly_used, name + " was freed and is another leaf by now, and a volume still names it");
        irreparable(page);
      } else if (refs < expected) {
        found(report_.lost,
              name + " counts " + std::to_string(refs) + " references and has " + std::to_string(expected));
        if (mends(/*gives_space_up=*/false)) state_->pages.repair_refs(page, expected);
      }
    }
  }

  // The journal dropped the last reference that was counted, and there were more.
  void compare_freed(PageNo page, std::uint32_t uses) {
    const std::string name = "metadata page " + std::to_string(page);
    found(report_.lost, name + " is free and has " + std::to_string(uses) + " references");
    if (state_->leaf(page)->damaged) {
      irreparable(page);
    } else if (mends(/*gives_space_up=*/false)) {
      state_->pages.repair_freed_leaf(page, uses);
    }
  }

  void compare_clusters() {
    for (ClusterNo cluster = 0; cluster < clusters_.size(); ++cluster) {
      const std::uint32_t uses = clusters_[cluster];
      const std::string name = "cluster " + std::to_string(cluster);
      if (!state_->refcounts.is_data(cluster)) {
        if (uses != 0) found(report_.doubly_used, name + " holds metadata and is data of a volume");
        continue;
      }
      const std::uint32_t counted = state_->refcounts.word(cluster);
      if (counted != 0 || uses != 0) ++report_.data_clusters;
      if (counted > uses) {
        found(report_.leaked,
              name + " counts " + std::to_string(counted) + " references and has " + std::to_string(uses));
        if (mends(/*gives_space_up=*/true)) state_->refcounts.repair(cluster, uses);
      } else if (counted < uses) {
        found(report_.lost,
              name + " counts " + std::to_string(counted) + " references and has " + std::to_string(uses));
        if (mends(/*gives_space_up=*/false)) state_->refcounts.repair(cluster, uses);
      }
    }
  }

  bdev::Channel& channel_;
  reactor::Reactor& home_;
  const Superblock super_;
  const JournalPosition tail_;
  const JournalPosition head_;
  std::unique_ptr<State> state_;
  Loader loader_;
  CheckReport report_;
  std::unordered_map<PageNo, std::uint32_t> pages_;
  std::vector<std::uint32_t> clusters_;
  // Volumes whose count of mapped clusters is wrong, with the right one.
  std::map<VolumeNo, std::uint32_t> mapped_;
  bool mend_ = false;
};

reactor::Task<Result<CheckReport>> check_steps(bdev::Bdev& device, bdev::Channel& channel, reactor::Reactor& home,
                                               Repair repair) {
  auto super = co_await read_super(channel, device.size_bytes());
  if (!super) co_return fail(std::move(super.error()));
  auto recovered = co_await recover(channel, home, *super, Purpose::kCheck);
  if (!recovered) co_return fail(std::move(recovered.error()));
  Checker checker(channel, home, std::move(*recovered));
  co_return co_await checker.run(repair);
}

}  // namespace

reactor::Task<Result<CheckReport>> check_pool(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& home,
                                              Repair repair) {
  co_await home.enter();
  auto channel = device->open_channel(home);
  if (!channel) co_return fail(std::move(channel.error()));
  auto report = co_await check_steps(*device, **channel, home, repair);
  // This runs in a completion of the channel, which ends with this scope.
  co_await home.yield();
  co_return report;
}

}  // namespace pollux::blob
