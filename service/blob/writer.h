#pragma once
// Writer: writes that change the map. First writes into thin volumes and clones, and giving space back.
//
// The ordinary case is a plain state machine: a write that covers whole sub-blocks goes straight into a cluster of the
// volume's own (allocated now if need be); when the data is there, the sub-blocks' bits are set and a record is queued
// for the journal. Nothing is read, copied or filled with zeros, and any number of such writes are under way, also in
// one cluster. What needs more (a write smaller than a sub-block into a sub-block never written, a cluster that is
// shared and half written; a flatten) is a coroutine that has the cluster for itself.
//
// Order makes it safe: data first, then the map in memory, then the journal, then the answer. What the journal has
// queued outlives the process (blob/journal_queue.h), so the answer need not wait for the commit: a power cut before
// that forgets the cluster, which was free, and leaves the old contents, as it may until a flush. Where the queue does
// not outlive the process, the answer waits for the commit, and until then all writes to the cluster come here, since
// one in place, answered at once, would be forgotten with it when the process dies.
//
// A volume may have smaller blocks than its device. A write of less than a block of the device to what is in place
// reads that block, changes it and writes it back; all other writes to the cluster are kept out meanwhile, those of the
// data path by a mark in the map and a grace period. Home reactor only.

#include <cstdint>
#include <optional>

#include "bdev/bdev.h"
#include "bdev/fair_queue.h"
#include "blob/cluster_table.h"
#include "blob/home_io.h"
#include "blob/journal.h"
#include "blob/lanes.h"
#include "blob/loader.h"
#include "blob/publication.h"
#include "blob/state.h"

namespace pollux::blob {

class Space;

class Writer {
 public:
  // With how many clusters it is at work at one time, at most.
  static constexpr std::size_t kClusters = 4096;

  // `longest_queued_us`: how long what was answered may wait for a round of the journal that nobody asks for.
  Writer(State& state, Publication& publication, Journal& journal, Loader& loader, Space& space, Lane& lane,
         std::uint64_t longest_queued_us);

  // Takes the request; io.done follows, perhaps before this returns.
  void start(HomeIo& io);
  // From here on requests that come are put there; those under way go on.
  void hold(HomeIoList& requests) { held_ = &requests; }
  // Requests that come are taken again.
  void unhold() { held_ = nullptr; }
  // Nothing is under way.
  bool idle() const;
  // Before the end: no timer runs afterwards.
  void stop() { age_.cancel(); }
  // Requests that start() put aside because the volume was frozen, or space or room in the journal was short.
  void resume(HomeIoList& ios);
  // Room in the journal again.
  void resume_backlog();
  // Clusters became free, or none are on their way any more.
  void resume_space_waiters();
  // Clusters are contested no more, see Refcounts.
  void resume_settle_waiters();

 private:
  // Those of several volumes, which take turns. The links are in the requests.
  struct Next {
    static HomeIo*& of(HomeIo& io) { return io.link_; }
  };
  using FairHomeIoList = bdev::BasicFairQueue<HomeIo, Next>;

  struct Masks {
    std::uint64_t touched;  // sub-blocks the range has a byte of
    std::uint64_t covered;  // sub-blocks it covers whole
  };
  Masks masks(std::uint32_t offset, std::uint32_t length) const;
  bool whole_cluster(const HomeIo& io) const;
  // It changes a part of a block of the device that is there and may be written in place.
  bool changes_block(const HomeIo& io, const ClusterState& now) const;
  bool changes_block(const HomeIo& io) const;

