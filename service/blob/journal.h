#pragma once
// Journal: makes changes of the state durable, many at a time, with one commit in flight.
//
// append() queues a record; the change it describes is in memory already. A round takes everything that is queued,
// flushes the device (so that data is there before the map that leads to it), writes the records as one or a few
// commits with FUA, and then answers everybody who asked before the round began. Who asks during a round waits for the
// next. A guest's flush is the same thing; with nothing queued it is a flush of the device alone. With a JournalQueue
// what is queued outlives the process, and needs no round for that.
//
// The ring's oldest part is given up by a checkpoint, see checkpoint.h. A checkpoint never waits for room that it alone
// can make: when the ring is full, records before its cut are not written at all, since its pages hold what they say.
//
// After a failed write the journal answers nothing but errors: what is durable is no longer known. The Store then makes
// a new one from what the device holds. Home reactor only.

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "bdev/bdev.h"
#include "blob/aligned_buffer.h"
#include "blob/cluster_io.h"
#include "blob/format.h"
#include "blob/journal_queue.h"
#include "reactor/task.h"

namespace pollux::blob {

// Where a commit is, or would be: byte offset in the ring, its number, the checksum of the one before.
struct JournalPosition {
  std::uint64_t offset = 0;
  std::uint64_t sequence = 1;
  std::uint32_t previous_crc = 0;
};

class Journal {
 public:
  // Whether what was written and not flushed yet may be lost for good: after a flush that failed, a device or kernel may
  // have dropped what it held, and the next flush succeeds without it.
  enum class Loss : bool { kNone, kPossible };

  struct Options {
    std::uint64_t ring_offset = 0;
    std::uint64_t ring_bytes = 0;
    Uuid pool_id;
    std::uint32_t checksum_seed = 0;
    // Where a flush makes written data durable. Null: the pool is being made and has no data.
    ClusterIo* data = nullptr;
    // Null: none. `queued`: what the last process left in it, which is applied already and in the next round.
    JournalQueue* queue = nullptr;
    std::vector<JournalQueue::Slot*> queued;
    // Called when half of the ring is in use; a checkpoint should start.
    std::function<void()> on_half_full;
    // Called at the end of each round that wrote something.
    std::function<void()> on_committed;
    // Called at every failure.
    std::function<void(const std::string& reason, Loss loss)> on_failed;
  };
  // A caller of sync(): stays alive until `done`.
  struct Waiter {
    void (*done)(Waiter&, bool ok) = nullptr;
    // Written data must be durable too, not only the records.
    bool flush = true;
    Waiter* next = nullptr;
  };

  Journal(bdev::Channel& channel, Options options, JournalPosition tail, JournalPosition head);
  // Of the records of one commit, with its header.
  static std::size_t chunk_bytes(std::uint64_t ring_bytes);

  void append(const RecordHeader& record);
  // Everything appended before this call, and with waiter.flush all data written, is durable when `done` says ok.
  void sync(Waiter& waiter);
  // The same to await. kIoError. Records of data bring that data with them in any case.
  enum class Data : bool { kAsItIs, kFlush };
  reactor::Task<Status> commit(Data data = Data::kAsItIs);
  // Writes what is queued without anybody waiting.
  void kick();
  // Whether the next commit's place can be written, before anything is appended: zeros go there, which are no commit.
  // kIoError, kNoSpace: it cannot, and the journal has failed.
  reactor::Task<Status> try_writing();

  // What was appended so far is there after the process was killed.
  bool outlives_process() const { return options_.queue != nullptr && !failed_ && chunks_of_its_own_ == 0; }

  // Fixes an instant: the position of the first commit that holds records appended after this call. All before it are
  // durable, or, when the ring has no room for them, wait until release_before() says that this checkpoint has made
  // them so. One cut at a time. kIoError.
  reactor::Task<Result<JournalPosition>> cut(std::uint64_t checkpoint);
  // The checkpoint whose position this is has become durable: commits before it are no longer needed.
  void release_before(const JournalPosition& position);

  // From here on everybody gets an error, and nothing is written.
  void give_up(const std::string& reason, Loss loss);

  // Too much is queued: hold new map changes back until on_committed.
  bool congested() const { return queued_bytes_ > options_.ring_bytes / 8; }
  bool failed() const { return failed_; }
  // Nothing is being written, and nobody waits.
  bool idle() const { return !running_; }
  std::uint64_t rounds() const { return rounds_; }
  std::uint64_t used_bytes() const { return used_bytes_; }

 private:
  // Of chunk_bytes_; in a slot of the queue when one is free.
  struct Buffer {
    AlignedBuffer own;
    JournalQueue::Slot* slot = nullptr;
    std::byte* data() { return slot != nullptr ? slot->data() : own.data(); }
  };
  struct Chunk {
    std::uint64_t number = 0;  // in the order of the queue
    Buffer bytes;
    std::size_t used = 0;
    std::uint32_t records = 0;
    bool has_data = false;
    // Not a chunk but the mark of a cut.
    bool is_cut = false;
  };
  struct Cut {
    std::uint64_t number;  // of its mark
    std::uint64_t checkpoint;
    reactor::Completion<Result<JournalPosition>> position;
  };
  void close_chunk();
  void start();
  reactor::Task<void> run();
  reactor::Task<bool> run_round(std::deque<Chunk> chunks, bool flush);
  reactor::Task<void> write_chunk(Chunk& chunk);
  void fail_writing(bdev::IoStatus status);
  // False: there will be none.
  reactor::Task<bool> wait_for_space(const Chunk& chunk, std::uint64_t bytes);
  void reach_cut();
  // The ring is full and a checkpoint has begun: its cut is where the ring ends now.
  void absorb();
  bool absorbed(const Chunk& chunk) const { return chunk.number < absorbed_before_; }
  void open_chunk();
  // Its records are on the device, or in a checkpoint's pages.
  void end_chunk(Chunk& chunk);

  bdev::Channel& channel_;
  const Options options_;
  const std::size_t chunk_bytes_;
  JournalPosition head_;
  std::uint64_t tail_offset_;
  std::uint64_t used_bytes_ = 0;
  Chunk open_;
  std::deque<Chunk> closed_;
  std::size_t queued_bytes_ = 0;
  std::vector<AlignedBuffer> spare_;
  Waiter* waiters_head_ = nullptr;
  Waiter* waiters_tail_ = nullptr;
  bool running_ = false;
  bool kicked_ = false;
  bool failed_ = false;
  bool half_full_told_ = false;
  std::uint64_t rounds_ = 0;
  // Queued in memory of the process alone, since no slot was free.
  std::uint32_t chunks_of_its_own_ = 0;
  // Who waits for room in the ring.
  reactor::Completion<bool>* space_ = nullptr;
  // Of a chunk or mark, and of a chunk.
  std::uint64_t last_number_ = 0;
  std::uint64_t last_chunk_ = 0;
  Cut* cut_ = nullptr;
  // Chunks with lower numbers are in the pages of the checkpoint under way, or (0: no such) of one that is durable.
  std::uint64_t absorbing_before_ = 0;
  std::uint64_t absorbed_before_ = 0;
};

}  // namespace pollux::blob
