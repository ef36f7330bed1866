#pragma once
// FairQueue: requests that wait for something that their users share. Each stream, which is one user's requests, has its
// own order, and the streams take turns: however many requests one of them has waiting, the next of another waits for as
// many others as there are streams.

#include <array>
#include <bit>
#include <cstdint>

#include "bdev/bdev.h"

namespace pollux::bdev {

// Next: where a request keeps the link to the one after it.
template <typename Request, typename Next>
class BasicFairQueue {
 public:
  // Streams whose numbers agree modulo this share their turns.
  static constexpr unsigned kStreams = 64;

  bool empty() const { return waiting_ == 0; }
  void push(Request& request, std::uint64_t of_stream) {
    const auto stream = static_cast<unsigned>(of_stream % kStreams);
    List& list = lists_[stream];
    Next::of(request) = nullptr;
    (list.tail != nullptr ? Next::of(*list.tail) : list.head) = &request;
    list.tail = &request;
    waiting_ |= 1ULL << stream;
  }
  // The next, which stays where it is. Precondition: !empty().
  Request& front() const { return *lists_[next_stream()].head; }
  // Takes what front() gave.
  Request& pop() {
    const unsigned stream = next_stream();
    List& list = lists_[stream];
    Request& request = *list.head;
    list.head = Next::of(request);
    if (list.head == nullptr) {
      list.tail = nullptr;
      waiting_ &= ~(1ULL << stream);
    }
    last_ = stream;
    return request;
  }

 private:
  struct List {
    Request* head = nullptr;
    Request* tail = nullptr;
  };
  // The first after the last one that has something.
  unsigned next_stream() const {
    const unsigned from = (last_ + 1) % kStreams;
    return (from + static_cast<unsigned>(std::countr_zero(std::rotr(waiting_, static_cast<int>(from))))) % kStreams;
  }

  std::array<List, kStreams> lists_;
  std::uint64_t waiting_ = 0;  // a bit a stream
  unsigned last_ = 0;
};

struct DeviceNext {
  static IoRequest*& of(IoRequest& request) { return request.device_next; }
};
class FairQueue : public BasicFairQueue<IoRequest, DeviceNext> {
 public:
  void push(IoRequest& request) { BasicFairQueue::push(request, request.stream); }
};

}  // namespace pollux::bdev
