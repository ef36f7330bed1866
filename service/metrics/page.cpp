#include "metrics/page.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>

#include <exception>
#include <mutex>

namespace pollux::metrics {

namespace {

prometheus::ClientMetric to_client(const Sample& sample, Kind kind) {
  prometheus::ClientMetric metric;
  for (const auto& [name, value] : sample.labels) metric.label.push_back({name, value});
  switch (kind) {
    case Kind::kCounter:
      metric.counter.value = sample.value;
      break;
    case Kind::kGauge:
      metric.gauge.value = sample.value;
      break;
    case Kind::kHistogram:
      metric.histogram.sample_count = sample.count;
      metric.histogram.sample_sum = sample.sum;
      for (const auto& [bound, count] : sample.buckets) {
        prometheus::ClientMetric::Bucket bucket;
        bucket.upper_bound = bound;
        bucket.cumulative_count = count;
        metric.histogram.bucket.push_back(bucket);
      }
      break;
  }
  return metric;
}

prometheus::MetricType to_type(Kind kind) {
  switch (kind) {
    case Kind::kCounter:
      return prometheus::MetricType::Counter;
    case Kind::kGauge:
      return prometheus::MetricType::Gauge;
    case Kind::kHistogram:
      return prometheus::MetricType::Histogram;
  }
  return prometheus::MetricType::Untyped;
}

class Source : public prometheus::Collectable {
 public:
  explicit Source(Page::Gather gather) : gather_(std::move(gather)) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    const std::lock_guard lock(mutex_);
    std::vector<prometheus::MetricFamily> families;
    for (const auto& family : gather_()) {
      prometheus::MetricFamily out;
      out.name = family.name;
      out.help = family.help;
      out.type = to_type(family.kind);
      for (const auto& sample : family.samples) out.metric.push_back(to_client(sample, family.kind));
      families.push_back(std::move(out));
    }
    return families;
  }

 private:
  const Page::Gather gather_;
  mutable std::mutex mutex_;
};

}  // namespace

// The exposer goes first: its destructor waits for requests that are under way, which use the source.
struct Page::Impl {
  std::shared_ptr<Source> source;
  std::unique_ptr<prometheus::Exposer> exposer;
};

Page::Page() : impl_(std::make_unique<Impl>()) {}
Page::~Page() = default;

Result<std::unique_ptr<Page>> Page::start(const std::string& listen, Gather gather) {
  std::unique_ptr<Page> page(new Page);
  page->impl_->source = std::make_shared<Source>(std::move(gather));
  try {
    page->impl_->exposer = std::make_unique<prometheus::Exposer>(listen, /*num_threads=*/2);
  } catch (const std::exception& e) {
    return fail(ErrorCode::kBusy, "cannot serve metrics on " + listen + ": " + e.what());
  }
  page->impl_->exposer->RegisterCollectable(page->impl_->source);
  return page;
}

std::uint16_t Page::port() const {
  return static_cast<std::uint16_t>(impl_->exposer->GetListeningPorts().front());
}

}  // namespace pollux::metrics
