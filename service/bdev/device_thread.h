#pragma once
// DeviceThread: the few system calls on a device that wait and that io_uring cannot make on all kernels we run on.
//
//  - kDiscard: BLKDISCARD of a block device. fallocate() writes zeros there instead, or refuses.
//  - kReserve: fallocate() of a file's range, so that later writes find room.
//
// A thread of the device's own makes them one after the other. A job's answer goes back to the reactor it came from.

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "reactor/mailbox.h"
#include "reactor/reactor.h"

namespace pollux::bdev {

class DeviceThread {
 public:
  enum class Call : std::uint8_t { kDiscard, kReserve };
  // Part of the caller's request, which is the thread's from start() until it is posted to `reactor`, as an answer.
  struct Job : reactor::Message {
    Call call = Call::kDiscard;
    std::uint64_t offset_bytes = 0;
    std::uint64_t length_bytes = 0;
    int result = 0;  // 0, or -errno
    reactor::Reactor* reactor = nullptr;
    Job* next_job = nullptr;
  };

  explicit DeviceThread(int fd) : fd_(fd), thread_([this] { run(); }) {}
  // With no job under way.
  ~DeviceThread();
  DeviceThread(const DeviceThread&) = delete;
  DeviceThread& operator=(const DeviceThread&) = delete;

  // Any thread. Takes a lock, so not for the path of guests' requests.
  void start(Job& job);

 private:
  void run();
  int make(const Job& job) const;

  const int fd_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Job* first_ = nullptr;
  Job* last_ = nullptr;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace pollux::bdev
