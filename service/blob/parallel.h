#pragma once
// parallel(): runs a coroutine for each index, a bounded number at a time, all on one reactor.

#include <cstddef>

#include "base/result.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::blob {

// step(i) -> Task<Status> for i in [0, count), `width` at a time. After the first error no new step begins; that error
// is the result. On the reactor.
template <typename Step>
reactor::Task<Status> parallel(reactor::Reactor& on, std::size_t count, std::size_t width, Step step) {
  struct Shared {
    std::size_t next = 0;
    std::size_t workers = 0;
    Status status;
    reactor::Completion<bool> done;
  } shared;
  // A device that completes within submit() would otherwise nest one step in the other without bound.
  constexpr std::size_t kStepsPerTurn = 16;
  const auto worker = [&on, &shared, &step, count]() -> reactor::Task<void> {
    for (std::size_t steps = 1; shared.next < count && shared.status; ++steps) {
      const std::size_t mine = shared.next++;
      Status result = co_await step(mine);
      if (!result && shared.status) shared.status = std::move(result);
      if (steps % kStepsPerTurn == 0) co_await on.yield();
    }
  };
  shared.workers = width < count ? width : count;
  if (shared.workers == 0) co_return Status{};
  const std::size_t workers = shared.workers;
  for (std::size_t i = 0; i < workers; ++i) {
    reactor::spawn(worker(), [&shared] {
      if (--shared.workers == 0) shared.done.set(true);
    });
  }
  co_await shared.done;
  co_return std::move(shared.status);
}

}  // namespace pollux::blob
