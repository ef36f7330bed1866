#pragma once
// Gate: lets an object end only when no operation is inside any more. Operations enter before they touch the object and
// leave when they are done, across everything that they wait for in between; close() refuses new ones and waits for
// those inside.
//
//   auto inside = gate_.enter("pool 'fast' is being closed");
//   if (!inside) co_return fail(std::move(inside.error()));
//   ... co_await ...        // the object stays until `inside` goes
//
// All on one reactor, as entering and leaving are; an operation may be on others in between. The name is Seastar's.

#include <cassert>
#include <coroutine>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::reactor {

class Gate {
 public:
  explicit Gate(Reactor& home) : home_(home) {}
  ~Gate() { assert(inside_ == 0 && waiters_.empty()); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  // Keeps the gate's close() waiting for as long as it lives. Destroyed on the gate's reactor.
  class [[nodiscard]] Holder {
   public:
    explicit Holder(Gate& gate) : gate_(&gate) { ++gate.inside_; }
    Holder(Holder&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Holder& operator=(Holder&&) = delete;
    ~Holder() {
      if (gate_ != nullptr) gate_->leave();
    }

   private:
    Gate* gate_;
  };

  // kRetry: it is closed, and `reason` says why.
  Result<Holder> enter(const std::string& reason) {
    if (closed_) return fail(ErrorCode::kRetry, reason + ": repeat the request");
    return Holder(*this);
  }

  // From the call on no operation enters; returns when none is inside. Several may wait. Not from within an operation
  // that holds the gate.
  Task<void> close() {
    closed_ = true;
    while (inside_ != 0) {
      co_await Enlist{waiters_};
      // The one that left last is still in its destructors.
      co_await home_.yield();
    }
  }
  // After close(): operations may enter again.
  void open() { closed_ = false; }
  bool closed() const { return closed_; }
  std::size_t inside() const { return inside_; }

 private:
  struct Enlist {
    std::vector<std::coroutine_handle<>>& waiters;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> self) { waiters.push_back(self); }
    void await_resume() const noexcept {}
  };
  void leave() {
    assert(home_.is_current() && inside_ > 0);
    if (--inside_ != 0) return;
    for (auto waiter : std::exchange(waiters_, {})) waiter.resume();
  }

  Reactor& home_;
  std::size_t inside_ = 0;
  bool closed_ = false;
  std::vector<std::coroutine_handle<>> waiters_;
};

}  // namespace pollux::reactor
