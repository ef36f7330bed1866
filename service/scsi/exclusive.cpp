#include "scsi/exclusive.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "scsi/channel_anchor.h"

namespace pollux::scsi {

namespace {

std::vector<std::shared_ptr<ChannelAnchor>> all_channels(const LogicalUnit& unit) {
  std::vector<std::shared_ptr<ChannelAnchor>> anchors;
  for (const Nexus* nexus : unit.nexuses()) {
    anchors.insert(anchors.end(), nexus->channels().begin(), nexus->channels().end());
  }
  return anchors;
}

}  // namespace

void ExclusiveRanges::acquire(Task& task, void (*then)(LunChannel&, Task&)) {
  task.work.resume = then;
  task.work.waits_for_range = true;
  {
    std::lock_guard lock(unit_.mutex());
    if (current_.active) {
      task.work.queue_next = nullptr;
      (last_waiting_ != nullptr ? last_waiting_->work.queue_next : first_waiting_) = &task;
      last_waiting_ = &task;
      return;
    }
    current_ = {task.work.lba, task.work.blocks, true};
  }
  begin(task);
}

// The range is the task's. Its own channel cannot close while the task is in flight; others may, and then have nothing
// to wait for.
void ExclusiveRanges::begin(Task& task) {
  struct Round {
    std::atomic<std::size_t> left{0};
  };
  std::vector<std::shared_ptr<ChannelAnchor>> anchors;
  {
    std::lock_guard lock(unit_.mutex());
    anchors = all_channels(unit_);
  }
  const std::shared_ptr<ChannelAnchor> home = task.work.channel->anchor();
  auto round = std::make_shared<Round>();
  round->left = anchors.size();
  const ExclusiveRange range{task.work.lba, task.work.blocks, true};
  for (const auto& anchor : anchors) {
    run_on(anchor, [home, round, range, &task](LunChannel* channel) {
      auto drained = [home, round, &task] {
        if (round->left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        run_on(home, [&task](LunChannel* own) {
          task.work.waits_for_range = false;
          task.work.owns_exclusive = true;
          own->resume(task);
        });
      };
      if (channel == nullptr) {
        drained();
      } else {
        channel->begin_exclusive(range, &task, std::move(drained));
      }
    });
  }
}

void ExclusiveRanges::release(Task& task) {
  task.work.owns_exclusive = false;
  std::vector<std::shared_ptr<ChannelAnchor>> anchors;
  Task* next = nullptr;
  {
    std::lock_guard lock(unit_.mutex());
    anchors = all_channels(unit_);
    next = first_waiting_;
    if (next != nullptr) {
      first_waiting_ = std::exchange(next->work.queue_next, nullptr);
      if (first_waiting_ == nullptr) last_waiting_ = nullptr;
      current_ = {next->work.lba, next->work.blocks, true};
    } else {
      current_ = ExclusiveRange{};
    }
  }
  if (next != nullptr) {
    // Takes the range over in every channel, which releases this one. Posted, lest a row of commands that complete at
    // once goes ever deeper.
    next->work.channel->reactor().post([this, unit = unit_.shared_from_this(), next] { begin(*next); });
    return;
  }
  for (const auto& anchor : anchors) {
    run_on(anchor, [](LunChannel* channel) {
      if (channel != nullptr) channel->end_exclusive();
    });
  }
}

}  // namespace pollux::scsi
