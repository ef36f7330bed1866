#include "volume/qos.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "volume/volume_service.h"

namespace pollux::volume {

namespace {

constexpr double kNsPerSecond = 1e9;
// A year. No credit, cost or wait is longer, so that their sums fit 64 bits whatever was asked for.
constexpr double kMostS = 365.0 * 24 * 3600;

}  // namespace

void QosLimiter::set(const QosLimits& limits) {
  read_ops_.set(limits.read_iops, limits.read_iops_burst);
  write_ops_.set(limits.write_iops, limits.write_iops_burst);
  all_ops_.set(limits.total_iops, limits.total_iops_burst);
  read_bytes_.set(limits.read_bytes_per_s, limits.read_bytes_burst);
  write_bytes_.set(limits.write_bytes_per_s, limits.write_bytes_burst);
  all_bytes_.set(limits.total_bytes_per_s, limits.total_bytes_burst);
  active_.store(!(limits == QosLimits{}), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
}

void QosLimiter::Limit::set(std::uint64_t rate, const QosBurst& allowed) {
  const bool bursts = rate != 0 && allowed.per_s >= rate;
  const double saved_s = bursts ? static_cast<double>(allowed.per_s) * allowed.length_s / static_cast<double>(rate) : 0;
  sustained.set(rate, std::max(kCreditNs, static_cast<std::uint64_t>(std::min(saved_s, kMostS) * kNsPerSecond)));
  burst.set(bursts && allowed.length_s > 1 ? allowed.per_s : 0, kCreditNs);
}

std::uint64_t QosLimiter::Limit::book(std::uint64_t units, std::uint64_t now_ns) {
  return std::max(sustained.book(units, now_ns), burst.book(units, now_ns));
}

// It has all of its credit.
void QosLimiter::Line::set(std::uint64_t rate, std::uint64_t credit) {
  per_second.store(rate, std::memory_order_relaxed);
  credit_ns.store(credit, std::memory_order_relaxed);
  next_ns.store(std::numeric_limits<std::int64_t>::min(), std::memory_order_relaxed);
}

std::uint64_t QosLimiter::Line::book(std::uint64_t units, std::uint64_t now_ns) {
  const std::uint64_t rate = per_second.load(std::memory_order_relaxed);
  if (rate == 0 || units == 0) return now_ns;
  const double cost_s = static_cast<double>(units) / static_cast<double>(rate);
  const auto cost_ns = static_cast<std::int64_t>(std::min(cost_s, kMostS) * kNsPerSecond);
  const auto now = static_cast<std::int64_t>(now_ns);
  const auto earliest = now - static_cast<std::int64_t>(credit_ns.load(std::memory_order_relaxed));
  const auto latest = now + static_cast<std::int64_t>(kMostS * kNsPerSecond);
  std::int64_t next = next_ns.load(std::memory_order_relaxed);
  std::int64_t start = 0;
  do {
    start = std::clamp(next, earliest, latest);
  } while (!next_ns.compare_exchange_weak(next, start + cost_ns, std::memory_order_relaxed));
  return static_cast<std::uint64_t>(std::max<std::int64_t>(start, 0));
}

std::uint64_t QosLimiter::book(const bdev::IoRequest& request, std::uint64_t now_ns) {
  if (request.op == bdev::IoOp::kFlush) return now_ns;
  const bool reads = request.op == bdev::IoOp::kRead || request.op == bdev::IoOp::kExtent;
  // An unmap moves no data: it counts as a write operation alone.
  const bool moves_data = request.op == bdev::IoOp::kRead || request.op == bdev::IoOp::kWrite;
  const std::uint64_t bytes = moves_data ? request.length_bytes : 0;
  const std::uint64_t ops = (request.flags & bdev::IoRequest::kContinues) != 0 ? 0 : 1;
  const std::uint64_t starts[] = {(reads ? read_ops_ : write_ops_).book(ops, now_ns), all_ops_.book(ops, now_ns),
                                  (reads ? read_bytes_ : write_bytes_).book(bytes, now_ns),
                                  all_bytes_.book(bytes, now_ns)};
  return *std::max_element(std::begin(starts), std::end(starts));
}

}  // namespace pollux::volume
