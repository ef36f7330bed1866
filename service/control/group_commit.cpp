#include "control/group_commit.h"

#include <utility>

namespace pollux::control {

Status GroupCommit::run(const Change& change) {
  Waiting mine{change, {}};
  std::unique_lock lock(queue_mutex_);
  queue_.push_back(&mine);
  while (!mine.done) {
    if (carrying_out_) {
      group_ended_.wait(lock);
      continue;
    }
    carrying_out_ = true;
    const std::vector<Waiting*> group = std::exchange(queue_, {});
    lock.unlock();
    carry_out(group);
    lock.lock();
    for (Waiting* each : group) each->done = true;
    carrying_out_ = false;
    group_ended_.notify_all();
  }
  return std::move(mine.result);
}

// Killed before the commit, none of them was done, and nobody was told otherwise.
void GroupCommit::carry_out(const std::vector<Waiting*>& group) {
  const std::lock_guard lock(mutex_);
  sqlite::Transaction transaction(database_);
  Status all = transaction.begun();
  if (all) all = carry_out_each(group);
  if (all) all = transaction.commit();
  if (all) return;
  for (Waiting* each : group) {
    if (each->result) each->result = all;
  }
}

Status GroupCommit::carry_out_each(const std::vector<Waiting*>& group) {
  for (Waiting* each : group) {
    POLLUX_TRY(database_.run("SAVEPOINT one"));
    each->result = each->change();
    // Some errors, such as a full disk, end the whole transaction: what came before is undone as well.
    if (!database_.in_transaction()) return each->result ? fail(database_.error("a change ended")) : each->result;
    if (!each->result) POLLUX_TRY(database_.run("ROLLBACK TO one"));
    POLLUX_TRY(database_.run("RELEASE one"));
  }
  return {};
}

}  // namespace pollux::control
