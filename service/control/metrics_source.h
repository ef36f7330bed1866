#pragma once
// What the Prometheus page shows, read from the rooms when it is asked for.

#include <vector>

#include "control/handler.h"
#include "metrics/page.h"

namespace pollux::control {

// Blocks on the reactors, each part with a deadline; a part that does not answer in time is left out and counted in
// pollux_metrics_incomplete. Not on a reactor.
std::vector<metrics::Family> gather_metrics(Backend& backend);

}  // namespace pollux::control
