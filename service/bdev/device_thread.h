#pragma once
// DeviceThread: what waits for the kernel and must not hold up a reactor.
//
//  - kDiscard: BLKDISCARD of a block device. fallocate() writes zeros there instead, or refuses.
//  - kReserve: fallocate() of a file's range, so that later writes find room.
//  - kOwn: a function of the caller's; making a channel's io_uring and taking it down.
//
// A thread of the device's own makes them one after the other. A job's answer goes back to the reactor it came from.

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "reactor/mailbox.h"
#include "reactor/reactor.h"

namespace pollux::bdev {

class DeviceThread {
 public:
  enum class Call : std::uint8_t { kDiscard, kReserve, kOwn };
  // Part of the caller's request, which is the thread's from start() until it is posted to `reactor`, as an answer.
  struct Job : reactor::Message {
    Call call = Call::kDiscard;
    std::uint64_t offset_bytes = 0;
    std::uint64_t length_bytes = 0;
    int result = 0;  // 0, or -errno
    // kOwn: called on the thread. Without a reactor the job has no answer and is the function's to free.
    int (*own)(Job&) = nullptr;
    reactor::Reactor* reactor = nullptr;
    Job* next_job = nullptr;
  };

  explicit DeviceThread(int fd);
  // With no job under way but such as have no answer: the thread ends after those, and nobody waits for it.
  ~DeviceThread();
  DeviceThread(const DeviceThread&) = delete;
  DeviceThread& operator=(const DeviceThread&) = delete;

  // Any thread. Takes a lock, so not for the path of guests' requests.
  void start(Job& job);

 private:
  struct Queue {
    std::mutex mutex;
    std::condition_variable changed;
    Job* first = nullptr;
    Job* last = nullptr;
    bool ending = false;
  };
  static void run(Queue& queue, int fd);
  static int make(Job& job, int fd);

  // The thread's too.
  const std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
};

}  // namespace pollux::bdev
