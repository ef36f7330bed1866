#pragma once
// Store: an open pool. Ties the parts together and offers the operations on volumes as coroutines; I/O on volumes goes
// through maps, lanes and the Writer.
//
// Everything here runs on the store's home reactor unless it says otherwise. An operation that changes something is
// durable when it returns. Every operation is inside the store's gate: close() waits for those under way, and refuses
// later ones with kRetry.
//
// After a failed write of metadata or a failed flush the store has failed: it answers kIoError to every change, and reads
// go on. What is in memory is then ahead of what is durable, and a device may have dropped what a failed flush was to
// make so; hence it is given up, and the pool loaded from its device again as at a start, as soon as that works: see
// store_failure.cpp. Open volumes stay open, and keep their Volume and VolumeView.
//
// A store whose device belongs to another owner is fenced: it has failed as well, and stays so until it is closed.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "bdev/bdev.h"
#include "blob/checkpoint.h"
#include "blob/cluster_io.h"
#include "blob/discarder.h"
#include "blob/journal.h"
#include "blob/lanes.h"
#include "blob/loader.h"
#include "blob/loss_log.h"
#include "blob/publication.h"
#include "blob/recovery.h"
#include "blob/space.h"
#include "blob/state.h"
#include "blob/journal_queue.h"
#include "blob/writer.h"
#include "reactor/gate.h"
#include "reactor/mutex.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::blob {

struct FormatOptions {
  Uuid id;
  std::string name;
  std::uint32_t cluster_bytes = 0;  // 0: kDefaultClusterBytes
  std::int64_t created_ms = 0;
  bool discard = true;  // freed space goes back to the device
};

struct OpenOptions {
  Discarder::Pace discard_pace;
  // Where the pool is loaded, which takes time in proportion to it; null: on the home reactor.
  reactor::Reactor* loads_on = nullptr;
  // Null: a loss is told by this store or not at all.
  std::shared_ptr<LossLog> losses = nullptr;
  // Through which all data of the pool passes, and no metadata; none: data goes to the device as it is.
  DataLayer data_layer = nullptr;
  // Memory for what the journal queues; none: what changes a map is answered when it is on the device.
  JournalQueue::Source queue = nullptr;
  // After so long it goes to the device though nobody flushes.
  std::uint64_t longest_queued_us = 500'000;
};

struct CreateOptions {
  Uuid id;
  std::string name;
  std::uint64_t size_bytes = 0;
  bool thick = false;
  bool snapshot = false;
  std::int64_t created_ms = 0;
  // Of its logical blocks: 512 or 4096. 0: those of the pool's device; in a fork always those of its source.
  std::uint32_t block_bytes = 0;
};

struct Usage {
  std::uint64_t capacity_bytes = 0;
  std::uint64_t free_bytes = 0;
  std::uint64_t allocated_bytes = 0;
  std::uint64_t reserved_bytes = 0;
  std::uint64_t provisioned_bytes = 0;
  std::uint64_t metadata_bytes = 0;
  std::uint32_t volumes = 0;
  std::uint32_t snapshots = 0;
  // Of the capacity: what new allocations cannot take, rounded up; and the highest of kWatermarksPercent that this has
  // reached, 0 for none.
  std::uint32_t used_percent = 0;
  std::uint32_t watermark_percent = 0;
  // Given back to the device since the pool was opened, and freed but not given back yet, at most.
  std::uint64_t discarded_bytes = 0;
  std::uint64_t discard_pending_bytes = 0;
};

// How full a pool may get before the log warns, and Usage says so for as long as it is.
inline constexpr std::uint32_t kWatermarksPercent[] = {80, 90, 95, 99};

enum class JobState : std::uint8_t { kRunning = 1, kDone = 2, kFailed = 3, kCancelled = 4 };

// Long work in the background. A delete is a job under the volume's own id, and gone when it is done.
struct Job {
  Uuid id;
  Uuid volume_id;
  std::string kind;
  JobState state = JobState::kRunning;
  std::uint64_t done = 0;  // clusters
  std::uint64_t total = 0;
  std::string error;
  bool cancelled = false;
};
inline constexpr const char* kFlatten = "flatten";
inline constexpr const char* kTrim = "trim";

// Why a store takes no changes, and since when.
struct Failure {
  std::string reason;
  std::int64_t at_ms = 0;
  // The owner that has the device now; empty when the device failed.
  std::string lost_to;
};

