// Task management functions (SAM-5 clause 7) over all channels of a nexus or of the logical unit.

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "scsi/channel_anchor.h"
#include "scsi/logical_unit.h"
#include "scsi/lun_channel.h"
#include "scsi/mode_pages.h"
#include "scsi/reservations.h"
#include "scsi/settings.h"
#include "scsi/task_management.h"

namespace pollux::scsi {

namespace {

using Anchors = std::vector<std::shared_ptr<ChannelAnchor>>;

// Under the unit's mutex.
Anchors channels_of(const std::vector<Nexus*>& nexuses) {
  Anchors anchors;
  for (const Nexus* nexus : nexuses) {
    anchors.insert(anchors.end(), nexus->channels().begin(), nexus->channels().end());
  }
  return anchors;
}

// A function under way: it is answered on its own reactor when the tasks it ends are gone and what it changes of the
// unit's settings is durable.
struct Ending {
  Ending(TaskManagement& function, reactor::Reactor& reactor, std::shared_ptr<Nexus> nexus)
      : request(function), home(reactor), keep(std::move(nexus)) {}

  TaskManagement& request;
  reactor::Reactor& home;
  std::shared_ptr<Nexus> keep;
  // One for the tasks.
  std::atomic<std::size_t> left{1};
  std::atomic<bool> kept{true};
};

void part_done(const std::shared_ptr<Ending>& ending) {
  if (ending->left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  ending->home.post([ending] {
    ending->keep->managed(ending->request,
                          ending->kept ? TaskFunctionResponse::kComplete : TaskFunctionResponse::kRejected);
  });
}

// Another part of it, for the settings.
std::function<void(Status)> another_part(const std::shared_ptr<Ending>& ending) {
  ++ending->left;
  return [ending](const Status& kept) {
    if (!kept) ending->kept = false;
    part_done(ending);
  };
}

// Under the unit's mutex.
void drop_reservation_of(LogicalUnit& unit, const Nexus& nexus, const std::shared_ptr<Ending>& ending) {
  if (!unit.reservations().legacy_drop(nexus)) return;
  unit.settings().keep_reserved(nexus.options().initiator, false, another_part(ending));
}

// Under the unit's mutex. What LOGICAL UNIT RESET does to the logical unit itself (SAM-5 6.3.3): persistent
// reservations stay.
void reset_unit(LogicalUnit& unit, const std::shared_ptr<Ending>& ending) {
  const bool changed = unit.mode_pages().values() != ModePages::Values{};
  unit.mode_pages().set({});
  if (changed || unit.settings().keeping_modes()) unit.settings().keep_modes(another_part(ending));
  if (const Nexus* holder = unit.reservations().legacy_holder()) drop_reservation_of(unit, *holder, ending);
  unit.update_gates();
  for (Nexus* nexus : unit.nexuses()) nexus->raise(UnitAttention::kBusDeviceReset);
}

void query(const Anchors& anchors, TaskManagement& request, reactor::Reactor& home, std::shared_ptr<Nexus> keep) {
  struct Round {
    std::atomic<std::size_t> left{0};
    std::atomic<bool> found{false};
  };
  auto round = std::make_shared<Round>();
  // One more than there are channels: the asker's own, so that an answer comes without any channel too.
  round->left = anchors.size() + 1;
  auto answer = [round, &request, &home, keep] {
    if (round->left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    home.post([round, &request, keep] {
      keep->managed(request, round->found ? TaskFunctionResponse::kSucceeded : TaskFunctionResponse::kComplete);
    });
  };
  const bool any = request.function == TaskFunction::kQueryTaskSet;
  for (const auto& anchor : anchors) {
    run_on(anchor, [round, answer, any, tag = request.tag](LunChannel* channel) {
      if (channel != nullptr && (any ? !channel->idle() : channel->has_task(tag))) round->found = true;
      answer();
    });
  }
  answer();
}

}  // namespace

void abort_everywhere(const std::vector<std::shared_ptr<ChannelAnchor>>& anchors,
                      const LunChannel::AbortSelection& selection, reactor::Reactor& home, std::function<void()> done) {
  struct Round {
    std::atomic<std::size_t> left{0};
    std::function<void()> done;
  };
  auto round = std::make_shared<Round>();
  round->left = anchors.size() + 1;
  round->done = std::move(done);
  auto gone = [round, &home] {
    if (round->left.fetch_sub(1, std::memory_order_acq_rel) == 1) home.post([round] { round->done(); });
  };
  for (const auto& anchor : anchors) {
    run_on(anchor, [selection, gone](LunChannel* channel) {
      if (channel != nullptr) {
        channel->abort(selection, gone);
      } else {
        gone();
      }
    });
  }
  gone();
}

void Nexus::managed(TaskManagement& request, TaskFunctionResponse response) {
  request.response = response;
  managing_.fetch_sub(1, std::memory_order_acq_rel);
  request.complete(request);
}

void Nexus::manage(TaskManagement& request) {
  managing_.fetch_add(1, std::memory_order_acq_rel);
  reactor::Reactor& home = *reactor::Reactor::current();
  const auto ending = std::make_shared<Ending>(request, home, shared_from_this());
  LunChannel::AbortSelection selection;
  Anchors anchors;
  {
    std::lock_guard lock(unit_->mutex());
    switch (request.function) {
      case TaskFunction::kAbortTask:
        selection.all = false;
        selection.tag = request.tag;
        anchors = channels_;
        break;
      case TaskFunction::kAbortTaskSet:
      case TaskFunction::kQueryTask:
      case TaskFunction::kQueryTaskSet:
        anchors = channels_;
        break;
      case TaskFunction::kNexusReset:
        selection.outcome = Outcome::kReset;
        anchors = channels_;
        drop_reservation_of(*unit_, *this, ending);
        unit_->update_gates();
        raise(UnitAttention::kNexusLoss);
        break;
      case TaskFunction::kClearTaskSet:
        anchors = channels_of(unit_->nexuses());
        // SAM-5 7.4: those whose tasks vanish without their asking are told (one task set for all, TST 000b).
        for (Nexus* nexus : unit_->nexuses()) {
          if (nexus != this) nexus->raise(UnitAttention::kCommandsClearedByAnother);
        }
        break;
      case TaskFunction::kLogicalUnitReset:
        selection.outcome = Outcome::kReset;
        anchors = channels_of(unit_->nexuses());
        reset_unit(*unit_, ending);
        break;
      case TaskFunction::kClearAca:
        break;
    }
  }
  switch (request.function) {
    case TaskFunction::kClearAca:
      managed(request, TaskFunctionResponse::kRejected);
      return;
    case TaskFunction::kQueryTask:
    case TaskFunction::kQueryTaskSet:
      query(anchors, request, home, shared_from_this());
      return;
    default:
      abort_everywhere(anchors, selection, home, [ending] { part_done(ending); });
  }
}

}  // namespace pollux::scsi
