#include "volume/qos.h"

#include <algorithm>

#include "volume/volume_service.h"

namespace pollux::volume {

namespace {

constexpr double kNsPerSecond = 1e9;

}  // namespace

void QosLimiter::set(const QosLimits& limits) {
  const auto put = [](Line& line, std::uint64_t per_second) {
    line.per_second.store(per_second, std::memory_order_relaxed);
    line.next_ns.store(0, std::memory_order_relaxed);
  };
  put(read_ops_, limits.read_iops);
  put(write_ops_, limits.write_iops);
  put(all_ops_, limits.total_iops);
  put(read_bytes_, limits.read_bytes_per_s);
  put(write_bytes_, limits.write_bytes_per_s);
  put(all_bytes_, limits.total_bytes_per_s);
  active_.store(!(limits == QosLimits{}), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
}

std::uint64_t QosLimiter::Line::book(std::uint64_t units, std::uint64_t now_ns) {
  const std::uint64_t rate = per_second.load(std::memory_order_relaxed);
  if (rate == 0 || units == 0) return now_ns;
  const auto cost_ns =
      static_cast<std::uint64_t>(static_cast<double>(units) * kNsPerSecond / static_cast<double>(rate));
  std::uint64_t next = next_ns.load(std::memory_order_relaxed);
  std::uint64_t start = 0;
  do {
    start = std::max(next, now_ns > kCreditNs ? now_ns - kCreditNs : 0);
  } while (!next_ns.compare_exchange_weak(next, start + cost_ns, std::memory_order_relaxed));
  return start;
}

std::uint64_t QosLimiter::book(const bdev::IoRequest& request, std::uint64_t now_ns) {
  if (request.op == bdev::IoOp::kFlush) return now_ns;
  const bool reads = request.op == bdev::IoOp::kRead || request.op == bdev::IoOp::kExtent;
  // An unmap moves no data: it counts as a write operation alone.
  const bool moves_data = request.op == bdev::IoOp::kRead || request.op == bdev::IoOp::kWrite;
  const std::uint64_t bytes = moves_data ? request.length_bytes : 0;
  const std::uint64_t starts[] = {(reads ? read_ops_ : write_ops_).book(1, now_ns), all_ops_.book(1, now_ns),
                                  (reads ? read_bytes_ : write_bytes_).book(bytes, now_ns),
                                  all_bytes_.book(bytes, now_ns)};
  return *std::max_element(std::begin(starts), std::end(starts));
}

}  // namespace pollux::volume