class Store {
 public:
  // Makes an empty pool on the device, over whatever was there, on any reactor. Takes time in proportion to the device.
  // kInvalid: options; device too small. kIoError.
  static reactor::Task<Status> format(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& on, FormatOptions options);
  // The superblock alone, on any reactor, to see what is there. Errors of read_super().
  static reactor::Task<Result<Superblock>> probe(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& on);
  // Loads the pool and goes on with deletes that a crash interrupted. Errors of read_super() and recover().
  static reactor::Task<Result<std::unique_ptr<Store>>> open(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& home,
                                                            OpenOptions options = {});
  ~Store();

  // Waits for operations and for background work to pause, writes a checkpoint unless it is fenced, ends the lanes. No
  // volume may be open.
  // The store is then only good for destruction, whatever this answers.
  reactor::Task<Status> close();

  // kExists: id or name in use. kNoSpace: thick and not enough left. kInvalid: size.
  reactor::Task<Result<Volume*>> create(CreateOptions options);
  // A volume or snapshot (options.snapshot) with the contents of `source` at one instant; `source` may be in use.
  reactor::Task<Result<Volume*>> fork(Uuid source, CreateOptions options);
  // kBusy: open. The space comes back in the background.
  reactor::Task<Status> remove(Uuid id);
  // kInvalid: smaller. kNoSpace: thick.
  reactor::Task<Status> resize(Uuid id, std::uint64_t size_bytes);
  // kInvalid: a name that leaves no room for bursts.
  reactor::Task<Status> set_qos(Uuid id, Qos qos, Bursts bursts = {});
  // The volume's contents become those of the snapshot. kBusy: open. kInvalid: not its snapshot.
  reactor::Task<Status> revert(Uuid id, Uuid snapshot);
  // Starts to give the volume its own copy of all that it shares with others; then it has no parent any more. The
  // volume may be in use. The same job id again answers that job as it stands; a restart forgets jobs, and repeating
  // the request goes on where it stopped. kBusy: has a job. kInvalid: a snapshot. kExists: another job's id.
  reactor::Task<Result<Job>> flatten(Uuid id, Uuid job);
  // Starts to discard all that is free, whether freed space is discarded or not. The same job id again answers that job
  // as it stands. kUnsupported: the device cannot. kBusy: a trim runs already. kExists: another job's id.
  reactor::Task<Result<Job>> trim(Uuid job);
  // Durable when it returns.
  reactor::Task<Status> set_discard(bool enabled);
  bool discards() const { return (super().compatible_flags & kSuperNoDiscard) == 0; }
  // kNotFound; kUnsupported: a delete.
  Status cancel(const Uuid& job);
  // Those that run and the last of those that ended, in order of their beginning.
  std::vector<Job> jobs() const;

  // The volume can be read and written through its view until unview(). Nested.
  reactor::Task<Result<Volume*>> view(Uuid id);
  // A store before this one has not told the user of this volume, which has a view, of a loss: its next flush does.
  void owe(Volume& volume);
  void unview(Volume& volume);

  // Takes the device's growth over. kUnsupported: it shrank.
  reactor::Task<Status> grow();
  reactor::Task<Status> checkpoint();
  // What was done before is durable, as FLUSH promises with kFlush. kIoError.
  reactor::Task<Status> commit(Journal::Data data);
  // These, and state(), are others after the pool was loaded again: not to be kept across a wait.
  Journal& journal() { return *journal_; }
  Writer& writer() { return *writer_; }
  Lanes& lanes() { return lanes_; }
  reactor::Reactor& home() { return lanes_.home(); }
  // The home reactor's channel, until close(). Not for data.
  bdev::Channel& metadata() { return lane_->metadata(); }
  State& state() { return *state_; }
  const Superblock& super() const { return checkpointer_->super(); }
  // Any thread.
  std::uint32_t cluster_bytes() const { return cluster_bytes_; }
  const std::optional<Failure>& failure() const { return failure_; }
  // The device belongs to `who` now: no change is taken, and nothing is written or loaded again, until close().
  void fence(const std::string& who);
  bool fenced() const { return failure_ && !failure_->lost_to.empty(); }
  // Whether the volume's user knows of every failed flush of the device that may have lost what the user wrote. If not,
  // no flush of the volume may be answered with success.
  bool knows_all(const Volume& volume) const;
  // From now on the user does: a flush is answered with an error. The caller sends that answer to the reactor
  // `answers_on` before it returns to the home reactor's loop.
  void tell(Volume& volume, reactor::Reactor& answers_on);
  std::uint64_t replayed_records() const { return replayed_records_; }
  Usage usage() const;
  std::uint32_t used_percent() const;
  std::string name() const;
  bool idle() const {
    return background_ == 0 && !reviving_ && space_->idle() && !discarder_->running() && checkpointer_->idle() &&
           journal_->idle();
  }

