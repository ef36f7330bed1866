#pragma once
// Pools and volumes as the control plane sees them: names, UUIDs, snapshots, clones, sizes. One per process.
//
// Every call is a Task that may be started on any reactor and hops by itself; from a control thread use
// reactor::call(). A mutating call is durable when it returns and may be repeated: the same request answers the same,
// the same id with other parameters is kExists. Errors carry the object's name and what to do next. A call on a pool
// that is being closed is kRetry; once it is closed the pool is not found.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/uuid.h"
#include "bdev/bdev.h"
#include "bdev/spec.h"
#include "blob/check_progress.h"
#include "blob/journal_queue.h"
#include "blob/loss_log.h"
#include "blob/owner.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::volume {

struct PoolSpec {
  Uuid id;
  std::string name;
  bdev::Spec bdev;
  std::uint32_t cluster_bytes = 0;  // 0: the store's default
  bool may_format = true;           // otherwise a device without a pool is kNotFound
  bool discard = true;              // freed space goes back to the device
  std::vector<Uuid> attached{};     // as for import_pool(), when the device holds this very pool
};

struct PoolInfo {
  Uuid id;
  std::string name;
  bdev::Spec bdev;
  std::uint32_t cluster_bytes = 0;
  std::uint64_t capacity_bytes = 0;
  std::uint64_t free_bytes = 0;         // what new allocations can take, reservations already taken off
  std::uint64_t allocated_bytes = 0;    // taken by data
  std::uint64_t reserved_bytes = 0;     // promised to thick volumes and not yet taken
  std::uint64_t provisioned_bytes = 0;  // sum of the sizes of all volumes
  std::uint64_t metadata_bytes = 0;
  std::uint32_t volumes = 0;
  std::uint32_t snapshots = 0;
  // Of the capacity: what new allocations cannot take, rounded up; and all volumes' sizes, above 100 when thin
  // provisioning has promised more than there is.
  std::uint32_t used_percent = 0;
  std::uint64_t provisioned_percent = 0;
  // The highest of watermarks_percent() that used_percent has reached, 0 for none.
  std::uint32_t watermark_percent = 0;
  bool discard = true;
  std::uint64_t discarded_bytes = 0;        // given back to the device since the pool was opened
  std::uint64_t discard_pending_bytes = 0;  // freed and not given back yet
  // Not empty: why the pool takes no changes, and since when. What is there can be read.
  std::string failure;
  std::int64_t failed_at_ms = 0;
  // Not empty: who has the pool now. It stays failed until it is imported again.
  std::string lost_to;
};

// How full a pool may get before it is said: in the log when it gets there, in PoolInfo for as long as it is.
std::vector<std::uint32_t> watermarks_percent();

enum class Provisioning : std::uint8_t { kThin = 1, kThick = 2 };

struct VolumeSpec {
  Uuid id;
  std::string name;
  std::uint64_t size_bytes = 0;
  Provisioning provisioning = Provisioning::kThin;
  // Of its logical blocks: 512 or 4096, whatever the pool's device has. 0: kDefaultBlockBytes, or the source's for a
  // clone, which can have no other.
  std::uint32_t block_bytes = 0;
};
// What firmware boots from, and what images are made for.
inline constexpr std::uint32_t kDefaultBlockBytes = 512;

// What a check of a pool found; blob/checker.h says what the words mean.
struct PoolCheck {
  Uuid id;
  std::string name;
  std::uint64_t volumes = 0;
  std::uint64_t metadata_pages = 0;
  std::uint64_t data_clusters = 0;
  std::uint64_t replayed_records = 0;
  std::uint64_t lost = 0;
  std::uint64_t doubly_used = 0;
  std::uint64_t leaked = 0;
  std::uint64_t damaged = 0;
  std::uint64_t repaired = 0;
  std::vector<std::string> findings;

  bool clean() const { return lost + doubly_used + leaked + damaged == 0; }
  bool all_repaired() const { return lost + doubly_used + leaked + damaged == repaired; }
};

// A rate that a limit allows for so many seconds after a pause; a length of 1 is an amount, at any rate. 0: no burst.
struct QosBurst {
  std::uint64_t per_s = 0;
  std::uint16_t length_s = 0;

  bool operator==(const QosBurst&) const = default;
};

// 0: no limit.
struct QosLimits {
  std::uint64_t read_iops = 0;
  std::uint64_t write_iops = 0;
  std::uint64_t total_iops = 0;
  std::uint64_t read_bytes_per_s = 0;
  std::uint64_t write_bytes_per_s = 0;
  std::uint64_t total_bytes_per_s = 0;
  // Each with the limit of its name alone.
  QosBurst read_iops_burst{}, write_iops_burst{}, total_iops_burst{};
  QosBurst read_bytes_burst{}, write_bytes_burst{}, total_bytes_burst{};

  bool operator==(const QosLimits&) const = default;
};

struct VolumeInfo {
  Uuid id;
  std::string name;
  std::string pool;
  std::uint64_t size_bytes = 0;
  Provisioning provisioning = Provisioning::kThin;
  bool snapshot = false;
  std::uint32_t block_bytes = 0;
  std::optional<Uuid> parent_id;
  std::uint64_t mapped_bytes = 0;
  std::int64_t created_at_ms = 0;
  std::uint32_t open_count = 0;
  QosLimits qos;
};

struct VolumeStats {
  std::uint64_t read_ops = 0, write_ops = 0, flush_ops = 0, unmap_ops = 0;
  std::uint64_t read_bytes = 0, write_bytes = 0;
  std::uint64_t errors = 0;
  std::vector<std::uint64_t> read_latency;  // bucket i: < 2^i us
  std::vector<std::uint64_t> write_latency;
};

