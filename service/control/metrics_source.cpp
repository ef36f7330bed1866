#include "control/metrics_source.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/clock.h"
#include "base/memory.h"

namespace pollux::control {

namespace {

using metrics::Family;
using metrics::Kind;
using metrics::Labels;
using metrics::Sample;

constexpr std::uint64_t kDeadlineMs = 2000;
// A page that named each of many thousand volumes would be of use to nobody.
constexpr std::size_t kMaxVolumes = 2000;

class Collector {
 public:
  explicit Collector(Backend& backend) : backend_(backend) {}

  std::vector<Family> run() {
    service();
    memory_heap();
    pools();
    volumes();
    sessions();
    reactors();
    add("pollux_metrics_incomplete", "Parts of this page that did not answer in time.", Kind::kGauge, {}, incomplete_);
    return std::move(families_);
  }

 private:
  // Names are literals.
  Family& family(const char* name, const char* help, Kind kind) {
    const auto [found, fresh] = by_name_.try_emplace(name, families_.size());
    if (fresh) families_.push_back({name, help, kind, {}});
    return families_[found->second];
  }

  template <typename Number>
  void add(const char* name, const char* help, Kind kind, Labels labels, Number value) {
    Sample sample;
    sample.labels = std::move(labels);
    sample.value = static_cast<double>(value);
    family(name, help, kind).samples.push_back(std::move(sample));
  }

  template <typename T>
  Result<T> ask(reactor::Reactor& reactor, reactor::Task<Result<T>> task) {
    auto result = reactor::call(reactor, std::move(task), kDeadlineMs);
    if (!result) ++incomplete_;
    return result;
  }

  void memory_heap() {
    const auto usage = memory::usage();
    if (!usage.started) return;
    const Labels pages = {{"pages", usage.hugepages ? "huge" : "ordinary"}};
    add("pollux_memory_heap_bytes", "DPDK's heap.", Kind::kGauge, pages, usage.heap_bytes);
    add("pollux_memory_heap_used_bytes", "Of DPDK's heap.", Kind::kGauge, pages, usage.heap_used_bytes);
  }

  void service() {
    add("pollux_info", "The service.", Kind::kGauge, {{"host_id", backend_.host_id}, {"version", backend_.version}}, 1);
    add("pollux_uptime_seconds", "Since the service started.", Kind::kGauge, {},
        static_cast<double>(wall_clock_ms() - backend_.started_at_ms) / 1000);
    const auto attachments = backend_.store.attachments();
    if (attachments) {
      add("pollux_attachments", "Attachments of volumes to guests.", Kind::kGauge, {}, attachments->size());
    } else {
      ++incomplete_;
    }
  }

  void pools() {
    const auto pools = ask(backend_.reactors.main(), backend_.volumes.list_pools());
    if (!pools) return;
    for (const auto& pool : *pools) {
      const Labels labels = {{"pool", pool.name}};
      const auto gauge = [&](const char* name, const char* help, std::uint64_t value) {
        add(name, help, Kind::kGauge, labels, value);
      };
      gauge("pollux_pool_capacity_bytes", "Size of the pool.", pool.capacity_bytes);
      gauge("pollux_pool_free_bytes", "Space that new allocations can take.", pool.free_bytes);
      gauge("pollux_pool_allocated_bytes", "Space taken by data.", pool.allocated_bytes);
      gauge("pollux_pool_reserved_bytes", "Space promised to thick volumes and not yet taken.", pool.reserved_bytes);
      gauge("pollux_pool_provisioned_bytes", "Sum of the sizes of all volumes.", pool.provisioned_bytes);
      gauge("pollux_pool_metadata_bytes", "Space taken by the store's own metadata.", pool.metadata_bytes);
      gauge("pollux_pool_used_percent", "Of the capacity, what new allocations cannot take.", pool.used_percent);
      gauge("pollux_pool_provisioned_percent", "Of the capacity, what volumes may come to need.",
            pool.provisioned_percent);
      gauge("pollux_pool_watermark_percent", "The highest watermark that the used percentage has reached, or 0.",
            pool.watermark_percent);
      add("pollux_pool_discarded_bytes_total", "Freed space that was given back to the device.", Kind::kCounter, labels,
          pool.discarded_bytes);
      gauge("pollux_pool_discard_pending_bytes", "Freed space that is not given back to the device yet.",
            pool.discard_pending_bytes);
      failed(pool.name, !pool.failure.empty());
      gauge("pollux_pool_lost", "1 when another owner has taken the pool, until it is imported again.",
            pool.lost_to.empty() ? 0 : 1);
      gauge("pollux_pool_volumes", "Volumes, without snapshots.", pool.volumes);
      gauge("pollux_pool_snapshots", "Snapshots.", pool.snapshots);
    }
    for (const auto& [name, reason] : backend_.pools.unopened()) failed(name, true);
  }

