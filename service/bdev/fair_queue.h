#pragma once
// FairQueue: requests that wait for something that the users of a channel share. Each stream, which is one user's
// requests, has its own order, and the streams take turns: however many requests one of them has waiting, the next of
// another waits for as many others as there are streams.

#include <array>
#include <bit>
#include <cstdint>

#include "bdev/bdev.h"

namespace pollux::bdev {

class FairQueue {
 public:
  // Streams whose numbers agree modulo this share their turns.
  static constexpr unsigned kStreams = 64;

  bool empty() const { return waiting_ == 0; }
  void push(IoRequest& request) {
    const unsigned stream = request.stream % kStreams;
    List& list = lists_[stream];
    request.device_next = nullptr;
    (list.tail != nullptr ? list.tail->device_next : list.head) = &request;
    list.tail = &request;
    waiting_ |= 1ULL << stream;
  }
  // The next, which stays where it is. Precondition: !empty().
  IoRequest& front() const { return *lists_[next_stream()].head; }
  // Takes what front() gave.
  IoRequest& pop() {
    const unsigned stream = next_stream();
    List& list = lists_[stream];
    IoRequest& request = *list.head;
    list.head = request.device_next;
    if (list.head == nullptr) {
      list.tail = nullptr;
      waiting_ &= ~(1ULL << stream);
    }
    last_ = stream;
    return request;
  }

 private:
  struct List {
    IoRequest* head = nullptr;
    IoRequest* tail = nullptr;
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

}  // namespace pollux::bdev
