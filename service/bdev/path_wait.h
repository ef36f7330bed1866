#pragma once
// PathWait: for front ends whose protocol cannot say that the path to a device is lost and may come back
// (IoStatus::kPathLost). Their requests wait here and are submitted again every so often, until one goes through or
// has waited long enough; only then does it fail.
//
// One for each user of a channel, on the channel's reactor. What waits here is in flight to everybody else.

#include <chrono>
#include <cstdint>

#include "bdev/bdev.h"
#include "reactor/reactor.h"

namespace pollux::bdev {

class PathWait {
 public:
  // What a front end submits.
  struct Request : IoRequest {
    PathWait* path_wait = nullptr;
    void (*answer)(IoRequest&) = nullptr;
    std::uint64_t lost_since_ns = 0;
  };

  PathWait(reactor::Reactor& reactor, Channel& channel, std::chrono::milliseconds patience)
      : reactor_(reactor), channel_(channel), patience_ns_(static_cast<std::uint64_t>(patience.count()) * 1'000'000) {}
  // With nothing waiting.
  ~PathWait() { timer_.cancel(); }
  PathWait(const PathWait&) = delete;
  PathWait& operator=(const PathWait&) = delete;

  // In place of answering one that ended with kPathLost. Its complete() is called again, with another status.
  void hold(Request& request);
  // Nobody waits for the answers any more: what waits fails, and so does from now on what loses its path.
  void give_up();

 private:
  void wait(Request& request);
  void submit_again();
  static void on_complete(IoRequest& io);
  static void answer(Request& request);

  reactor::Reactor& reactor_;
  Channel& channel_;
  const std::uint64_t patience_ns_;
  bool given_up_ = false;
  IoRequest* first_ = nullptr;
  IoRequest* last_ = nullptr;
  reactor::Timer timer_{[this] { submit_again(); }};
};

}  // namespace pollux::bdev