  void failed(const std::string& pool, bool has_failed) {
    add("pollux_pool_failed",
        "1 while the pool takes no changes: its device failed, another owner has it, or it could not be opened.",
        Kind::kGauge, {{"pool", pool}}, has_failed ? 1 : 0);
  }

  void volumes() {
    const auto all = ask(backend_.reactors.main(), backend_.volumes.all_stats(kMaxVolumes));
    if (!all) return;
    if (!all->complete) ++incomplete_;
    for (const auto& each : all->volumes) {
      volume_stats({{"pool", each.pool}, {"volume", each.volume.to_string()}}, each.stats);
    }
  }

  void volume_stats(const Labels& labels, const volume::VolumeStats& stats) {
    const auto operations = [&](const char* kind, std::uint64_t value) {
      Labels with_kind = labels;
      with_kind.emplace_back("operation", kind);
      add("pollux_volume_operations_total", "Requests of guests that ended.", Kind::kCounter, with_kind, value);
    };
    operations("read", stats.read_ops);
    operations("write", stats.write_ops);
    operations("flush", stats.flush_ops);
    operations("unmap", stats.unmap_ops);
    add("pollux_volume_read_bytes_total", "Bytes read.", Kind::kCounter, labels, stats.read_bytes);
    add("pollux_volume_written_bytes_total", "Bytes written.", Kind::kCounter, labels, stats.write_bytes);
    add("pollux_volume_errors_total", "Requests that failed.", Kind::kCounter, labels, stats.errors);
    latency("pollux_volume_read_latency_seconds", "How long reads took.", labels, stats.read_latency);
    latency("pollux_volume_write_latency_seconds", "How long writes took.", labels, stats.write_latency);
  }

  // Bucket i of ours holds what took less than 2^i us; Prometheus counts what took at most a bound, cumulatively. The
  // sum is not counted in the data path; each request stands for the middle of its bucket.
  void latency(const char* name, const char* help, const Labels& labels, const std::vector<std::uint64_t>& buckets) {
    if (buckets.empty()) return;
    Sample sample;
    sample.labels = labels;
    for (std::size_t i = 0; i < buckets.size(); ++i) {
      const double bound = std::ldexp(1e-6, static_cast<int>(i));
      sample.count += buckets[i];
      sample.sum += static_cast<double>(buckets[i]) * bound * 0.75;
      sample.buckets.emplace_back(bound, sample.count);
    }
    family(name, help, Kind::kHistogram).samples.push_back(std::move(sample));
  }

  void sessions() {
    std::uint64_t connected = 0;
    for (const auto& session : backend_.vhost.sessions()) {
      connected += session.connected ? 1 : 0;
      const Labels labels = {{"socket", session.socket_path}};
      add("pollux_session_connected", "1 while a front end is connected.", Kind::kGauge, labels,
          session.connected ? 1 : 0);
      add("pollux_session_queues", "Virtqueues in use.", Kind::kGauge, labels, session.active_queues);
      add("pollux_session_requests_total", "Requests taken from virtqueues.", Kind::kCounter, labels, session.requests);
      add("pollux_session_errors_total", "Requests answered with an error.", Kind::kCounter, labels, session.errors);
    }
    add("pollux_sessions", "Connected front ends.", Kind::kGauge, {}, connected);
  }

  static reactor::Task<Result<reactor::Reactor::Counters>> read_counters(reactor::Reactor& reactor) {
    co_await reactor.enter();
    co_return reactor.counters();
  }

  void reactors() {
    for (std::size_t i = 0; i < backend_.reactors.size(); ++i) {
      auto& reactor = backend_.reactors.at(i);
      const auto counters = ask(reactor, read_counters(reactor));
      if (!counters) continue;
      const Labels labels = {{"reactor", std::to_string(i)}};
      add("pollux_reactor_loops_total", "Turns of the poll loop.", Kind::kCounter, labels, counters->loops);
      add("pollux_reactor_busy_loops_total", "Turns that found work.", Kind::kCounter, labels, counters->busy_loops);
      add("pollux_reactor_sleeps_total", "Times it went to sleep.", Kind::kCounter, labels, counters->sleeps);
      add("pollux_reactor_busy_cycles_total", "Processor cycles (TSC) spent on turns that found work.", Kind::kCounter,
          labels, counters->busy_tsc);
      add("pollux_reactor_longest_turn_cycles", "Processor cycles (TSC) of the longest turn since the start.",
          Kind::kGauge, labels, counters->longest_turn_tsc);
    }
  }

  Backend& backend_;
  std::vector<Family> families_;
  std::unordered_map<std::string_view, std::size_t> by_name_;
  unsigned incomplete_ = 0;
};

}  // namespace

std::vector<metrics::Family> gather_metrics(Backend& backend) {
  return Collector(backend).run();
}

}  // namespace pollux::control
