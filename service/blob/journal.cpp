#include "blob/journal.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "base/crc32c.h"

namespace pollux::blob {

namespace {

reactor::Task<bdev::IoStatus> flush_device(ClusterIo* data, bdev::Channel& device) {
  return data != nullptr ? data->flush() : bdev::flush(device);
}

}  // namespace

Journal::Journal(bdev::Channel& channel, Options options, JournalPosition tail, JournalPosition head)
    : channel_(channel),
      options_(std::move(options)),
      chunk_bytes_(chunk_bytes(options_.ring_bytes)),
      head_(head),
      tail_offset_(tail.offset) {
  used_bytes_ = (head.offset + options_.ring_bytes - tail.offset) % options_.ring_bytes;
  for (JournalQueue::Slot* slot : options_.queued) {
    Chunk chunk;
    chunk.number = last_number_ = last_chunk_ = slot->number();
    chunk.bytes.slot = slot;
    chunk.used = slot->used();
    chunk.records = slot->records();
    chunk.has_data = slot->has_data();
    queued_bytes_ += chunk.used - sizeof(CommitHeader);
    closed_.push_back(std::move(chunk));
  }
}

std::size_t Journal::chunk_bytes(std::uint64_t ring_bytes) {
  return std::min<std::size_t>(kMaxCommitBytes, ring_bytes / 16 / kPageBytes * kPageBytes);
}

void Journal::open_chunk() {
  open_.number = ++last_number_;
  open_.used = sizeof(CommitHeader);
  const std::uint64_t follows = std::exchange(last_chunk_, open_.number);
  if (options_.queue != nullptr) open_.bytes.slot = options_.queue->take(open_.number, follows);
  if (open_.bytes.slot != nullptr) return;
  ++chunks_of_its_own_;
  if (spare_.empty()) {
    open_.bytes.own = AlignedBuffer(chunk_bytes_);
  } else {
    open_.bytes.own = std::move(spare_.back());
    spare_.pop_back();
  }
}

void Journal::end_chunk(Chunk& chunk) {
  queued_bytes_ -= chunk.used - sizeof(CommitHeader);
  if (chunk.bytes.slot == nullptr) {
    --chunks_of_its_own_;
    if (spare_.size() < 4) spare_.push_back(std::move(chunk.bytes.own));
  } else if (!failed_) {
    // After a failure it is for the next journal.
    JournalQueue::free(*chunk.bytes.slot);
  }
}

void Journal::append(const RecordHeader& record) {
  if (open_.records != 0 && open_.used + record.bytes > chunk_bytes_) close_chunk();
  if (open_.records == 0) open_chunk();
  std::memcpy(open_.bytes.data() + open_.used, &record, record.bytes);
  open_.used += record.bytes;
  queued_bytes_ += record.bytes;
  ++open_.records;
  open_.has_data = open_.has_data || record.type == RecordType::kMapSet;
  if (open_.bytes.slot != nullptr) JournalQueue::set(*open_.bytes.slot, open_.used, open_.records, open_.has_data);
  if (queued_bytes_ > chunk_bytes_) kick();
}

void Journal::close_chunk() {
  if (open_.records == 0) return;
  closed_.push_back(std::exchange(open_, Chunk{}));
}

void Journal::sync(Waiter& waiter) {
  waiter.next = nullptr;
  (waiters_tail_ == nullptr ? waiters_head_ : waiters_tail_->next) = &waiter;
  waiters_tail_ = &waiter;
  start();
}

reactor::Task<Status> Journal::commit(Data data) {
  struct Awaited : Waiter {
    reactor::Completion<bool> completion;
  } waiter;
  waiter.done = [](Waiter& w, bool ok) { static_cast<Awaited&>(w).completion.set(ok); };
  waiter.flush = data == Data::kFlush;
  sync(waiter);
  if (!co_await waiter.completion) {
    co_return fail(ErrorCode::kIoError, "the pool has failed and takes no changes: its journal cannot be written");
  }
  co_return Status{};
}

void Journal::kick() {
  kicked_ = true;
  start();
}

reactor::Task<Result<JournalPosition>> Journal::cut(std::uint64_t checkpoint) {
  assert(cut_ == nullptr);
  close_chunk();
  Cut cut{.number = ++last_number_, .checkpoint = checkpoint, .position = {}};
  cut_ = &cut;
  Chunk mark;
  mark.number = cut.number;
  mark.is_cut = true;
  closed_.push_back(std::move(mark));
  if (space_ != nullptr) {
    absorb();
  } else {
    kick();
  }
  co_return co_await cut.position;
}

void Journal::reach_cut() {
  Cut& cut = *std::exchange(cut_, nullptr);
  if (failed_) {
    cut.position.set(fail(ErrorCode::kIoError, "the pool's journal cannot be written"));
  } else {
    // Between the last commit before the mark and the first after it.
    cut.position.set(head_);
  }
}

void Journal::absorb() {
  absorbing_before_ = cut_->number;
  if (options_.queue != nullptr) options_.queue->absorb(cut_->number, cut_->checkpoint);
  reach_cut();
}

void Journal::release_before(const JournalPosition& position) {
  tail_offset_ = position.offset;
  used_bytes_ = (head_.offset + options_.ring_bytes - tail_offset_) % options_.ring_bytes;
  half_full_told_ = false;
  if (absorbing_before_ != 0) absorbed_before_ = std::exchange(absorbing_before_, 0);
  if (space_ != nullptr) std::exchange(space_, nullptr)->set(true);
}

void Journal::give_up(const std::string& reason, Loss loss) {
  failed_ = true;
  if (options_.queue != nullptr && loss == Loss::kPossible) options_.queue->lose();
  if (options_.on_failed) options_.on_failed(reason, loss);
  if (space_ != nullptr) std::exchange(space_, nullptr)->set(false);
}

void Journal::start() {
  if (running_) return;
  running_ = true;
  reactor::spawn(run());
}

reactor::Task<void> Journal::run() {
  while (kicked_ || waiters_head_ != nullptr) {
    kicked_ = false;
    close_chunk();
    std::deque<Chunk> chunks = std::exchange(closed_, {});
    Waiter* waiters = std::exchange(waiters_head_, nullptr);
    waiters_tail_ = nullptr;
    bool flush = false;
    for (const Waiter* waiter = waiters; waiter != nullptr; waiter = waiter->next) flush = flush || waiter->flush;
    const bool ok = co_await run_round(std::move(chunks), flush);
    while (waiters != nullptr) {
      Waiter* waiter = waiters;
      waiters = waiters->next;
      waiter->done(*waiter, ok);
    }
    if (options_.on_committed) options_.on_committed();
  }
  running_ = false;
}

reactor::Task<bool> Journal::run_round(std::deque<Chunk> chunks, bool flush) {
  ++rounds_;
  for (const Chunk& chunk : chunks) flush = flush || chunk.has_data;
  if (flush && !failed_) {
    const auto status = co_await flush_device(options_.data, channel_);
    if (status != bdev::IoStatus::kOk) {
      give_up(std::string("flush of its device failed: ") + bdev::to_string(status), Loss::kPossible);
    }
  }
  for (Chunk& chunk : chunks) {
    if (chunk.is_cut) {
      if (cut_ != nullptr && cut_->number == chunk.number) reach_cut();
      continue;
    }
    if (!failed_) co_await write_chunk(chunk);
    end_chunk(chunk);
  }
  co_return !failed_;
}

reactor::Task<bool> Journal::wait_for_space(const Chunk& chunk, std::uint64_t bytes) {
  while (!absorbed(chunk)) {
    if (used_bytes_ + bytes > options_.ring_bytes / 2 && !half_full_told_) {
      half_full_told_ = true;
      if (options_.on_half_full) options_.on_half_full();
    }
    const std::uint64_t to_end = options_.ring_bytes - head_.offset;
    const std::uint64_t skipped = bytes > to_end ? to_end : 0;
    // Never quite full: head and tail in one place mean empty.
    if (used_bytes_ + skipped + bytes < options_.ring_bytes) {
      if (skipped != 0) {
        used_bytes_ += skipped;
        head_.offset = 0;
      }
      co_return true;
    }
    reactor::Completion<bool> space;
    space_ = &space;
    // Its mark is behind this chunk, which would never be written.
    if (cut_ != nullptr) absorb();
    if (!co_await space) co_return false;
  }
  co_return true;
}

reactor::Task<void> Journal::write_chunk(Chunk& chunk) {
  const std::size_t bytes = align_up<std::size_t>(chunk.used, kPageBytes);
  std::memset(chunk.bytes.data() + chunk.used, 0, bytes - chunk.used);
  if (!co_await wait_for_space(chunk, bytes) || absorbed(chunk)) co_return;

  CommitHeader header{};
  header.magic = kCommitMagic;
  header.pool_id = options_.pool_id;
  header.sequence = head_.sequence;
  header.record_bytes = static_cast<std::uint32_t>(chunk.used - sizeof(CommitHeader));
  header.record_count = chunk.records;
  header.previous_crc = head_.previous_crc;
  header.crc = 0;
  const std::uint32_t crc = crc32c(&header, sizeof(header), options_.checksum_seed);
  header.crc = crc32c(chunk.bytes.data() + sizeof(header), header.record_bytes, crc);
  std::memcpy(chunk.bytes.data(), &header, sizeof(header));

  if (options_.queue != nullptr) {
    options_.queue->announce({.sequence = head_.sequence + 1, .number = chunk.number, .previous_crc = header.crc});
  }
  // A crash here leaves the commit whole, absent or torn; torn fails the checksum, and nobody was told yet.
  const auto status = co_await bdev::write(channel_, options_.ring_offset + head_.offset, chunk.bytes.data(), bytes,
                                           bdev::IoRequest::kFua);
  if (status != bdev::IoStatus::kOk) {
    fail_writing(status);
    co_return;
  }
  head_.offset += bytes;
  if (head_.offset == options_.ring_bytes) head_.offset = 0;
  used_bytes_ += bytes;
  ++head_.sequence;
  head_.previous_crc = header.crc;
  if (options_.queue != nullptr) options_.queue->arrived();
}

reactor::Task<Status> Journal::try_writing() {
  const AlignedBuffer zeros(kPageBytes);
  const auto status = co_await bdev::write(channel_, options_.ring_offset + head_.offset, zeros.data(), kPageBytes,
                                           bdev::IoRequest::kFua);
  if (status != bdev::IoStatus::kOk) fail_writing(status);
  co_return bdev::to_status(status, "write of its journal");
}

void Journal::fail_writing(bdev::IoStatus status) {
  // FUA may be a flush of the kernel's. Without space nothing was written, and nothing flushed.
  give_up(std::string("write of its journal failed: ") + bdev::to_string(status),
          status == bdev::IoStatus::kNoSpace ? Loss::kNone : Loss::kPossible);
}

}  // namespace pollux::blob
