#include "metrics/page.h"

#include <charconv>
#include <cmath>
#include <string_view>

#include "metrics/http_server.h"

namespace pollux::metrics {

namespace {

const char* type_of(Kind kind) {
  switch (kind) {
    case Kind::kCounter:
      return "counter";
    case Kind::kGauge:
      return "gauge";
    case Kind::kHistogram:
      return "histogram";
  }
  return "untyped";
}

void put(std::string& text, std::uint64_t number) {
  char digits[24];
  const auto end = std::to_chars(digits, digits + sizeof(digits), number).ptr;
  text.append(digits, end);
}

void put(std::string& text, double number) {
  if (std::isnan(number)) {
    text += "NaN";
  } else if (std::isinf(number)) {
    text += number > 0 ? "+Inf" : "-Inf";
  } else {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof(digits), number).ptr;
    text.append(digits, end);
  }
}

void put_escaped(std::string& text, std::string_view value) {
  for (const char c : value) {
    if (c == '\n') {
      text += "\\n";
      continue;
    }
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
}

// Without the closing brace, so that a bucket can add its own.
void put_labels(std::string& text, const Labels& labels) {
  char before = '{';
  for (const auto& [name, value] : labels) {
    text += before;
    text += name;
    text += "=\"";
    put_escaped(text, value);
    text += '"';
    before = ',';
  }
}

template <typename Number>
void put_line(std::string& text, const std::string& name, const char* suffix, const std::string& labels, Number value) {
  text += name;
  text += suffix;
  text += labels;
  if (!labels.empty()) text += '}';
  text += ' ';
  put(text, value);
  text += '\n';
}

void put_histogram(std::string& text, const std::string& name, const std::string& labels, const Sample& sample) {
  const auto put_bucket = [&](double bound, std::uint64_t count) {
    text += name;
    text += "_bucket";
    text += labels;
    text += labels.empty() ? "{le=\"" : ",le=\"";
    put(text, bound);
    text += "\"} ";
    put(text, count);
    text += '\n';
  };
  put_line(text, name, "_count", labels, sample.count);
  put_line(text, name, "_sum", labels, sample.sum);
  for (const auto& [bound, count] : sample.buckets) put_bucket(bound, count);
  if (sample.buckets.empty() || !std::isinf(sample.buckets.back().first)) put_bucket(HUGE_VAL, sample.count);
}

// Prometheus' text format 0.0.4.
std::string to_text(const std::vector<Family>& families) {
  std::string text, labels;
  for (const Family& family : families) {
    text += "# HELP ";
    text += family.name;
    text += ' ';
    text += family.help;
    text += "\n# TYPE ";
    text += family.name;
    text += ' ';
    text += type_of(family.kind);
    text += '\n';
    for (const Sample& sample : family.samples) {
      labels.clear();
      put_labels(labels, sample.labels);
      if (family.kind == Kind::kHistogram) {
        put_histogram(text, family.name, labels, sample);
      } else {
        put_line(text, family.name, "", labels, sample.value);
      }
    }
  }
  return text;
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
