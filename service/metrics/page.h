#pragma once
// The Prometheus page. Values are gathered when the page is asked for and at no other time: the owner of counters
// gives a function that reads them, so the data path counts in plain integers and knows nothing of this.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace pollux::metrics {

using Labels = std::vector<std::pair<std::string, std::string>>;

enum class Kind : std::uint8_t { kCounter, kGauge, kHistogram };

struct Sample {
  Labels labels;
  double value = 0;  // counter, gauge
  // Histogram: (upper bound, observations at most that large), cumulative, in rising order.
  std::vector<std::pair<double, std::uint64_t>> buckets;
  std::uint64_t count = 0;
  double sum = 0;
};

// One metric with its samples. Names end in their unit: pollux_volume_read_bytes_total.
struct Family {
  std::string name;
  std::string help;
  Kind kind = Kind::kGauge;
  std::vector<Sample> samples;
};

class Page {
 public:
  // Called on the page's own thread; must not throw.
  using Gather = std::function<std::vector<Family>()>;

  // Serves http://<listen>/metrics. kBusy: the address is taken or not ours.
  static Result<std::unique_ptr<Page>> start(const std::string& listen, Gather gather);
  // No gather is under way afterwards.
  ~Page();

  std::uint16_t port() const;

 private:
  Page();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pollux::metrics
