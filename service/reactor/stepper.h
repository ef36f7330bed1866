#pragma once
// Stepper: reactors for tests that have one thread together, their caller's. Which of them has its next turn is drawn
// from a seed, so that what happens between reactors happens again with the same seed: messages that are under way while
// the other end has many turns or none, a reactor that stands still while others go on.
//
// Turns are made by call(), until it has its answer: between calls nothing happens. What another thread does, and timers,
// are outside of the seed; a timer that is due at once is not. All on one thread, which is each reactor's in its turn.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "base/clock.h"
#include "reactor/reactor.h"

namespace pollux::reactor {

class Stepper {
 public:
  Stepper(unsigned count, std::uint64_t seed) : random_(seed) {
    for (unsigned i = 0; i < count; ++i) {
      reactors_.push_back(std::make_unique<Reactor>(Reactor::Options{.id = i}));
    }
  }
  // What was posted still happens, as when reactors are stopped.
  ~Stepper() { rest(); }
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;

  std::size_t size() const { return reactors_.size(); }
  Reactor& at(std::size_t index) { return *reactors_.at(index); }
  Reactor& main() { return at(0); }
  // Any of them, drawn from the seed.
  Reactor& any() { return at(random_() % reactors_.size()); }

  // Runs a task on one of the reactors to its end.
  template <typename T>
  Result<T> call(Reactor& reactor, Task<Result<T>> task) {
    std::optional<Result<T>> result;
    reactor.post([&] { spawn(std::move(task), [&result](Result<T> value) { result.emplace(std::move(value)); }); });
    std::uint64_t idle_since_ns = 0;
    for (std::uint64_t idle = 0; !result;) {
      idle = step() != 0 ? 0 : idle + 1;
      if (idle % kTurnsPerClockRead != 1) continue;
      const std::uint64_t now_ns = monotonic_ns();
      if (idle == 1) idle_since_ns = now_ns;
      if (now_ns - idle_since_ns > kPatienceNs) give_up();
    }
    return std::move(*result);
  }
  // Until none of them has found anything to do for some turns.
  void rest() {
    for (std::size_t idle = 0; idle < kTurnsOfRest * reactors_.size();) idle = step() != 0 ? 0 : idle + 1;
  }

 private:
  static constexpr std::uint64_t kTurnsPerClockRead = 4096;
  // Timers are waited for.
  static constexpr std::uint64_t kPatienceNs = 20'000'000'000;
  static constexpr std::size_t kTurnsOfRest = 16;
  static constexpr unsigned kLongestRun = 32;

  // Not an exception: it would take the frames of coroutines that are under way with it.
  [[noreturn]] static void give_up() {
    std::fputs("the reactors have nothing to do, and what is waited for does not come\n", stderr);
    std::abort();
  }
  unsigned step() {
    if (left_ == 0) {
      now_ = random_() % reactors_.size();
      // Mostly one after the other; now and then one has many turns before the next has any.
      left_ = random_() % 8 != 0 ? 1 : 1 + static_cast<unsigned>(random_() % kLongestRun);
    }
    --left_;
    return reactors_[now_]->turn();
  }

  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::mt19937_64 random_;
  std::size_t now_ = 0;
  unsigned left_ = 0;
};

}  // namespace pollux::reactor
