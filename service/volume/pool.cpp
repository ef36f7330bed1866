#include "volume/pool.h"

#include <algorithm>
#include <iterator>

#include "blob/volume.h"

namespace pollux::volume {

Status Pool::check_unused() const {
  for (const auto& [number, volume] : store->state().volumes()) {
    if (volume->opens != 0) {
      return fail(ErrorCode::kBusy, "volume " + volume->id.to_string() + " of pool '" + name + "' is in use");
    }
  }
  return {};
}

PoolInfo Pool::info() const {
  const blob::Usage usage = store->usage();
  const auto& failure = store->failure();
  return {.id = id,
          .name = name,
          .bdev = spec,
          .cluster_bytes = store->super().cluster_bytes,
          .capacity_bytes = usage.capacity_bytes,
          .free_bytes = usage.free_bytes,
          .allocated_bytes = usage.allocated_bytes,
          .reserved_bytes = usage.reserved_bytes,
          .provisioned_bytes = usage.provisioned_bytes,
          .metadata_bytes = usage.metadata_bytes,
          .volumes = usage.volumes,
          .snapshots = usage.snapshots,
          .used_percent = usage.used_percent,
          .provisioned_percent = usage.provisioned_bytes / std::max<std::uint64_t>(usage.capacity_bytes / 100, 1),
          .watermark_percent = usage.watermark_percent,
          .discard = store->discards(),
          .discarded_bytes = usage.discarded_bytes,
          .discard_pending_bytes = usage.discard_pending_bytes,
          .failure = failure ? failure->reason : std::string(),
          .failed_at_ms = failure ? failure->at_ms : 0,
          .lost_to = failure ? failure->lost_to : std::string()};
}

VolumeInfo Pool::info(const blob::Volume& volume) const {
  VolumeInfo info;
  info.id = volume.id;
  info.name = volume.name;
  info.pool = name;
  info.size_bytes = volume.size_bytes;
  info.provisioning = volume.thick() ? Provisioning::kThick : Provisioning::kThin;
  info.snapshot = volume.snapshot();
  info.block_bytes = volume.block_bytes(device->block_bytes());
  if (!volume.parent_id.is_nil()) info.parent_id = volume.parent_id;
  info.mapped_bytes = std::uint64_t{volume.mapped} * store->super().cluster_bytes;
  info.created_at_ms = volume.created_ms;
  info.open_count = volume.opens;
  info.qos = from_store(volume.qos, volume.bursts);
  return info;
}

Pool::OpenStack Pool::opened(const Uuid& volume) const {
  const auto found = open.find(volume);
  if (found == open.end()) return {};
  auto top = found->second.top.lock();
  if (!top) return {};
  return {std::move(top), found->second.volume};
}

std::vector<std::uint32_t> watermarks_percent() {
  return {std::begin(blob::kWatermarksPercent), std::end(blob::kWatermarksPercent)};
}

blob::Qos to_store(const QosLimits& limits) {
  return {{limits.read_iops, limits.write_iops, limits.total_iops, limits.read_bytes_per_s, limits.write_bytes_per_s,
           limits.total_bytes_per_s}};
}

blob::Bursts bursts_to_store(const QosLimits& limits) {
  const QosBurst each[] = {limits.read_iops_burst,  limits.write_iops_burst,  limits.total_iops_burst,
                           limits.read_bytes_burst, limits.write_bytes_burst, limits.total_bytes_burst};
  blob::Bursts bursts{};
  for (std::size_t i = 0; i < std::size(each); ++i) {
    bursts.limits[i] = each[i].per_s;
    bursts.lengths_s[i] = each[i].length_s;
  }
  return bursts;
}

QosLimits from_store(const blob::Qos& qos, const blob::Bursts& bursts) {
  const auto burst = [&bursts](std::size_t i) {
    return QosBurst{.per_s = bursts.limits[i], .length_s = bursts.lengths_s[i]};
  };
  return {.read_iops = qos.limits[0],
          .write_iops = qos.limits[1],
          .total_iops = qos.limits[2],
          .read_bytes_per_s = qos.limits[3],
          .write_bytes_per_s = qos.limits[4],
          .total_bytes_per_s = qos.limits[5],
          .read_iops_burst = burst(0),
          .write_iops_burst = burst(1),
          .total_iops_burst = burst(2),
          .read_bytes_burst = burst(3),
          .write_bytes_burst = burst(4),
          .total_bytes_burst = burst(5)};
}

}  // namespace pollux::volume
