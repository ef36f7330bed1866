#pragma once
// GroupCommit: changes that several threads make at about the same time become durable together, so that a flush of the
// device is shared by all of them instead of each waiting for those of the others.
//
// The first thread to come carries out its own change; what comes meanwhile is carried out together by one of those
// who wait, in the order in which it came. Any thread.

#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

#include "base/result.h"
#include "control/sqlite.h"

namespace pollux::control {

class GroupCommit {
 public:
  using Change = std::function<Status()>;

  // Changes run with the mutex held. Both outlive this.
  GroupCommit(sqlite::Database& database, std::mutex& mutex) : database_(database), mutex_(mutex) {}
  // The change runs once, maybe on the thread of another caller, and calls nothing of this. Its own error is the result
  // and leaves nothing of it behind; otherwise it is durable, or an error says that it was not done.
  Status run(const Change& change);

 private:
  struct Waiting {
    const Change& change;
    Status result;
    bool done = false;
  };
  void carry_out(const std::vector<Waiting*>& group);
  // The error of a statement that ended the transaction of all.
  Status carry_out_each(const std::vector<Waiting*>& group);

  sqlite::Database& database_;
  std::mutex& mutex_;
  std::mutex queue_mutex_;
  std::condition_variable group_ended_;
  std::vector<Waiting*> queue_;
  bool carrying_out_ = false;
};

}  // namespace pollux::control