 private:
  Store(std::shared_ptr<bdev::Bdev> device, reactor::Reactor& home, const OpenOptions& options);
  static reactor::Task<Status> format_steps(bdev::Bdev& device, bdev::Channel& channel, reactor::Reactor& on,
                                            FormatOptions options);
  // Reads the pool where loading runs, and comes back home. `expected`: the pool's id, nil for any. kCorrupt: another.
  reactor::Task<Result<Recovered>> load(Uuid expected);
  reactor::Task<Result<Recovered>> load_steps(bdev::Channel& channel, Uuid expected);
  Status open_queue(const Superblock& super);
  // Destroys a state where loading runs, and comes back home.
  reactor::Task<void> dispose(std::unique_ptr<State> state);
  // What works on the state, and is replaced with it.
  struct Parts {
    std::unique_ptr<State> state;
    std::unique_ptr<Publication> publication;
    std::unique_ptr<Journal> journal;
    std::unique_ptr<Checkpointer> checkpointer;
    std::unique_ptr<Loader> loader;
    std::unique_ptr<Discarder> discarder;
    std::unique_ptr<Space> space;
    std::unique_ptr<Writer> writer;
  };
  Parts make_parts(Recovered recovered);
  void start(Parts parts);
  // kRetry.
  Result<reactor::Gate::Holder> enter();

  // store_failure.cpp
  void note_loss();
  reactor::Task<void> note_told(Uuid id, reactor::Reactor& answers_on);
  void fail_changes(const std::string& reason, Journal::Loss loss);
  reactor::Task<void> revive();
  reactor::Task<Status> load_again();
  reactor::Task<Status> replace_parts();
  reactor::Task<void> wait_until_quiet();
  reactor::Task<Status> prepare(Parts& parts);
  reactor::Task<Status> load_open_indexes(Parts& parts);
  reactor::Task<void> pause(std::uint64_t pause_us);

  Status change(const RecordHeader& record);
  Result<Volume*> live(const Uuid& id) const;
  Status check_create(const CreateOptions& options) const;
  Status check_promise(std::uint64_t clusters) const;
  // Room for so many new metadata pages. kNoSpace.
  Status make_pages(std::uint32_t count);
  // Before that, where waiting is allowed: with room on the device for them.
  reactor::Task<Status> prepare_pages(std::uint32_t count);
  Status no_metadata_space(Status made) const;
  // kBusy.
  Status check_unused(const Volume& volume) const;
  void empty_in_background(Volume& volume);
  reactor::Task<void> empty(VolumeNo number, Job& job);
  reactor::Task<Status> empty_steps(Volume& volume, Job& job);
  Job* find_job(const Uuid& id) const;
  void forget_old_jobs();
  reactor::Task<void> run_flatten(Volume& volume, Job& job);
  reactor::Task<void> run_trim(Job& job);
  reactor::Task<void> reserve_metadata();
  reactor::Task<Status> flatten_steps(Volume& volume, Job& job);
  std::uint32_t list_shared(const Volume& volume, std::size_t slot, std::vector<std::uint32_t>& shared) const;
  reactor::Task<Status> own_cluster(Volume& volume, std::uint32_t index);
  void committed();
  void watch_space();

  reactor::Gate gate_;
  reactor::Reactor& loads_on_;
  const JournalQueue::Source queue_source_;
  const std::uint64_t longest_queued_us_;
  std::unique_ptr<JournalQueue> queue_;
  Lanes lanes_;
  Lane* lane_ = nullptr;
  std::unique_ptr<State> state_;
  std::unique_ptr<Publication> publication_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<Checkpointer> checkpointer_;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<Discarder> discarder_;
  std::unique_ptr<Space> space_;
  std::unique_ptr<Writer> writer_;
  // Changes of the set of volumes, one at a time up to the point where they are in memory and in the journal's queue.
  reactor::AsyncMutex structure_;
  std::vector<std::unique_ptr<Job>> jobs_;
  // Deletes, flattens and other coroutines under way that no caller waits for.
  std::uint32_t background_ = 0;
  bool closing_ = false;
  std::optional<Failure> failure_;
  bool reviving_ = false;
  // Failures that may have lost what was written and not flushed, see Journal::Loss. From 1 on: 0 is before all.
  std::uint64_t losses_ = 1;
  const std::shared_ptr<LossLog> loss_log_;
  // While the pool is loaded again: guests' requests that came meanwhile.
  HomeIoList held_;
  std::uint32_t cluster_bytes_ = 0;
  const Discarder::Pace discard_pace_;
  // By discarders that the present one has replaced.
  std::uint64_t discarded_before_bytes_ = 0;
  std::size_t passed_ = 0;  // watermarks
  std::uint64_t replayed_records_ = 0;
};

}  // namespace pollux::blob
