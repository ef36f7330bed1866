#include "metrics/page.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include "metrics/http_server.h"

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

std::string to_text(const std::vector<Family>& families) {
  std::vector<prometheus::MetricFamily> converted;
  for (const auto& family : families) {
    prometheus::MetricFamily out;
    out.name = family.name;
    out.help = family.help;
    out.type = to_type(family.kind);
    for (const auto& sample : family.samples) out.metric.push_back(to_client(sample, family.kind));
    converted.push_back(std::move(out));
  }
  return prometheus::TextSerializer().Serialize(converted);
}

}  // namespace

struct Page::Impl {
  std::unique_ptr<HttpServer> server;
};

Page::Page() : impl_(std::make_unique<Impl>()) {}
Page::~Page() = default;

Result<std::unique_ptr<Page>> Page::start(const std::string& listen, Gather gather) {
  auto server = HttpServer::start(
      {.listen = listen, .path = "/metrics", .content_type = "text/plain; version=0.0.4; charset=utf-8"},
      [gather = std::move(gather)] { return to_text(gather()); });
  if (!server) return fail(std::move(server.error()));
  std::unique_ptr<Page> page(new Page);
  page->impl_->server = std::move(*server);
  return page;
}

std::uint16_t Page::port() const {
  return impl_->server->port();
}

}  // namespace pollux::metrics
