#include "bdev/device_thread.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>

#include "base/cores.h"

namespace pollux::bdev {

DeviceThread::~DeviceThread() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void DeviceThread::start(Job& job) {
  {
    const std::lock_guard lock(mutex_);
    job.next_job = nullptr;
    (last_ != nullptr ? last_->next_job : first_) = &job;
    last_ = &job;
  }
  changed_.notify_one();
}

int DeviceThread::make(const Job& job) const {
  int done = 0;
  do {
    if (job.call == Call::kDiscard) {
      std::uint64_t range[2] = {job.offset_bytes, job.length_bytes};
      done = ioctl(fd_, BLKDISCARD, range);
    } else {
      done = fallocate(fd_, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(job.offset_bytes),
                       static_cast<off_t>(job.length_bytes));
    }
  } while (done != 0 && errno == EINTR);
  return done == 0 ? 0 : -errno;
}

void DeviceThread::run() {
  pthread_setname_np(pthread_self(), "device");
  // The thread that made this one is a reactor's, whose core is not for others.
  if (const auto cores = main_thread_cores()) sched_setaffinity(0, sizeof(*cores), &*cores);
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ending_ || first_ != nullptr; });
    if (first_ == nullptr) return;
    Job& job = *first_;
    first_ = job.next_job;
    if (first_ == nullptr) last_ = nullptr;
    lock.unlock();
    job.result = make(job);
    job.reactor->post(job);
    lock.lock();
  }
}

}  // namespace pollux::bdev
