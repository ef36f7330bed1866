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
// Pages or clusters that are compared before the reactor's other work has its turn.
constexpr std::uint32_t kComparedPerTurn = 8192;

class Checker {
 public:
  Checker(bdev::Channel& channel, reactor::Reactor& home, Recovered recovered, CheckProgress& progress)
      : channel_(channel),
        home_(home),
        progress_(progress),
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
    progress_.total = state_->volumes().size();
    for (const auto& [number, volume] : state_->volumes()) {
      ++report_.volumes;
      ++pages_[number / kRecordsPerPage];
      POLLUX_CO_TRY(co_await walk(*volume));
      ++progress_.done;
    }
    // From here on nothing is damaged that was not found damaged above.
    mend_ = repair == Repair::kYes;
    compare_mapped();
    for (PageNo page = 0; page < state_->pages.page_limit(); ++page) {
      compare_page(page);
      if (page % kComparedPerTurn == 0) POLLUX_CO_TRY(co_await turn());
    }
    for (ClusterNo cluster = 0; cluster < clusters_.size(); ++cluster) {
      compare_cluster(cluster);
      if (cluster % kComparedPerTurn == 0) POLLUX_CO_TRY(co_await turn());
    }
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

  // Lets the reactor's other work have its turn. kRetry: cancelled.
  reactor::Task<Status> turn() {
    co_await home_.yield();
    if (progress_.cancelled) co_return fail(ErrorCode::kRetry, "the check was cancelled, and changed nothing");
    co_return Status{};
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
                     .on_committed = {},
                     .on_failed = {}},
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

  // kRetry: cancelled. What is wrong is in the report.
  reactor::Task<Status> walk(Volume& volume) {
    if (auto loaded = co_await loader_.index(volume); !loaded) {
      found(report_.damaged, "volume " + volume.id.to_string() + ": " + loaded.error().message);
      co_return Status{};
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
      if (slot % kLeavesPerTurn == 0) POLLUX_CO_TRY(co_await read_ahead(volume, slot));
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
    co_return Status{};
  }

  reactor::Task<Status> read_ahead(Volume& volume, std::size_t first) {
    const std::size_t count = std::min(kLeavesPerTurn, volume.leaves.size() - first);
    const auto one = [&](std::size_t i) -> reactor::Task<Status> {
      const PageNo page = volume.leaves[first + i];
      // What cannot be read counts as damaged here: no step fails.
      if (holds_leaf(page) && !co_await loader_.leaf_of(volume, first + i)) state_->load_damaged_leaf(page);
      co_return Status{};
    };
    static_cast<void>(co_await parallel(home_, count, kReadsInFlight, one));
    co_return co_await turn();
  }

  void compare_mapped() {
    for (const auto& [number, mapped] : mapped_) {
      Volume& volume = *state_->find(number);
      found(report_.leaked, "volume " + volume.id.to_string() + " says it maps " + std::to_string(volume.mapped) +
                                " clusters and maps " + std::to_string(mapped));
      if (mends(/*gives_space_up=*/true)) state_->repair_mapped(volume, mapped);
    }
  }

  void compare_page(PageNo page) {
    const PageType type = state_->pages.type(page);
    const auto at = pages_.find(page);
    const std::uint32_t uses = at == pages_.end() ? 0 : at->second;
    if (type == PageType::kFree && uses != 0) compare_freed(page, uses);
    if (type == PageType::kFree || type == PageType::kDirectory) return;
    ++report_.metadata_pages;
    // A page of volume records counts once however many of them live.
    const std::uint32_t expected = type == PageType::kVolumes ? std::min(uses, 1U) : uses;
    const std::uint32_t refs = state_->pages.refs(page);
    if (refs == expected && !(type == PageType::kIndex && uses > 1)) return;
    const std::string name = "metadata page " + std::to_string(page);
    if (type == PageType::kIndex && uses > 1) {
      found(report_.doubly_used, name + ", an index, has " + std::to_string(uses) + " owners");
    } else if (refs > expected) {
      found(report_.leaked, name + counts(refs, expected));
      if (mends(/*gives_space_up=*/true)) state_->pages.repair_refs(page, expected);
    } else if (state_->reused(page)) {
      found(report_.doubly_used, name + " was freed and is another leaf by now, and a volume still names it");
      irreparable(page);
    } else {
      found(report_.lost, name + counts(refs, expected));
      if (mends(/*gives_space_up=*/false)) state_->pages.repair_refs(page, expected);
    }
  }

  static std::string counts(std::uint32_t counted, std::uint32_t uses) {
    return " counts " + std::to_string(counted) + " references and has " + std::to_string(uses);
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

  void compare_cluster(ClusterNo cluster) {
    const std::uint32_t uses = clusters_[cluster];
    const auto name = [cluster] { return "cluster " + std::to_string(cluster); };
    if (!state_->refcounts.is_data(cluster)) {
      if (uses != 0) found(report_.doubly_used, name() + " holds metadata and is data of a volume");
      return;
    }
    const std::uint32_t counted = state_->refcounts.word(cluster);
    if (counted != 0 || uses != 0) ++report_.data_clusters;
    if (counted == uses) return;
    const bool leaked = counted > uses;
    found(leaked ? report_.leaked : report_.lost, name() + counts(counted, uses));
    if (mends(leaked)) state_->refcounts.repair(cluster, uses);
  }

  bdev::Channel& channel_;
  reactor::Reactor& home_;
  CheckProgress& progress_;
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
                                               Repair repair, CheckProgress& progress) {
  auto super = co_await read_super(channel, device.size_bytes());
  if (!super) co_return fail(std::move(super.error()));
  auto recovered = co_await recover(channel, home, *super, Purpose::kCheck);
  if (!recovered) co_return fail(std::move(recovered.error()));
  Checker checker(channel, home, std::move(*recovered), progress);
  co_return co_await checker.run(repair);
}

}  // namespace

reactor::Task<Result<CheckReport>> check_pool(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& on, Repair repair,
                                              std::shared_ptr<CheckProgress> progress) {
  if (progress == nullptr) progress = std::make_shared<CheckProgress>();
  co_await on.enter();
  auto channel = co_await device->open_channel(on);
  if (!channel) co_return fail(std::move(channel.error()));
  auto report = co_await check_steps(*device, **channel, on, repair, *progress);
  // This runs in a completion of the channel, which ends with this scope.
  co_await on.yield();
  co_return report;
}

}  // namespace pollux::blob
