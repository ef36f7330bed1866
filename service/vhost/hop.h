#pragma once
// Going to a reactor and waiting there for the end: how control and vhost threads change what reactors own. Never from
// a reactor.

#include <future>
#include <utility>

#include "reactor/reactor.h"

namespace pollux::vhost {

// Runs fn on the reactor and returns its result.
template <typename Fn>
auto run_on(reactor::Reactor& reactor, Fn fn) {
  using T = decltype(fn());
  std::promise<T> promise;
  auto future = promise.get_future();
  reactor.post([&] {
    if constexpr (std::is_void_v<T>) {
      fn();
      promise.set_value();
    } else {
      promise.set_value(fn());
    }
  });
  return future.get();
}

}  // namespace pollux::vhost
