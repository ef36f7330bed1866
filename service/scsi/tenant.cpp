#include "scsi/tenant.h"

#include <cassert>
#include <map>
#include <mutex>
#include <utility>

#include "scsi/lun_channel.h"

namespace pollux::scsi {

ScratchPool::ScratchPool() {
  grow(kScratchBuffers);
}

void ScratchPool::grow(std::size_t count) {
  total_ += count;
  free_.reserve(total_);
  // Not filled: a buffer takes memory from when it is used.
  for (; count > 0; --count) free_.push_back(std::make_unique_for_overwrite<ScratchBuffer>());
}

void ScratchPool::shrink(std::size_t count) {
  assert(free_.size() >= count);
  free_.resize(free_.size() - count);
  total_ -= count;
}

void ScratchPool::wait(Tenant& tenant) {
  tenant.next_waiting_ = nullptr;
  (last_waiting_ != nullptr ? last_waiting_->next_waiting_ : first_waiting_) = &tenant;
  last_waiting_ = &tenant;
}

// A task that is served may complete and release at once: the loop that runs picks that up instead of recursing.
void ScratchPool::serve_waiting() {
  if (serving_) return;
  serving_ = true;
  // Ends with a round that served no tenant.
  const Tenant* refused = nullptr;
  while (first_waiting_ != nullptr && first_waiting_ != refused) {
    Tenant& tenant = *first_waiting_;
    first_waiting_ = tenant.next_waiting_;
    if (first_waiting_ == nullptr) last_waiting_ = nullptr;
    if (tenant.budget_.open()) {
      refused = nullptr;
      tenant.serve();
    } else {
      if (refused == nullptr) refused = &tenant;
      wait(tenant);
    }
  }
  serving_ = false;
}

std::shared_ptr<Tenant> Tenant::of(reactor::Reactor& reactor, const std::string& initiator) {
  static std::mutex mutex;
  static std::map<std::pair<const reactor::Reactor*, std::string>, std::weak_ptr<Tenant>> tenants;
  static std::map<const reactor::Reactor*, std::weak_ptr<ScratchPool>> pools;
  std::lock_guard lock(mutex);
  std::erase_if(tenants, [](const auto& entry) { return entry.second.expired(); });
  std::erase_if(pools, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<Tenant>& known = tenants[{&reactor, initiator}];
  auto tenant = known.lock();
  if (!tenant) {
    std::weak_ptr<ScratchPool>& known_pool = pools[&reactor];
    auto pool = known_pool.lock();
    if (!pool) {
      pool = std::make_shared<ScratchPool>();
      known_pool = pool;
    }
    tenant = std::make_shared<Tenant>(reactor, std::move(pool));
    known = tenant;
  }
  return tenant;
}

Tenant::Tenant(reactor::Reactor& reactor, std::shared_ptr<ScratchPool> scratch)
    : reactor_(reactor), pool_(std::move(scratch)), budget_(pool_->commons_, kOwnBuffers) {
  pool_->grow(kOwnBuffers);
  later_.tenant = this;
  later_.run = &run_later;
}

Tenant::~Tenant() {
  assert(for_scratch_.first == nullptr && for_turn_.first == nullptr);
  pool_->shrink(kOwnBuffers);
}

void Tenant::Queue::push(Task& task) {
  task.work.queue_next = nullptr;
  (last != nullptr ? last->work.queue_next : first) = &task;
  last = &task;
}

Task& Tenant::Queue::pop() {
  Task& task = *first;
  first = std::exchange(task.work.queue_next, nullptr);
  if (first == nullptr) last = nullptr;
  return task;
}

void Tenant::take_buffer(Task& task) {
  budget_.take(1);
  task.work.scratch = pool_->free_.back().release();
  pool_->free_.pop_back();
}

void Tenant::acquire_scratch(Task& task, void (*then)(LunChannel&, Task&)) {
  if (for_scratch_.first == nullptr && budget_.open()) {
    take_buffer(task);
    then(*task.work.channel, task);
    return;
  }
  if (for_scratch_.first == nullptr) pool_->wait(*this);
  task.work.resume = then;
  for_scratch_.push(task);
}

void Tenant::release_scratch(Task& task) {
  if (task.work.scratch == nullptr) return;
  pool_->free_.emplace_back(std::exchange(task.work.scratch, nullptr));
  budget_.give(1);
  pool_->serve_waiting();
}

// The pool has taken this tenant out of those that wait.
void Tenant::serve() {
  Task& task = for_scratch_.pop();
  if (for_scratch_.first != nullptr) pool_->wait(*this);
  take_buffer(task);
  task.work.channel->resume(task);
}

void Tenant::go_on_later(Task& task) {
  if (for_turn_.first == nullptr) reactor_.next_turn(later_);
  for_turn_.push(task);
}

void Tenant::run_later(reactor::Message& message) {
  Tenant& tenant = *static_cast<Later&>(message).tenant;
  Task& task = tenant.for_turn_.pop();
  if (tenant.for_turn_.first != nullptr) tenant.reactor_.next_turn(tenant.later_);
  task.work.channel->go_on(task);
}

}  // namespace pollux::scsi
