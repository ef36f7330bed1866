#pragma once
// Aborting tasks wherever they are: for the task management functions and for PREEMPT AND ABORT.

#include <functional>
#include <memory>
#include <vector>

#include "reactor/reactor.h"
#include "scsi/channel_anchor.h"
#include "scsi/lun_channel.h"

namespace pollux::scsi {

// Aborts the selected tasks of these channels, each on its own reactor, and calls `done` on `home` when all have
// completed.
void abort_everywhere(const std::vector<std::shared_ptr<ChannelAnchor>>& anchors,
                      const LunChannel::AbortSelection& selection, reactor::Reactor& home, std::function<void()> done);

}  // namespace pollux::scsi
