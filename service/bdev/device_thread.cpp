#include "bdev/device_thread.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "base/cores.h"

namespace pollux::bdev {

DeviceThread::DeviceThread(int fd) {
  std::thread([queue = queue_, fd] { run(*queue, fd); }).detach();
}

DeviceThread::~DeviceThread() {
  // Under the lock, so that the thread does not miss it between its look and its wait.
  const std::lock_guard lock(queue_->mutex);
  queue_->ending = true;
  queue_->changed.notify_one();
}

void DeviceThread::start(Job& job) {
  {
    const std::lock_guard lock(queue_->mutex);
    job.next_job = nullptr;
    (queue_->last != nullptr ? queue_->last->next_job : queue_->first) = &job;
    queue_->last = &job;
  }
  queue_->changed.notify_one();
}

int DeviceThread::make(Job& job, int fd) {
  if (job.call == Call::kOwn) return job.own(job);
  int done = 0;
  do {
    if (job.call == Call::kDiscard) {
      std::uint64_t range[2] = {job.offset_bytes, job.length_bytes};
      done = ioctl(fd, BLKDISCARD, range);
    } else {
      done = fallocate(fd, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(job.offset_bytes),
                       static_cast<off_t>(job.length_bytes));
    }
  } while (done != 0 && errno == EINTR);
  return done == 0 ? 0 : -errno;
}

void DeviceThread::run(Queue& queue, int fd) {
  pthread_setname_np(pthread_self(), "device");
  // The thread that made this one may be a reactor's, whose core is not for others.
  if (const auto cores = main_thread_cores()) sched_setaffinity(0, sizeof(*cores), &*cores);
  std::unique_lock lock(queue.mutex);
  while (true) {
    queue.changed.wait(lock, [&queue] { return queue.ending || queue.first != nullptr; });
    if (queue.first == nullptr) return;
    Job& job = *queue.first;
    queue.first = job.next_job;
    if (queue.first == nullptr) queue.last = nullptr;
    lock.unlock();
    // What has no reactor may be gone after this.
    reactor::Reactor* const reactor = job.reactor;
    const int result = make(job, fd);
    if (reactor != nullptr) {
      job.result = result;
      reactor->post(job);
    }
    lock.lock();
  }
}

}  // namespace pollux::bdev
