#include "scsi/scratch.h"

#include <map>
#include <mutex>
#include <utility>

#include "scsi/lun_channel.h"

namespace pollux::scsi {

std::shared_ptr<ScratchPool> ScratchPool::of(reactor::Reactor& reactor) {
  static std::mutex mutex;
  static std::map<const reactor::Reactor*, std::weak_ptr<ScratchPool>> pools;
  std::lock_guard lock(mutex);
  std::erase_if(pools, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<ScratchPool>& entry = pools[&reactor];
  auto pool = entry.lock();
  if (!pool) {
    pool = std::make_shared<ScratchPool>();
    entry = pool;
  }
  return pool;
}

ScratchPool::ScratchPool() {
  buffers_.reserve(kScratchBuffers);
  free_.reserve(kScratchBuffers);
  for (std::size_t i = 0; i < kScratchBuffers; ++i) {
    buffers_.push_back(std::make_unique<ScratchBuffer>());
    free_.push_back(buffers_.back().get());
  }
}

void ScratchPool::acquire(Task& task, void (*then)(LunChannel&, Task&)) {
  if (free_.empty() || first_waiting_ != nullptr) {
    task.work.resume = then;
    task.work.queue_next = nullptr;
    if (last_waiting_ != nullptr) {
      last_waiting_->work.queue_next = &task;
    } else {
      first_waiting_ = &task;
    }
    last_waiting_ = &task;
    return;
  }
  task.work.scratch = free_.back();
  free_.pop_back();
  then(*task.work.channel, task);
}

void ScratchPool::release(Task& task) {
  if (task.work.scratch == nullptr) return;
  free_.push_back(std::exchange(task.work.scratch, nullptr));
  serve_waiting();
}

// A task that is served may complete and release at once: the loop below picks that up instead of recursing.
void ScratchPool::serve_waiting() {
  if (serving_) return;
  serving_ = true;
  while (first_waiting_ != nullptr && !free_.empty()) {
    Task& task = *first_waiting_;
    first_waiting_ = std::exchange(task.work.queue_next, nullptr);
    if (first_waiting_ == nullptr) last_waiting_ = nullptr;
    task.work.scratch = free_.back();
    free_.pop_back();
    task.work.channel->resume(task);
  }
  serving_ = false;
}

}  // namespace pollux::scsi
