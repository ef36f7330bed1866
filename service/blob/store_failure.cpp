// A store that has failed, and how it comes back: what is in memory is given up, and the pool is loaded from its device
// again, with the same steps as at a start. Open volumes stay open.
//
// Why not go on from memory: it is ahead of what is durable by the changes that were never answered. They may lead to
// clusters into which data was copied, durable elsewhere, that the failed flush was to make durable and the device has
// dropped. What was answered is in the journal, and was flushed before that.
//
// What a guest wrote in place and has not flushed may be lost with a failed flush although the next one succeeds; so the
// next flush of each volume that was open then is answered with an error, once. The LossLog knows who is still to be
// told when the service is restarted.
//
// A store that is fenced does not come back: what its device holds is another owner's, and may differ from what guests
// here have seen. Only closing it and opening the pool anew ends that.

#include <algorithm>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "blob/loss_log.h"
#include "blob/store.h"
#include "blob/volume.h"

namespace pollux::blob {

namespace {

// Between attempts to load the pool again; each pause is twice the one before.
constexpr std::uint64_t kFirstPauseUs = 10'000;
constexpr std::uint64_t kLongestPauseUs = 10'000'000;
// How long a pool that closes may wait for a pause to end.
constexpr std::uint64_t kPauseStepUs = 10'000;
// Of a reactor, in which what it has completed reaches the guest: each of its pollers looks more often than that.
constexpr unsigned kTurnsToAnswer = 64;

}  // namespace

void Store::fail_changes(const std::string& reason, Journal::Loss loss) {
  if (loss == Journal::Loss::kPossible) note_loss();
  if (failure_) return;
  failure_ = Failure{.reason = reason, .at_ms = wall_clock_ms()};
  log::critical("pool '{}' has failed: {}; it takes no changes until its device works again; reads go on", name(),
                reason);
  if (reviving_ || closing_) return;
  reviving_ = true;
  reactor::spawn(revive());
}

void Store::fence(const std::string& who) {
  if (fenced()) return;
  failure_ = Failure{.reason = "the pool belongs to " + who + " now; import it again to have it back",
                     .at_ms = wall_clock_ms(),
                     .lost_to = who};
  discarder_->stop();
  journal_->give_up(failure_->reason, Journal::Loss::kNone);
}

// The log has those already that are behind. A store that closes has no open volumes left, but the guests who had them
// may outlive the service.
void Store::note_loss() {
  std::vector<Uuid> untold;
  for (const auto& [number, volume] : state_->volumes()) {
    if (closing_ || (volume->view && volume->losses_told == losses_)) untold.push_back(volume->id);
  }
  ++losses_;
  if (loss_log_ && !untold.empty()) loss_log_->owe(std::move(untold));
}

void Store::owe(Volume& volume) {
  volume.losses_told = 0;
  // Also when that is where it comes from: what was read there may have been forgotten meanwhile.
  if (loss_log_) loss_log_->owe({volume.id});
}

bool Store::knows_all(const Volume& volume) const {
  return volume.losses_told == losses_;
}

void Store::tell(Volume& volume, reactor::Reactor& answers_on) {
  volume.losses_told = losses_;
  if (!loss_log_) return;
  ++background_;
  reactor::spawn(note_told(volume.id, answers_on), [this] { --background_; });
}

// The log forgets when the user has the answer, not before: a guest repeats a flush that the service was killed with,
// and the repeated one must fail as well.
reactor::Task<void> Store::note_told(Uuid id, reactor::Reactor& answers_on) {
  // The answer is on its way to its reactor then, and this comes behind it.
  co_await home().yield();
  co_await answers_on.enter();
  for (unsigned turn = 0; turn < kTurnsToAnswer; ++turn) co_await answers_on.yield();
  co_await home().enter();
  const Volume* volume = state_->find(id);
  // Another loss may have come meanwhile, which it was not told of.
  if (volume != nullptr && volume->losses_told == losses_) loss_log_->told(id);
}

reactor::Task<void> Store::pause(std::uint64_t pause_us) {
  for (std::uint64_t slept_us = 0; slept_us < pause_us && !closing_ && !fenced(); slept_us += kPauseStepUs) {
    co_await home().sleep_us(std::min(kPauseStepUs, pause_us - slept_us));
  }
}

reactor::Task<void> Store::revive() {
  std::string said;
  for (std::uint64_t pause_us = kFirstPauseUs; failure_; pause_us = std::min(2 * pause_us, kLongestPauseUs)) {
    co_await pause(pause_us);
    if (closing_ || fenced()) break;
    const Status loaded = co_await load_again();
    if (loaded || fenced() || loaded.error().message == said) continue;
    said = loaded.error().message;
    log::error("pool '{}' takes no changes still: {}", name(), said);
  }
  reviving_ = false;
}

// Guests' requests wait meanwhile, but for those that need no map from the device and change none.
reactor::Task<Status> Store::load_again() {
  // Without this nobody is disturbed in vain.
  if (auto flushed = bdev::to_status(co_await lane_->data().flush(), "flush"); !flushed) {
    note_loss();
    co_return flushed;
  }
  writer_->hold(held_);
  // For good: loading the pool again makes others.
  discarder_->stop();
  writer_->stop();
  co_await wait_until_quiet();
  Status loaded = co_await replace_parts();
  writer_->unhold();
  writer_->resume(held_);
  gate_.open();
  if (loaded && !closing_) {
    // One that failed before.
    if (auto grown = co_await grow(); !grown) log::error("pool '{}': {}", name(), grown.error().message);
  }
  co_return loaded;
}

// All that is under way ends soon: a journal that has failed answers at once, and the Writer refuses.
reactor::Task<void> Store::wait_until_quiet() {
  co_await gate_.close();
  const auto quiet = [this] {
    return background_ == 0 && space_->idle() && !discarder_->running() && checkpointer_->idle() && journal_->idle() &&
           loader_->idle() && writer_->idle();
  };
  while (!quiet()) {
    journal_->kick();
    writer_->resume_backlog();
    co_await home().sleep_us(200);
  }
}

reactor::Task<Status> Store::replace_parts() {
  // What is read from here on stays: a commit that answered an error may have reached the device all the same.
  if (auto flushed = bdev::to_status(co_await lane_->data().flush(), "flush"); !flushed) {
    note_loss();
    co_return flushed;
  }
  auto recovered = co_await load(super().pool_id);
  if (!recovered) co_return fail(std::move(recovered.error()));
  Parts parts = make_parts(std::move(*recovered));
  if (const Status prepared = co_await prepare(parts); !prepared) {
    std::unique_ptr<State> state = std::move(parts.state);
    parts = {};
    co_await dispose(std::move(state));
    co_return prepared;
  }

  // No await from here to start(): the data path sees the old maps or the new ones.
  std::unique_ptr<State> before = std::move(state_);
  parts.publication->take_over(*before);
  const auto tables = publication_->collect_retired();
  failure_.reset();
  start(std::move(parts));
  log::warn("pool '{}' takes changes again: its device works, and it was loaded from there", name());
  // Afterwards nobody looks at an old map any more.
  co_await lanes_.grace();
  co_await dispose(std::move(before));
  co_return Status{};
}

reactor::Task<Status> Store::prepare(Parts& parts) {
  POLLUX_CO_TRY(co_await load_open_indexes(parts));
  // That the journal can be written again. Else the pool would fail at the next change, and be back in a moment.
  Status written = co_await parts.journal->try_writing();
  // Shows that pages, flushes and the superblock can be written again, and empties the ring.
  if (written) written = co_await parts.checkpointer->run();
  // This may run in a round of that journal.
  do {
    co_await home().yield();
  } while (!parts.journal->idle());
  if (written && fenced()) co_return fail(ErrorCode::kIoError, failure_->reason);
  co_return written;
}

// What an open volume's view is made of must be known when the state changes.
reactor::Task<Status> Store::load_open_indexes(Parts& parts) {
  std::vector<Volume*> open;
  for (const auto& [number, volume] : state_->volumes()) {
    if (!volume->view) continue;
    Volume* found = parts.state->find(number);
    if (found == nullptr || found->id != volume->id) {
      co_return fail(ErrorCode::kCorrupt, "volume " + volume->id.to_string() + " is in use and not on the device");
    }
    open.push_back(found);
  }
  for (Volume* volume : open) POLLUX_CO_TRY(co_await parts.loader->index(*volume));
  co_return Status{};
}

}  // namespace pollux::blob
