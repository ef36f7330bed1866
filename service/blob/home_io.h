#pragma once
// HomeIo: a piece of guest I/O, within one cluster, that the data path could not do alone: the map has to change, or
// has to be read from the device first. It travels to the home reactor as a message and is worked on by the Writer.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bdev/bdev.h"
#include "blob/map.h"
#include "reactor/mailbox.h"

namespace pollux::blob {

struct Volume;

class HomeIo : public reactor::Message {
 public:
  enum class Op : std::uint8_t {
    kLoad,   // bring the map of this cluster into memory
    kWrite,  // iov into the cluster
    kZero,   // the range reads as zeros afterwards; space comes back where it can
    kOwn,    // the whole cluster: what is mapped there becomes the volume's alone, nothing is shared with a snapshot
  };

  Volume* volume = nullptr;
  Op op = Op::kLoad;
  std::uint8_t stream = 0;  // as in bdev::IoRequest
  std::uint16_t iov_count = 0;
  std::uint32_t index = 0;   // cluster of the volume
  std::uint32_t offset = 0;  // bytes within the cluster
  std::uint32_t length = 0;
  const iovec* iov = nullptr;
  bdev::IoStatus status = bdev::IoStatus::kOk;
  // Called on the home reactor, once.
  void (*done)(HomeIo&) = nullptr;

  // Copies what is to be written.
  void gather(std::byte* to) const {
    std::size_t left = length;
    for (const iovec* from = iov; left > 0; ++from) {
      const std::size_t now = std::min(left, from->iov_len);
      std::memcpy(to, from->iov_base, now);
      to += now;
      left -= now;
    }
  }

 private:
  friend class Writer;
  friend class HomeIoList;
  HomeIo* link_ = nullptr;
  struct OpenCluster* cluster_ = nullptr;
  bool uncommitted_ = false;  // Publication::committed() is to follow
  std::uint64_t mask_ = 0;
  unsigned epoch_ = 0;
  class Writer* writer_ = nullptr;
  struct Data : bdev::IoRequest {
    HomeIo* io = nullptr;
  } data_;

  static HomeIo& of(bdev::IoRequest& data) { return *static_cast<Data&>(data).io; }
};

// First in, first out; the links are in the requests.
class HomeIoList {
 public:
  bool empty() const { return head_ == nullptr; }
  // nullptr: empty.
  const HomeIo* front() const { return head_; }
  void push(HomeIo& io) {
    io.link_ = nullptr;
    (tail_ == nullptr ? head_ : tail_->link_) = &io;
    tail_ = &io;
  }
  HomeIo* pop() {
    HomeIo* io = head_;
    if (io != nullptr) {
      head_ = io->link_;
      if (head_ == nullptr) tail_ = nullptr;
    }
    return io;
  }
  void append(HomeIoList& other) {
    while (HomeIo* io = other.pop()) push(*io);
  }

 private:
  HomeIo* head_ = nullptr;
  HomeIo* tail_ = nullptr;
};

}  // namespace pollux::blob