  void dispatch(HomeIo& io);
  void drain();
  // `now`: the cluster as it is, nothing in it contested.
  void write(HomeIo& io, const ClusterState& now);
  void zero(HomeIo& io, const ClusterState& now);
  void own(HomeIo& io, const ClusterState& now);
  void write_in_place(HomeIo& io, ClusterNo own);
  void written_in_place(HomeIo& io);
  void fill(HomeIo& io, OpenCluster& cluster, std::uint64_t mask);
  void filled(HomeIo& io);
  // Put aside until freed clusters come back, or answered when none will.
  void no_space(HomeIo& io);
  void submit_data(HomeIo& io, ClusterNo own, void (*complete)(bdev::IoRequest&));
  // Changes the map and queues the record.
  bdev::IoStatus publish(Volume& volume, std::uint32_t index, const MapEntry& entry);
  void release(OpenCluster& cluster);
  void finish(HomeIo& io, bdev::IoStatus status);
  // After publish(): where a kill of the process would forget the record, no write to the io's cluster is answered
  // before it is on the device.
  void note_change(HomeIo& io);
  // Answers when what was published is on the device: a completed write outlives the process, which a guest does too.
  // What one turn of the reactor collects shares a journal round.
  void finish_when_committed(HomeIo& io);
  void finish_published(HomeIo& io);
  void start_commit();
  void committed(bool ok);

  // writer_block.cpp
  reactor::Task<void> change_blocks(HomeIo& io, OpenCluster& cluster);
  reactor::Task<bdev::IoStatus> change_block(HomeIo& io);

  // writer_slow.cpp
  void start_slow(HomeIo& io);
  reactor::Task<void> slow(HomeIo& io, OpenCluster& cluster);
  reactor::Task<bdev::IoStatus> slow_steps(HomeIo& io, OpenCluster& cluster);
  reactor::Task<bdev::IoStatus> own_steps(HomeIo& io, OpenCluster& cluster);
  // From here to the end of the operation nobody else writes to the cluster.
  void hold(HomeIo& io, OpenCluster& cluster);
  // A cluster of the slow operation's own, while nobody writes to the old one.
  bool take_cluster(HomeIo& io, OpenCluster& cluster);
  reactor::Task<bdev::IoStatus> read_sub_block(const MapEntry& entry, std::uint32_t sub_block, std::byte* to);
  reactor::Task<bdev::IoStatus> copy_sub_blocks(ClusterNo from, ClusterNo to, std::uint64_t mask);
  reactor::Task<bdev::IoStatus> write_padded(HomeIo& io, const MapEntry& old, ClusterNo own, std::uint64_t have);
  reactor::Task<bdev::IoStatus> zero_edges(HomeIo& io, const MapEntry& entry, std::uint64_t covered);
  reactor::Task<void> load_and_start(HomeIo& io);

  // Bounds the memory of copies: each slow operation holds at most one cluster.
  static constexpr std::uint32_t kSlowAtOnce = 16;

  State& state_;
  Publication& publication_;
  Journal& journal_;
  Loader& loader_;
  Space& space_;
  Lane& lane_;
  const std::uint32_t cluster_bytes_;
  const std::uint32_t sub_block_bytes_;
  const std::uint32_t device_block_bytes_;
  const std::uint64_t longest_queued_us_;
  ClusterTable<OpenCluster> open_;
  HomeIoList ready_;
  HomeIoList backlog_;
  HomeIoList space_waiters_;
  HomeIoList settle_waiters_;
  FairHomeIoList slow_backlog_;
  // Published, not yet on the device: those of the round under way, and those of the next.
  HomeIoList committing_;
  HomeIoList published_;
  bool commit_started_ = false;
  struct CommitTurn : reactor::Message {
    Writer* writer = nullptr;
  } commit_turn_;
  struct CommitWaiter : Journal::Waiter {
    Writer* writer = nullptr;
  } commit_waiter_;
  // What is queued goes to the device in the end though nobody flushes.
  reactor::Timer age_{[this] { journal_.kick(); }};
  bool draining_ = false;
  std::uint32_t slow_running_ = 0;
  // What is dispatched has come from slow_backlog_.
  bool slow_turn_ = false;
  std::uint32_t loading_ = 0;
  HomeIoList* held_ = nullptr;
};

}  // namespace pollux::blob
