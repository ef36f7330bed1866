#include "blob/reserve.h"

namespace pollux::blob {

std::vector<ByteRange> system_ranges(const Geometry& geometry, std::uint32_t first_zone) {
  std::vector<ByteRange> ranges;
  for (std::uint32_t zone = first_zone; zone < geometry.zones(); ++zone) {
    const std::uint64_t begin = zone == 0 ? 0 : geometry.cluster_offset(geometry.zone_head(zone));
    const std::uint64_t end = geometry.cluster_offset(geometry.zone_head(zone) + geometry.zone_head_clusters);
    ranges.push_back({begin, end - begin});
  }
  return ranges;
}

std::vector<ByteRange> ranges_of(const Geometry& geometry, const std::vector<ClusterNo>& clusters) {
  std::vector<ByteRange> ranges;
  for (ClusterNo cluster : clusters) {
    const std::uint64_t offset = geometry.cluster_offset(cluster);
    if (!ranges.empty() && ranges.back().offset + ranges.back().length == offset) {
      ranges.back().length += geometry.cluster_bytes;
    } else {
      ranges.push_back({offset, geometry.cluster_bytes});
    }
  }
  return ranges;
}

reactor::Task<Status> reserve_new(bdev::Bdev& device, bdev::Channel& channel, reactor::Reactor& home,
                                  ByteRange range) {
  Status reserved = co_await device.reserve(home, range.offset, range.length);
  if (reserved || reserved.error().code != ErrorCode::kUnsupported) co_return reserved;
  co_return bdev::to_status(co_await bdev::write_zeroes(channel, range.offset, range.length),
                            "zeros in place of room for metadata");
}

reactor::Task<Status> reserve_used(bdev::Bdev& device, reactor::Reactor& home, std::vector<ByteRange> ranges) {
  for (const ByteRange& range : ranges) {
    Status reserved = co_await device.reserve(home, range.offset, range.length);
    if (reserved) continue;
    if (reserved.error().code == ErrorCode::kUnsupported) co_return Status{};
    co_return reserved;
  }
  co_return Status{};
}

}  // namespace pollux::blob