struct NamedStats {
  std::string pool;
  Uuid volume;
  VolumeStats stats;
};

enum class JobState : std::uint8_t { kRunning = 1, kDone = 2, kFailed = 3, kCancelled = 4 };

struct JobInfo {
  Uuid id;
  std::string kind;
  Uuid volume_id;
  JobState state = JobState::kRunning;
  std::uint64_t done = 0;  // clusters
  std::uint64_t total = 0;
  std::string error;
};

class VolumeService {
 public:
  // identity: whom the pools on this service's devices belong to while it has them open; see blob/owner.h.
  // losses: of all its pools; see blob/loss_log.h. queues: of the journals of those on devices; see
  // blob/journal_queue.h.
  explicit VolumeService(reactor::ReactorGroup& reactors, blob::Owner::Identity identity = {},
                         std::shared_ptr<blob::LossLog> losses = nullptr, blob::JournalQueue::Source queues = nullptr);
  ~VolumeService();

  // Formats and opens. A device that holds this very pool is opened; one that holds another is kExists.
  reactor::Task<Result<PoolInfo>> create_pool(PoolSpec spec);
  // kCorrupt, with nothing written: the device holds another pool than `expected` (nil: any). kBusy: a service has it
  // open, here or elsewhere. With `force` it is taken from one elsewhere, which stops to write when it notices: what it
  // answered in between is lost, and what it wrote may have damaged the pool. A pool that was lost in that way is opened
  // anew; kBusy while it is in use here.
  // `attached`: volumes that guests of this service have; a pool with one of them that another service had open
  // meanwhile is kBusy, also with `force`: what those guests know of their disks may be wrong by now.
  reactor::Task<Result<PoolInfo>> import_pool(bdev::Spec bdev, Uuid expected = {}, bool force = false,
                                              std::vector<Uuid> attached = {});
  // The same for several pools at a time, so that those whose owner has to be waited for are waited for together. The
  // answers are in the order of the pools.
  struct ToImport {
    bdev::Spec bdev;
    Uuid expected;
  };
  reactor::Task<Result<std::vector<Result<PoolInfo>>>> import_pools(std::vector<ToImport> wanted,
                                                                    std::vector<Uuid> attached = {});
  // By name or UUID text, as in every call below. kBusy while a volume of it is open.
  reactor::Task<Status> export_pool(std::string pool);
  // Checks the pool on a device that nobody has open, and repairs what can be. kBusy: it is open, here or elsewhere.
  // kNotFound, kUnsupported, kCorrupt: there is none that could be loaded, or another than `expected` (nil: any), which
  // is left alone. kRetry: cancelled.
  reactor::Task<Result<PoolCheck>> check_pool(bdev::Spec bdev, Uuid expected, bool repair,
                                              std::shared_ptr<blob::CheckProgress> progress = nullptr);
  reactor::Task<Result<std::vector<PoolInfo>>> list_pools();
  reactor::Task<Result<PoolInfo>> describe_pool(std::string pool);
  // Whether space that is freed from now on goes back to the device.
  reactor::Task<Result<PoolInfo>> set_pool_discard(std::string pool, bool discard);
  // Starts to give all free space back: see Store::trim.
  reactor::Task<Result<JobInfo>> trim_pool(std::string pool, Uuid job);

  reactor::Task<Result<VolumeInfo>> create_volume(std::string pool, VolumeSpec spec);
  reactor::Task<Status> delete_volume(Uuid id);
  reactor::Task<Result<VolumeInfo>> extend_volume(Uuid id, std::uint64_t size_bytes);
  reactor::Task<Result<VolumeInfo>> describe_volume(Uuid id);
  // In order of id, those greater than `after`.
  reactor::Task<Result<std::vector<VolumeInfo>>> list_volumes(std::string pool, std::optional<Uuid> after,
                                                              std::size_t limit);
  reactor::Task<Result<VolumeInfo>> create_snapshot(Uuid volume, Uuid snapshot, std::string name);
  reactor::Task<Result<VolumeInfo>> clone(Uuid snapshot, VolumeSpec spec);
  reactor::Task<Result<VolumeInfo>> revert(Uuid volume, Uuid snapshot);
  // Starts the job, or answers how it stands: see Store::flatten.
  reactor::Task<Result<JobInfo>> flatten(Uuid volume, Uuid job);
  // Holds from the next request of a guest on.
  reactor::Task<Result<VolumeInfo>> set_qos(Uuid volume, QosLimits limits);
  reactor::Task<Result<VolumeStats>> stats(Uuid volume);
  // Of all volumes, and of the snapshots that are open, in one call: some volumes a turn of the reactor, `limit` in all.
  // `complete`: there were no more.
  struct AllStats {
    std::vector<NamedStats> volumes;
    bool complete = true;
  };
  reactor::Task<Result<AllStats>> all_stats(std::size_t limit);
  reactor::Task<Result<std::vector<JobInfo>>> list_jobs();
  // kNotFound. kUnsupported: a delete. One that ended stays as it ended.
  reactor::Task<Status> cancel_job(Uuid job);

  // The volume as a block device. While the returned object lives the volume cannot be deleted or reverted (kBusy). A
  // snapshot opens read-only. Any number of times; every open shares one device. With a loss untold the next flush
  // fails, once.
  reactor::Task<Result<std::shared_ptr<bdev::Bdev>>> open(Uuid volume, blob::LossUntold loss = blob::LossUntold::kNo);

  // Waits for calls under way, checkpoints and closes every pool. Volumes must be closed: kBusy otherwise, and this may
  // be repeated. Afterwards only destruction is allowed.
  reactor::Task<Status> close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pollux::volume
