#include "blob/checkpoint.h"

#include <cstring>

#include "base/log.h"
#include "blob/aligned_buffer.h"
#include "blob/page_codec.h"
#include "blob/parallel.h"

namespace pollux::blob {

namespace {

constexpr std::size_t kWritesInFlight = 32;

}  // namespace

reactor::Task<Status> write_super(bdev::Channel& channel, Superblock super) {
  seal_super(super);
  AlignedBuffer bytes(kPageBytes);
  std::memcpy(bytes.data(), &super, sizeof(super));
  const auto status = co_await bdev::write(channel, (super.checkpoint % 2) * kSuperSlotStride, bytes.data(), kPageBytes,
                                           bdev::IoRequest::kFua);
  co_return bdev::to_status(status, "write of the superblock");
}

std::vector<Checkpointer::Write> Checkpointer::plan() {
  PageStore& pages = state_.pages;
  // Flipping a slot changes the directory, which has to go into this checkpoint too; so before the cut.
  for (std::size_t i = 0; i < state_.dirty.pending().size(); ++i) {
    const PageKey key = state_.dirty.pending()[i];
    if (key.is_refcounts()) continue;
    const PageType type = pages.type(key.number());
    if (type != PageType::kFree && type != PageType::kDirectory) pages.flip_slot(key.number());
  }
  std::vector<Write> writes;
  for (PageKey key : state_.dirty.cut()) {
    const std::uint32_t number = key.number();
    if (key.is_refcounts()) {
      const unsigned slot = state_.refcounts.flip_slot(number);
      writes.push_back({key, PageType::kRefcounts, state_.geometry.refcount_slot_offset(number, slot), 0});
      continue;
    }
    const PageType type = pages.type(number);
    if (type == PageType::kFree) {
      state_.dirty.forget(key);
    } else if (type == PageType::kDirectory) {
      const std::uint32_t cluster = number / state_.geometry.pages_per_cluster;
      const unsigned slot = pages.flip_directory_slot(cluster);
      const std::uint64_t wipe = pages.take_fresh(cluster) ? pages.slot_offset(number, slot ^ 1) : 0;
      writes.push_back({key, type, pages.slot_offset(number, slot), wipe});
    } else {
      writes.push_back({key, type, pages.slot_offset(number, pages.valid_slot(number)), 0});
    }
  }
  return writes;
}

reactor::Task<Status> Checkpointer::write_page(const Write& write, std::uint64_t generation) {
  PageImage image = state_.dirty.image(write.key);
  seal_page(image.data(), write.type, write.key.number(), generation, seed());
  if (write.wipe_offset != 0) {
    const AlignedBuffer zeros(kPageBytes);
    POLLUX_CO_TRY(bdev::to_status(co_await bdev::write(channel_, write.wipe_offset, zeros.data(), kPageBytes),
                                  "write of a metadata page"));
  }
  co_return bdev::to_status(co_await bdev::write(channel_, write.offset, image.data(), kPageBytes),
                            "write of a metadata page");
}

reactor::Task<Status> Checkpointer::run() {
  auto guard = co_await one_.lock();
  co_return co_await run_alone();
}

void Checkpointer::want() {
  wanted_ = true;
  if (serving_) return;
  serving_ = true;
  reactor::spawn(serve());
}

reactor::Task<void> Checkpointer::serve() {
  while (wanted_) {
    auto guard = co_await one_.lock();
    // Another may have begun meanwhile.
    if (!wanted_) continue;
    if (auto done = co_await run_alone(); !done) log::error("{}", done.error().message);
  }
  serving_ = false;
}

reactor::Task<Status> Checkpointer::run_alone() {
  wanted_ = false;
  if (journal_.failed()) co_return fail(ErrorCode::kIoError, "the pool has failed and takes no changes");

  // The cut: no await between the two halves, so pages and journal agree.
  const std::vector<Write> writes = plan();
  Superblock next = super_;
  next.checkpoint = super_.checkpoint + 1;
  next.cluster_count = state_.geometry.cluster_count;
  next.compatible_flags = compatible_flags_;
  auto position = co_await journal_.cut(next.checkpoint);
  if (!position) co_return fail(std::move(position.error()));

  // A crash from here on leaves pages of a generation that no superblock vouches for: recovery takes the other slot.
  auto written = co_await parallel(home_, writes.size(), kWritesInFlight, [this, &writes, &next](std::size_t i) {
    return write_page(writes[i], next.checkpoint);
  });
  // Only a flush, or FUA, that fails may lose what others wrote; without space nothing was done.
  auto loss = Journal::Loss::kNone;
  if (written) {
    written = bdev::to_status(co_await bdev::flush(channel_), "flush of metadata pages");
    if (!written) loss = Journal::Loss::kPossible;
  }
  next.replay_offset = position->offset;
  next.replay_sequence = position->sequence;
  next.replay_previous_crc = position->previous_crc;
  if (written) {
    written = co_await write_super(channel_, next);
    if (!written && written.error().code != ErrorCode::kNoSpace) loss = Journal::Loss::kPossible;
  }
  if (!written) {
    journal_.give_up("checkpoint failed: " + written.error().message, loss);
    co_return written;
  }
  super_ = next;
  journal_.release_before(*position);
  co_return Status{};
}

}  // namespace pollux::blob
