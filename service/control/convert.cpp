#include "control/convert.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <limits>

#include "base/units.h"

namespace pollux::control {

namespace {

constexpr std::size_t kMaxPoolNameLength = 63;
constexpr std::size_t kMaxNameBytes = 255;
constexpr std::size_t kMaxClientLength = 64;
constexpr std::size_t kMaxPathLength = 4095;
constexpr std::int64_t kMaxSizeBytes = std::int64_t{1} << 60;

bool is_alphanumeric(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(const std::string& text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
    if (length == 0 || length > text.size() - i) return false;
    std::uint32_t point = length == 1 ? lead : lead & (0x7fU >> length);
    for (std::size_t k = 1; k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if (next >> 6 != 2) return false;
      point = point << 6 | (next & 0x3fU);
    }
    constexpr std::uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (point < kLeast[length] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return false;
    i += length;
  }
  return true;
}

tl::unexpected<Error> invalid(const char* parameter, const std::string& what) {
  return fail(ErrorCode::kInvalid, std::string(parameter) + ": " + what);
}

std::int64_t to_i64(std::uint64_t value) {
  return static_cast<std::int64_t>(std::min<std::uint64_t>(value, std::numeric_limits<std::int64_t>::max()));
}
std::int32_t to_i32(std::uint64_t value) {
  return static_cast<std::int32_t>(std::min<std::uint64_t>(value, std::numeric_limits<std::int32_t>::max()));
}

constexpr std::int32_t kMaxBurstS = 3600;

Status take_limit(std::int64_t value, const char* parameter, std::uint64_t& limit) {
  if (value < 0) return invalid(parameter, "a limit cannot be negative; 0 means none");
  limit = static_cast<std::uint64_t>(value);
  return {};
}

// Above this limit. QEMU has the same rules for its own.
Status take_burst(std::int64_t per_s, std::int32_t length_s, const char* parameter, std::uint64_t limit,
                  volume::QosBurst& burst) {
  if (per_s < 0) return invalid(parameter, "a burst cannot be negative; 0 means none");
  if (length_s < 0 || length_s > kMaxBurstS) {
    return invalid(parameter, "its length must be 1 to " + std::to_string(kMaxBurstS) + " seconds, or 0 for 1");
  }
  if (per_s == 0) {
    if (length_s > 1) return invalid(parameter, "a length without a burst has no meaning");
    return {};
  }
  burst.per_s = static_cast<std::uint64_t>(per_s);
  burst.length_s = static_cast<std::uint16_t>(std::max(length_s, 1));
  if (limit == 0) return invalid(parameter, "a burst needs the limit that it is to exceed");
  if (burst.per_s < limit) return invalid(parameter, "a burst cannot be lower than its limit");
  return {};
}

rpc::LatencyHistogram to_histogram(const std::vector<std::uint64_t>& buckets) {
  rpc::LatencyHistogram histogram;
  for (const auto bucket : buckets) histogram.buckets.push_back(to_i64(bucket));
  return histogram;
}

}  // namespace

rpc::ErrorCode::type to_rpc(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalid:
      return rpc::ErrorCode::INVALID;
    case ErrorCode::kNotFound:
      return rpc::ErrorCode::NOT_FOUND;
    case ErrorCode::kExists:
      return rpc::ErrorCode::EXISTS;
    case ErrorCode::kBusy:
      return rpc::ErrorCode::BUSY;
    case ErrorCode::kNoSpace:
      return rpc::ErrorCode::NO_SPACE;
    case ErrorCode::kUnsupported:
      return rpc::ErrorCode::UNSUPPORTED;
    case ErrorCode::kDenied:
      return rpc::ErrorCode::DENIED;
    case ErrorCode::kRetry:
      return rpc::ErrorCode::RETRY;
    case ErrorCode::kInternal:
    case ErrorCode::kIoError:
    case ErrorCode::kCorrupt:
      return rpc::ErrorCode::INTERNAL;
  }
  return rpc::ErrorCode::INTERNAL;
}

Result<Uuid> check_uuid(const std::string& text, const char* parameter) {
  const auto id = Uuid::parse(text);
  if (!id) return invalid(parameter, "expected a UUID such as 123e4567-e89b-42d3-a456-426614174000");
  if (id->is_nil()) return invalid(parameter, "the nil UUID names nothing");
  return *id;
}

Result<Uuid> check_grant(const std::string& text) {
  if (text == Uuid().to_string()) return Uuid();
  return check_uuid(text, "grant_id");
}

Result<std::optional<Uuid>> check_optional_uuid(const std::string& text, const char* parameter) {
  if (text.empty()) return std::optional<Uuid>();
  const auto id = check_uuid(text, parameter);
  if (!id) return fail(id.error());
  return std::optional<Uuid>(*id);
}

Status check_pool_name(const std::string& name, const char* parameter) {
  const bool fits = !name.empty() && name.size() <= kMaxPoolNameLength && is_alphanumeric(name.front()) &&
                    std::all_of(name.begin(), name.end(),
                                [](char c) { return is_alphanumeric(c) || c == '.' || c == '_' || c == '-'; });
  if (!fits) return invalid(parameter, "expected [A-Za-z0-9][A-Za-z0-9._-]{0,62}");
  return {};
}

Status check_pool(const std::string& pool) {
  // A UUID is of the same form.
  return check_pool_name(pool, "pool");
}

Status check_friendly_name(const std::string& name, const char* parameter) {
  const bool control =
      std::any_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
  if (name.empty() || name.size() > kMaxNameBytes || control || !is_utf8(name)) {
    return invalid(parameter, "expected 1 to 255 bytes of UTF-8 without control characters");
  }
  return {};
}

Status check_client(const std::string& client) {
  const bool fits = !client.empty() && client.size() <= kMaxClientLength && is_alphanumeric(client.front()) &&
                    std::all_of(client.begin(), client.end(), [](char c) { return is_alphanumeric(c) || c == '-'; });
  if (!fits) return invalid("client_id", "expected a UUID, or [A-Za-z0-9][A-Za-z0-9-]{0,63}");
  return {};
}

Status check_host(const std::string& host) {
  const bool fits = !host.empty() && host.size() <= kMaxNameBytes &&
                    std::all_of(host.begin(), host.end(), [](char c) { return c > ' ' && c < 0x7f; });
  if (!fits) return invalid("host", "expected the common name of a host's certificate, 1 to 255 printable characters");
  return {};
}

Result<std::uint64_t> check_size(std::int64_t bytes, const char* parameter) {
  if (bytes <= 0 || bytes > kMaxSizeBytes || bytes % kSectorBytes != 0) {
    return invalid(parameter, std::to_string(bytes) + " is no size: expected a multiple of 512, up to 2^60 bytes");
  }
  return static_cast<std::uint64_t>(bytes);
}

Result<std::uint32_t> check_count(std::int32_t number, const char* parameter) {
  if (number < 0) return invalid(parameter, std::to_string(number) + " is negative");
  return static_cast<std::uint32_t>(number);
}

Result<bdev::Spec> from_rpc(const rpc::BdevSpec& spec) {
  bdev::Spec result;
  if (spec.__isset.size_bytes && spec.size_bytes != 0) {
    const auto size = check_size(spec.size_bytes, "bdev.size_bytes");
    if (!size) return fail(size.error());
    result.size_bytes = *size;
  }
  switch (spec.kind) {
    case rpc::BdevKind::RAM:
      result.kind = bdev::Spec::Kind::kRam;
      if (result.size_bytes == 0) return invalid("bdev.size_bytes", "a RAM device needs a size");
      if (spec.__isset.path && !spec.path.empty()) return invalid("bdev.path", "a RAM device has none");
      return result;
    case rpc::BdevKind::URING:
      result.kind = bdev::Spec::Kind::kUring;
      if (spec.path.empty() || spec.path.front() != '/' || spec.path.size() > kMaxPathLength ||
          spec.path.find('\0') != std::string::npos) {
        return invalid("bdev.path", "expected the absolute path of a file or block device");
      }
      result.path = spec.path;
      return result;
  }
  return invalid("bdev.kind", std::to_string(static_cast<int>(spec.kind)) + " is unknown; expected RAM or URING");
}

Result<volume::PoolSpec> from_rpc(const rpc::PoolSpec& spec) {
  volume::PoolSpec result;
  const auto id = check_uuid(spec.pool_id, "pool_id");
  if (!id) return fail(id.error());
  result.id = *id;
  POLLUX_TRY(check_pool_name(spec.name, "name"));
  // Calls take a pool by name or id: a name that reads as an id could be taken for another pool.
  if (Uuid::parse(spec.name)) return invalid("name", "a UUID cannot be a pool's name");
  result.name = spec.name;
  auto device = from_rpc(spec.bdev);
  if (!device) return fail(std::move(device.error()));
  result.bdev = std::move(*device);
  if (spec.__isset.cluster_bytes && spec.cluster_bytes != 0) {
    const auto bytes = static_cast<std::uint32_t>(std::max(spec.cluster_bytes, 0));
    if (!std::has_single_bit(bytes) || bytes < 64 * kKiB || bytes > 4 * kMiB) {
      return invalid("cluster_bytes", "expected a power of two from 65536 to 4194304");
    }
    result.cluster_bytes = bytes;
  }
  if (spec.__isset.discard) result.discard = spec.discard;
  return result;
}

Result<volume::VolumeSpec> from_rpc(const rpc::VolumeSpec& spec, bool size_may_be_zero) {
  volume::VolumeSpec result;
  const auto id = check_uuid(spec.volume_id, "volume_id");
  if (!id) return fail(id.error());
  result.id = *id;
  POLLUX_TRY(check_friendly_name(spec.name, "name"));
  result.name = spec.name;
  if (spec.size_bytes != 0 || !size_may_be_zero) {
    const auto size = check_size(spec.size_bytes, "size_bytes");
    if (!size) return fail(size.error());
    result.size_bytes = *size;
  }
  if (spec.__isset.block_bytes && spec.block_bytes != 0) {
    if (spec.block_bytes != 512 && spec.block_bytes != 4096) return invalid("block_bytes", "expected 512 or 4096");
    result.block_bytes = static_cast<std::uint32_t>(spec.block_bytes);
  }
  switch (spec.provisioning) {
    case rpc::Provisioning::THIN:
      result.provisioning = volume::Provisioning::kThin;
      return result;
    case rpc::Provisioning::THICK:
      result.provisioning = volume::Provisioning::kThick;
      return result;
  }
  return invalid("provisioning", "expected THIN or THICK");
}

namespace {

// One of an rpc::QosLimits' optional fields.
template <typename Value>
struct QosField {
  const char* name;
  Value rpc::QosLimits::*value;
  void (rpc::QosLimits::*set)(Value);
};

struct QosRow {
  QosField<std::int64_t> limit, burst;
  QosField<std::int32_t> burst_s;
  std::uint64_t volume::QosLimits::*limit_here;
  volume::QosBurst volume::QosLimits::*burst_here;
};

constexpr QosRow kQosRows[] = {
    {{"read_iops", &rpc::QosLimits::read_iops, &rpc::QosLimits::__set_read_iops},
     {"read_burst_iops", &rpc::QosLimits::read_burst_iops, &rpc::QosLimits::__set_read_burst_iops},
     {"read_iops_burst_s", &rpc::QosLimits::read_iops_burst_s, &rpc::QosLimits::__set_read_iops_burst_s},
     &volume::QosLimits::read_iops,
     &volume::QosLimits::read_iops_burst},
    {{"write_iops", &rpc::QosLimits::write_iops, &rpc::QosLimits::__set_write_iops},
     {"write_burst_iops", &rpc::QosLimits::write_burst_iops, &rpc::QosLimits::__set_write_burst_iops},
     {"write_iops_burst_s", &rpc::QosLimits::write_iops_burst_s, &rpc::QosLimits::__set_write_iops_burst_s},
     &volume::QosLimits::write_iops,
     &volume::QosLimits::write_iops_burst},
    {{"total_iops", &rpc::QosLimits::total_iops, &rpc::QosLimits::__set_total_iops},
     {"total_burst_iops", &rpc::QosLimits::total_burst_iops, &rpc::QosLimits::__set_total_burst_iops},
     {"total_iops_burst_s", &rpc::QosLimits::total_iops_burst_s, &rpc::QosLimits::__set_total_iops_burst_s},
     &volume::QosLimits::total_iops,
     &volume::QosLimits::total_iops_burst},
    {{"read_bytes_per_s", &rpc::QosLimits::read_bytes_per_s, &rpc::QosLimits::__set_read_bytes_per_s},
     {"read_burst_bytes_per_s", &rpc::QosLimits::read_burst_bytes_per_s, &rpc::QosLimits::__set_read_burst_bytes_per_s},
     {"read_bytes_burst_s", &rpc::QosLimits::read_bytes_burst_s, &rpc::QosLimits::__set_read_bytes_burst_s},
     &volume::QosLimits::read_bytes_per_s,
     &volume::QosLimits::read_bytes_burst},
    {{"write_bytes_per_s", &rpc::QosLimits::write_bytes_per_s, &rpc::QosLimits::__set_write_bytes_per_s},
     {"write_burst_bytes_per_s", &rpc::QosLimits::write_burst_bytes_per_s, &rpc::QosLimits::__set_write_burst_bytes_per_s},
     {"write_bytes_burst_s", &rpc::QosLimits::write_bytes_burst_s, &rpc::QosLimits::__set_write_bytes_burst_s},
     &volume::QosLimits::write_bytes_per_s,
     &volume::QosLimits::write_bytes_burst},
    {{"total_bytes_per_s", &rpc::QosLimits::total_bytes_per_s, &rpc::QosLimits::__set_total_bytes_per_s},
     {"total_burst_bytes_per_s", &rpc::QosLimits::total_burst_bytes_per_s, &rpc::QosLimits::__set_total_burst_bytes_per_s},
     {"total_bytes_burst_s", &rpc::QosLimits::total_bytes_burst_s, &rpc::QosLimits::__set_total_bytes_burst_s},
     &volume::QosLimits::total_bytes_per_s,
     &volume::QosLimits::total_bytes_burst},
};

}  // namespace

// What is absent is 0.
Result<volume::QosLimits> from_rpc(const rpc::QosLimits& limits) {
  volume::QosLimits result;
  for (const QosRow& row : kQosRows) {
    std::uint64_t& limit = result.*row.limit_here;
    POLLUX_TRY(take_limit(limits.*row.limit.value, row.limit.name, limit));
    POLLUX_TRY(take_burst(limits.*row.burst.value, limits.*row.burst_s.value, row.burst.name, limit,
                          result.*row.burst_here));
  }
  return result;
}

rpc::QosLimits to_rpc(const volume::QosLimits& limits) {
  rpc::QosLimits result;
  for (const QosRow& row : kQosRows) {
    (result.*row.limit.set)(to_i64(limits.*row.limit_here));
    const volume::QosBurst& burst = limits.*row.burst_here;
    if (burst.per_s == 0) continue;
    (result.*row.burst.set)(to_i64(burst.per_s));
    (result.*row.burst_s.set)(to_i32(burst.length_s));
  }
  return result;
}

Result<AttachRequest> from_rpc(const rpc::AttachSpec& spec) {
  AttachRequest request;
  const auto id = check_uuid(spec.attachment_id, "attachment_id");
  if (!id) return fail(id.error());
  const auto volume = check_uuid(spec.volume_id, "volume_id");
  if (!volume) return fail(volume.error());
  POLLUX_TRY(check_client(spec.client_id));
  request.id = *id;
  request.volume = *volume;
  request.client = spec.client_id;
  if (spec.__isset.queues) {
    const auto queues = check_count(spec.queues, "queues");
    if (!queues) return fail(queues.error());
    request.queues = *queues;
  }
  request.read_only = spec.__isset.read_only && spec.read_only;
  if (spec.__isset.scsi_names) {
    if (spec.scsi_names != rpc::ScsiNames::POLLUX && spec.scsi_names != rpc::ScsiNames::QEMU) {
      return invalid("scsi_names", "expected POLLUX or QEMU");
    }
    request.scsi_names = spec.scsi_names == rpc::ScsiNames::QEMU ? ScsiNames::kQemu : ScsiNames::kPollux;
  }
  switch (spec.transport) {
    case rpc::Transport::SCSI:
      request.transport = TransportKind::kScsi;
      return request;
    case rpc::Transport::BLK:
      request.transport = TransportKind::kBlk;
      if (request.scsi_names != ScsiNames::kPollux) return invalid("scsi_names", "a BLK disk has none");
      return request;
  }
  return invalid("transport", "expected SCSI or BLK");
}

Result<AuthorisationRecord> from_rpc(const rpc::Authorisation& authorisation) {
  const auto volume = check_uuid(authorisation.volume_id, "volume_id");
  if (!volume) return fail(volume.error());
  POLLUX_TRY(check_host(authorisation.host));
  AuthorisationRecord record{*volume, authorisation.host, authorisation.__isset.read_only && authorisation.read_only, {}};
  if (authorisation.__isset.grant_id) {
    const auto grant = check_grant(authorisation.grant_id);
    if (!grant) return fail(grant.error());
    record.grant = *grant;
  }
  return record;
}

rpc::PoolInfo to_rpc(const volume::PoolInfo& pool) {
  rpc::PoolInfo info;
  info.pool_id = pool.id.to_string();
  info.name = pool.name;
  info.bdev.kind = pool.bdev.kind == bdev::Spec::Kind::kRam ? rpc::BdevKind::RAM : rpc::BdevKind::URING;
  if (!pool.bdev.path.empty()) info.bdev.__set_path(pool.bdev.path);
  if (pool.bdev.size_bytes != 0) info.bdev.__set_size_bytes(to_i64(pool.bdev.size_bytes));
  info.cluster_bytes = to_i32(pool.cluster_bytes);
  info.capacity_bytes = to_i64(pool.capacity_bytes);
  info.free_bytes = to_i64(pool.free_bytes);
  info.allocated_bytes = to_i64(pool.allocated_bytes);
  info.reserved_bytes = to_i64(pool.reserved_bytes);
  info.provisioned_bytes = to_i64(pool.provisioned_bytes);
  info.volumes = to_i32(pool.volumes);
  info.snapshots = to_i32(pool.snapshots);
  info.metadata_bytes = to_i64(pool.metadata_bytes);
  info.__set_used_percent(to_i32(pool.used_percent));
  info.__set_watermark_percent(to_i32(pool.watermark_percent));
  if (!pool.failure.empty()) {
    info.__set_failure(pool.failure);
    info.__set_failed_at_ms(pool.failed_at_ms);
  }
  if (!pool.lost_to.empty()) info.__set_lost_to(pool.lost_to);
  info.__set_provisioned_percent(to_i64(pool.provisioned_percent));
  info.__set_discard(pool.discard);
  info.__set_discarded_bytes(to_i64(pool.discarded_bytes));
  info.__set_discard_pending_bytes(to_i64(pool.discard_pending_bytes));
  return info;
}

rpc::VolumeInfo to_rpc(const volume::VolumeInfo& volume, std::uint32_t attachments) {
  rpc::VolumeInfo info;
  info.volume_id = volume.id.to_string();
  info.name = volume.name;
  info.pool = volume.pool;
  info.size_bytes = to_i64(volume.size_bytes);
  info.provisioning =
      volume.provisioning == volume::Provisioning::kThick ? rpc::Provisioning::THICK : rpc::Provisioning::THIN;
  info.snapshot = volume.snapshot;
  if (volume.parent_id) info.__set_parent_id(volume.parent_id->to_string());
  info.mapped_bytes = to_i64(volume.mapped_bytes);
  info.created_at_ms = volume.created_at_ms;
  info.attachments = to_i32(attachments);
  info.__set_block_bytes(to_i32(volume.block_bytes));
  if (volume.qos != volume::QosLimits{}) info.__set_qos(to_rpc(volume.qos));
  return info;
}

rpc::VolumeStats to_rpc(const volume::VolumeStats& stats) {
  rpc::VolumeStats result;
  result.read_ops = to_i64(stats.read_ops);
  result.write_ops = to_i64(stats.write_ops);
  result.flush_ops = to_i64(stats.flush_ops);
  result.unmap_ops = to_i64(stats.unmap_ops);
  result.read_bytes = to_i64(stats.read_bytes);
  result.write_bytes = to_i64(stats.write_bytes);
  result.errors = to_i64(stats.errors);
  if (!stats.read_latency.empty()) result.__set_read_latency(to_histogram(stats.read_latency));
  if (!stats.write_latency.empty()) result.__set_write_latency(to_histogram(stats.write_latency));
  return result;
}

rpc::JobState::type to_rpc(volume::JobState state) {
  switch (state) {
    case volume::JobState::kRunning:
      return rpc::JobState::RUNNING;
    case volume::JobState::kDone:
      return rpc::JobState::DONE;
    case volume::JobState::kFailed:
      return rpc::JobState::FAILED;
    case volume::JobState::kCancelled:
      return rpc::JobState::CANCELLED;
  }
  return rpc::JobState::FAILED;
}

rpc::JobInfo to_rpc(const volume::JobInfo& job) {
  rpc::JobInfo info;
  info.job_id = job.id.to_string();
  info.kind = job.kind;
  info.volume_id = job.volume_id.to_string();
  info.state = to_rpc(job.state);
  info.done = to_i64(job.done);
  info.total = to_i64(job.total);
  if (!job.error.empty()) info.__set_error(job.error);
  return info;
}

rpc::PoolCheck to_rpc(const PoolCheckInfo& check) {
  rpc::PoolCheck info;
  info.check_id = check.id.to_string();
  info.pool_id = check.result.id.to_string();
  info.pool = check.result.name;
  info.state = to_rpc(check.state);
  info.repair = check.repair;
  info.done = to_i64(check.done);
  info.total = to_i64(check.total);
  if (!check.error.empty()) info.__set_error(check.error);
  info.volumes = to_i64(check.result.volumes);
  info.metadata_pages = to_i64(check.result.metadata_pages);
  info.data_clusters = to_i64(check.result.data_clusters);
  info.replayed_records = to_i64(check.result.replayed_records);
  info.lost = to_i64(check.result.lost);
  info.doubly_used = to_i64(check.result.doubly_used);
  info.leaked = to_i64(check.result.leaked);
  info.damaged = to_i64(check.result.damaged);
  info.repaired = to_i64(check.result.repaired);
  info.findings = check.result.findings;
  return info;
}

rpc::Authorisation to_rpc(const AuthorisationRecord& authorisation) {
  rpc::Authorisation result;
  result.volume_id = authorisation.volume.to_string();
  result.host = authorisation.host;
  result.__set_read_only(authorisation.read_only);
  result.__set_grant_id(authorisation.grant.to_string());
  return result;
}

rpc::AttachmentInfo to_rpc(const Attachment& attachment, const std::string& host_id) {
  const auto& record = attachment.record;
  const bool scsi = record.transport == TransportKind::kScsi;
  rpc::AttachmentInfo info;
  info.attachment_id = record.id.to_string();
  info.volume_id = record.volume.to_string();
  info.client_id = record.client;
  info.transport = scsi ? rpc::Transport::SCSI : rpc::Transport::BLK;
  info.socket_path = attachment.socket_path;
  info.queues = to_i32(record.queues);
  info.read_only = record.read_only;
  if (scsi) {
    info.__set_controller(record.client);
    info.__set_target(record.target);
    info.__set_lun(0);
    info.__set_scsi_names(record.scsi_names == ScsiNames::kQemu ? rpc::ScsiNames::QEMU : rpc::ScsiNames::POLLUX);
  }
  info.serial = attachment.serial;
  info.connected = attachment.connected;
  info.host_id = host_id;
  return info;
}

}  // namespace pollux::control
