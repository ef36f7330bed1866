#include "control/handler.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "control/convert.h"
#include "pollux_constants.h"

namespace pollux::control {

namespace {

constexpr std::size_t kPageLimit = 1000;
constexpr std::size_t kMaxLoggedLength = 128;

// What a caller sends goes to the log as one plain line.
std::string loggable(const std::string& text) {
  std::string line = text.substr(0, kMaxLoggedLength);
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return line.empty() ? "-" : line;
}

std::vector<std::int32_t> watermarks() {
  const auto watermarks = volume::watermarks_percent();
  return {watermarks.begin(), watermarks.end()};
}

// The pools that have reached a watermark, the fullest first.
std::vector<rpc::PoolSpace> filling_up(const std::vector<volume::PoolInfo>& pools) {
  std::vector<rpc::PoolSpace> list;
  for (const auto& pool : pools) {
    if (pool.watermark_percent == 0) continue;
    const rpc::PoolInfo info = to_rpc(pool);
    rpc::PoolSpace space;
    space.pool_id = info.pool_id;
    space.name = info.name;
    space.used_percent = info.used_percent;
    space.watermark_percent = info.watermark_percent;
    space.free_bytes = info.free_bytes;
    list.push_back(std::move(space));
  }
  std::stable_sort(list.begin(), list.end(),
                   [](const auto& one, const auto& other) { return one.used_percent > other.used_percent; });
  return list;
}

[[noreturn]] void raise(const Error& error) {
  rpc::PolluxError exception;
  exception.code = to_rpc(error.code);
  exception.message = error.message;
  throw exception;
}

}  // namespace

Deadline Handler::deadline_of(const rpc::RequestContext& ctx) const {
  const std::int32_t asked_ms = ctx.__isset.deadline_ms ? ctx.deadline_ms : 0;
  if (asked_ms < 0) raise({ErrorCode::kInvalid, "ctx.deadline_ms: " + std::to_string(asked_ms) + " is negative"});
  return Deadline::after_ms(asked_ms == 0 ? backend_.default_deadline_ms
                                          : std::min(static_cast<std::uint32_t>(asked_ms), backend_.max_deadline_ms));
}

void Handler::finish(const char* method, const rpc::RequestContext& ctx, const std::string& object,
                     std::uint64_t begin_ns, const Error* error) const {
  const auto level = error ? log::Level::kWarn : changes_state(method) ? log::Level::kInfo : log::Level::kDebug;
  const std::string outcome = error ? to_string(error->code) + (": " + error->message) : "ok";
  log::line(level, "control: {} {} by {} ({}) [{}] {} us: {}", method, loggable(object), caller_.host, caller_.peer,
            loggable(ctx.request_id), (monotonic_ns() - begin_ns) / 1000, outcome);
  if (error) raise(*error);
}

template <typename Work>
auto Handler::run(const char* method, const rpc::RequestContext& ctx, const std::string& object, Work work) {
  const Deadline deadline = deadline_of(ctx);
  const std::uint64_t begin_ns = monotonic_ns();
  auto result = work(deadline);
  finish(method, ctx, object, begin_ns, result ? nullptr : &result.error());
  if constexpr (!std::is_void_v<typename decltype(result)::value_type>) return std::move(*result);
}

template <typename T>
Result<T> Handler::ask(reactor::Task<Result<T>> task, Deadline deadline) {
  auto result = reactor::call(backend_.reactors.main(), std::move(task), deadline.remaining_ms());
  if (!result) return fail(backend_.pools.explain(std::move(result.error())));
  return result;
}

Result<rpc::VolumeInfo> Handler::with_attachments(Result<volume::VolumeInfo> volume) {
  if (!volume) return fail(std::move(volume.error()));
  const auto count = backend_.attachments.count(volume->id);
  if (!count) return fail(count.error());
  return to_rpc(*volume, *count);
}

Error Handler::explain(Error error) const {
  return backend_.pools.explain(std::move(error));
}

void Handler::describe(rpc::ServiceInfo& answer, const rpc::RequestContext& ctx) {
  answer = run("describe", ctx, "", [&](Deadline) -> Result<rpc::ServiceInfo> {
    rpc::ServiceInfo info;
    info.host_id = backend_.host_id;
    info.version = backend_.version;
    info.api_version = rpc::g_pollux_constants.API_VERSION;
    info.capabilities = {"scsi", "blk",   "snapshots", "clones", "flatten", "revert", "extend",
                         "thin", "thick", "qos",       "jobs",   "nbd",     "ram",    "uring"};
    info.started_at_ms = backend_.started_at_ms;
    info.reactors = static_cast<std::int32_t>(backend_.reactors.size());
    return info;
  });
}

void Handler::stats(rpc::ServiceStats& answer, const rpc::RequestContext& ctx) {
  answer = run("stats", ctx, "", [&](Deadline deadline) -> Result<rpc::ServiceStats> {
    const auto pools = ask(backend_.volumes.list_pools(), deadline);
    if (!pools) return fail(pools.error());
    const auto attachments = backend_.store.attachments();
    if (!attachments) return fail(attachments.error());
    const auto sessions = backend_.vhost.sessions();
    rpc::ServiceStats stats;
    stats.pools = static_cast<std::int32_t>(pools->size());
    std::uint64_t discarded_bytes = 0;
    for (const auto& pool : *pools) {
      stats.volumes += static_cast<std::int32_t>(pool.volumes);
      stats.snapshots += static_cast<std::int32_t>(pool.snapshots);
      discarded_bytes += pool.discarded_bytes;
    }
    stats.__set_discarded_bytes(static_cast<std::int64_t>(discarded_bytes));
    stats.__set_watermarks_percent(watermarks());
    stats.__set_pools_filling_up(filling_up(*pools));
    stats.attachments = static_cast<std::int32_t>(attachments->size());
    stats.sessions = static_cast<std::int32_t>(
        std::count_if(sessions.begin(), sessions.end(), [](const auto& session) { return session.connected; }));
    stats.uptime_ms = wall_clock_ms() - backend_.started_at_ms;
    return stats;
  });
}

void Handler::pool_create(rpc::PoolInfo& answer, const rpc::RequestContext& ctx, const rpc::PoolSpec& spec) {
  answer = run("pool_create", ctx, spec.name, [&](Deadline deadline) -> Result<rpc::PoolInfo> {
    const auto checked = from_rpc(spec);
    if (!checked) return fail(checked.error());
    const auto pool = backend_.pools.create(*checked, spec.__isset.overwrite && spec.overwrite, deadline);
    if (!pool) return fail(pool.error());
    return to_rpc(*pool);
  });
}

void Handler::pool_import(rpc::PoolInfo& answer, const rpc::RequestContext& ctx, const rpc::BdevSpec& bdev,
                          bool force) {
  answer = run("pool_import", ctx, bdev.path, [&](Deadline deadline) -> Result<rpc::PoolInfo> {
    auto checked = from_rpc(bdev);
    if (!checked) return fail(checked.error());
    if (checked->kind == bdev::Spec::Kind::kRam) {
      return fail(ErrorCode::kInvalid, "bdev.kind: memory holds no pool to import");
    }
    checked->size_bytes = 0;  // importing never makes a file
    const auto pool = backend_.pools.import(*checked, force, deadline);
    if (!pool) return fail(pool.error());
    // What was attached when the pool could not be opened comes back with it.
    POLLUX_TRY(backend_.attachments.restore(backend_.pools.all_open()));
    return to_rpc(*pool);
  });
}

void Handler::pool_export(const rpc::RequestContext& ctx, const std::string& pool) {
  run("pool_export", ctx, pool, [&](Deadline deadline) -> Status {
    POLLUX_TRY(check_pool(pool));
    return backend_.pools.forget(pool, deadline);
  });
}

void Handler::pool_list(std::vector<rpc::PoolInfo>& answer, const rpc::RequestContext& ctx) {
  answer = run("pool_list", ctx, "", [&](Deadline deadline) -> Result<std::vector<rpc::PoolInfo>> {
    const auto pools = ask(backend_.volumes.list_pools(), deadline);
    if (!pools) return fail(pools.error());
    std::vector<rpc::PoolInfo> list;
    for (const auto& pool : *pools) list.push_back(to_rpc(pool));
    return list;
  });
}

void Handler::pool_describe(rpc::PoolInfo& answer, const rpc::RequestContext& ctx, const std::string& pool) {
  answer = run("pool_describe", ctx, pool, [&](Deadline deadline) -> Result<rpc::PoolInfo> {
    POLLUX_TRY(check_pool(pool));
    const auto info = ask(backend_.volumes.describe_pool(pool), deadline);
    if (!info) return fail(info.error());
    return to_rpc(*info);
  });
}

void Handler::pool_set_discard(rpc::PoolInfo& answer, const rpc::RequestContext& ctx, const std::string& pool,
                               bool discard) {
  answer = run("pool_set_discard", ctx, pool, [&](Deadline deadline) -> Result<rpc::PoolInfo> {
    POLLUX_TRY(check_pool(pool));
    const auto info = ask(backend_.volumes.set_pool_discard(pool, discard), deadline);
    if (!info) return fail(info.error());
    return to_rpc(*info);
  });
}

void Handler::pool_trim(rpc::JobInfo& answer, const rpc::RequestContext& ctx, const std::string& pool,
                        const std::string& job_id) {
  answer = run("pool_trim", ctx, pool, [&](Deadline deadline) -> Result<rpc::JobInfo> {
    POLLUX_TRY(check_pool(pool));
    const auto job = check_uuid(job_id, "job_id");
    if (!job) return fail(job.error());
    const auto info = ask(backend_.volumes.trim_pool(pool, *job), deadline);
    if (!info) return fail(info.error());
    return to_rpc(*info);
  });
}

void Handler::pool_check(rpc::PoolCheck& answer, const rpc::RequestContext& ctx, const std::string& pool,
                         const std::string& check_id, bool repair) {
  answer = run("pool_check", ctx, pool, [&](Deadline deadline) -> Result<rpc::PoolCheck> {
    const bool is_path = !pool.empty() && pool.front() == '/';
    if (!is_path) POLLUX_TRY(check_pool(pool));
    const auto id = check_uuid(check_id, "check_id");
    if (!id) return fail(id.error());
    const auto check = backend_.pool_checks.start({.id = *id, .pool = pool, .repair = repair}, deadline);
    if (!check) return fail(check.error());
    return to_rpc(*check);
  });
}

void Handler::pool_check_describe(rpc::PoolCheck& answer, const rpc::RequestContext& ctx, const std::string& check_id) {
  answer = run("pool_check_describe", ctx, check_id, [&](Deadline) -> Result<rpc::PoolCheck> {
    const auto id = check_uuid(check_id, "check_id");
    if (!id) return fail(id.error());
    const auto check = backend_.pool_checks.find(*id);
    if (!check) return fail(check.error());
    return to_rpc(*check);
  });
}

void Handler::volume_create(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& pool,
                            const rpc::VolumeSpec& spec) {
  answer = run("volume_create", ctx, spec.volume_id, [&](Deadline deadline) -> Result<rpc::VolumeInfo> {
    POLLUX_TRY(check_pool(pool));
    const auto checked = from_rpc(spec, /*size_may_be_zero=*/false);
    if (!checked) return fail(checked.error());
    return with_attachments(ask(backend_.volumes.create_volume(pool, *checked), deadline));
  });
}

void Handler::volume_delete(const rpc::RequestContext& ctx, const std::string& volume_id) {
  run("volume_delete", ctx, volume_id, [&](Deadline deadline) -> Status {
    const auto id = check_uuid(volume_id, "volume_id");
    if (!id) return fail(id.error());
    const auto remove = [&]() -> Status {
      // Deleting what is not there succeeds; ask() tells it from what is in a pool that is not open.
      auto deleted = ask(backend_.volumes.delete_volume(*id), deadline);
      if (!deleted && deleted.error().code == ErrorCode::kNotFound) return {};
      return deleted;
    };
    // A process that died while it copied the volume must not keep it for ever.
    backend_.data_sockets.close_abandoned(*id, deadline);
    return backend_.attachments.delete_volume(*id, remove, deadline);
  });
}

void Handler::volume_extend(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id,
                            std::int64_t size_bytes) {
  answer = run("volume_extend", ctx, volume_id, [&](Deadline deadline) -> Result<rpc::VolumeInfo> {
    const auto id = check_uuid(volume_id, "volume_id");
    if (!id) return fail(id.error());
    const auto size = check_size(size_bytes, "size_bytes");
    if (!size) return fail(size.error());
    return with_attachments(ask(backend_.volumes.extend_volume(*id, *size), deadline));
  });
}

void Handler::volume_describe(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id) {
  answer = run("volume_describe", ctx, volume_id, [&](Deadline deadline) -> Result<rpc::VolumeInfo> {
    const auto id = check_uuid(volume_id, "volume_id");
    if (!id) return fail(id.error());
    return with_attachments(ask(backend_.volumes.describe_volume(*id), deadline));
  });
}

void Handler::volume_list(rpc::VolumePage& answer, const rpc::RequestContext& ctx, const std::string& pool,
                          const std::string& after, std::int32_t limit) {
  answer = run("volume_list", ctx, pool, [&](Deadline deadline) -> Result<rpc::VolumePage> {
    POLLUX_TRY(check_pool(pool));
    const auto start = check_optional_uuid(after, "after");
    if (!start) return fail(start.error());
    const auto asked = check_count(limit, "limit");
    if (!asked) return fail(asked.error());
    const std::size_t count = *asked == 0 ? kPageLimit : std::min<std::size_t>(*asked, kPageLimit);
    // One more than asked for tells whether there is another page.
    auto volumes = ask(backend_.volumes.list_volumes(pool, *start, count + 1), deadline);
    if (!volumes) return fail(volumes.error());
    rpc::VolumePage page;
    if (volumes->size() > count) {
      volumes->resize(count);
      page.__set_next_after(volumes->back().id.to_string());
    }
    const auto attachments = backend_.store.attachments();
    if (!attachments) return fail(attachments.error());
    for (const auto& volume : *volumes) {
      const auto attached = std::count_if(attachments->begin(), attachments->end(),
                                          [&](const auto& record) { return record.volume == volume.id; });
      page.volumes.push_back(to_rpc(volume, static_cast<std::uint32_t>(attached)));
    }
    return page;
  });
}

void Handler::snapshot_create(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id,
                              const std::string& snapshot_id, const std::string& name) {
  answer = run("snapshot_create", ctx, snapshot_id, [&](Deadline deadline) -> Result<rpc::VolumeInfo> {
    const auto volume = check_uuid(volume_id, "volume_id");
    if (!volume) return fail(volume.error());
    const auto snapshot = check_uuid(snapshot_id, "snapshot_id");
    if (!snapshot) return fail(snapshot.error());
    POLLUX_TRY(check_friendly_name(name, "name"));
    return with_attachments(ask(backend_.volumes.create_snapshot(*volume, *snapshot, name), deadline));
  });
}

void Handler::volume_clone(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& snapshot_id,
                           const rpc::VolumeSpec& spec) {
  answer = run("volume_clone", ctx, spec.volume_id, [&](Deadline deadline) -> Result<rpc::VolumeInfo> {
    const auto snapshot = check_uuid(snapshot_id, "snapshot_id");
    if (!snapshot) return fail(snapshot.error());
    const auto checked = from_rpc(spec, /*size_may_be_zero=*/true);
    if (!checked) return fail(checked.error());
    return with_attachments(ask(backend_.volumes.clone(*snapshot, *checked), deadline));
  });
}

void Handler::volume_revert(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id,
                            const std::string& snapshot_id) {
  answer = run("volume_revert", ctx, volume_id, [&](Deadline deadline) -> Result<rpc::VolumeInfo> {
    const auto volume = check_uuid(volume_id, "volume_id");
    if (!volume) return fail(volume.error());
    const auto snapshot = check_uuid(snapshot_id, "snapshot_id");
    if (!snapshot) return fail(snapshot.error());
    return with_attachments(ask(backend_.volumes.revert(*volume, *snapshot), deadline));
  });
}

void Handler::volume_flatten(rpc::JobInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id,
                             const std::string& job_id) {
  answer = run("volume_flatten", ctx, volume_id, [&](Deadline deadline) -> Result<rpc::JobInfo> {
    const auto volume = check_uuid(volume_id, "volume_id");
    if (!volume) return fail(volume.error());
    const auto job = check_uuid(job_id, "job_id");
    if (!job) return fail(job.error());
    const auto info = ask(backend_.volumes.flatten(*volume, *job), deadline);
    if (!info) return fail(info.error());
    return to_rpc(*info);
  });
}

void Handler::volume_set_qos(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id,
                             const rpc::QosLimits& limits) {
  answer = run("volume_set_qos", ctx, volume_id, [&](Deadline deadline) -> Result<rpc::VolumeInfo> {
    const auto volume = check_uuid(volume_id, "volume_id");
    if (!volume) return fail(volume.error());
    const auto checked = from_rpc(limits);
    if (!checked) return fail(checked.error());
    return with_attachments(ask(backend_.volumes.set_qos(*volume, *checked), deadline));
  });
}

void Handler::volume_stats(rpc::VolumeStats& answer, const rpc::RequestContext& ctx, const std::string& volume_id) {
  answer = run("volume_stats", ctx, volume_id, [&](Deadline deadline) -> Result<rpc::VolumeStats> {
    const auto volume = check_uuid(volume_id, "volume_id");
    if (!volume) return fail(volume.error());
    const auto stats = ask(backend_.volumes.stats(*volume), deadline);
    if (!stats) return fail(stats.error());
    return to_rpc(*stats);
  });
}

void Handler::authorise(const rpc::RequestContext& ctx, const rpc::Authorisation& authorisation) {
  run("authorise", ctx, authorisation.volume_id + " " + authorisation.host, [&](Deadline deadline) -> Status {
    const auto checked = from_rpc(authorisation);
    if (!checked) return fail(checked.error());
    auto status = backend_.attachments.authorise(*checked, deadline);
    if (!status) return fail(explain(std::move(status.error())));
    return {};
  });
}

void Handler::unauthorise(const rpc::RequestContext& ctx, const std::string& volume_id, const std::string& host,
                          const std::string& grant_id) {
  run("unauthorise", ctx, volume_id + " " + host, [&](Deadline deadline) -> Status {
    const auto volume = check_uuid(volume_id, "volume_id");
    if (!volume) return fail(volume.error());
    if (!host.empty()) POLLUX_TRY(check_host(host));
    if (grant_id.empty()) return backend_.attachments.unauthorise(*volume, host, std::nullopt, deadline);
    if (host.empty()) return fail(ErrorCode::kInvalid, "host: a grant is one host's, and none is named");
    const auto grant = check_grant(grant_id);
    if (!grant) return fail(grant.error());
    return backend_.attachments.unauthorise(*volume, host, *grant, deadline);
  });
}

void Handler::authorisation_list(std::vector<rpc::Authorisation>& answer, const rpc::RequestContext& ctx,
                                 const std::string& volume_id) {
  answer = run("authorisation_list", ctx, volume_id, [&](Deadline) -> Result<std::vector<rpc::Authorisation>> {
    const auto volume = check_optional_uuid(volume_id, "volume_id");
    if (!volume) return fail(volume.error());
    const auto authorisations = backend_.store.authorisations(*volume);
    if (!authorisations) return fail(authorisations.error());
    std::vector<rpc::Authorisation> list;
    for (const auto& authorisation : *authorisations) list.push_back(to_rpc(authorisation));
    return list;
  });
}

void Handler::attach(rpc::AttachmentInfo& answer, const rpc::RequestContext& ctx, const rpc::AttachSpec& spec) {
  answer = run("attach", ctx, spec.attachment_id, [&](Deadline deadline) -> Result<rpc::AttachmentInfo> {
    const auto request = from_rpc(spec);
    if (!request) return fail(request.error());
    // A process that died must not keep a guest from its disk.
    if (!request->read_only) backend_.data_sockets.close_abandoned(request->volume, deadline);
    auto attachment = backend_.attachments.attach(caller_, *request, deadline);
    if (!attachment) return fail(explain(std::move(attachment.error())));
    return to_rpc(*attachment, backend_.host_id);
  });
}

void Handler::detach(const rpc::RequestContext& ctx, const std::string& attachment_id) {
  run("detach", ctx, attachment_id, [&](Deadline deadline) -> Status {
    const auto id = check_uuid(attachment_id, "attachment_id");
    if (!id) return fail(id.error());
    return backend_.attachments.detach(caller_, *id, deadline);
  });
}

void Handler::attachment_list(std::vector<rpc::AttachmentInfo>& answer, const rpc::RequestContext& ctx,
                              const std::string& volume_id, const std::string& client_id) {
  answer = run("attachment_list", ctx, volume_id, [&](Deadline) -> Result<std::vector<rpc::AttachmentInfo>> {
    const auto volume = check_optional_uuid(volume_id, "volume_id");
    if (!volume) return fail(volume.error());
    if (!client_id.empty()) POLLUX_TRY(check_client(client_id));
    const auto attachments = backend_.attachments.list(*volume, client_id);
    if (!attachments) return fail(attachments.error());
    std::vector<rpc::AttachmentInfo> list;
    for (const auto& attachment : *attachments) list.push_back(to_rpc(attachment, backend_.host_id));
    return list;
  });
}

void Handler::controller_ensure(std::string& answer, const rpc::RequestContext& ctx, const std::string& client_id,
                                std::int32_t queues) {
  answer = run("controller_ensure", ctx, client_id, [&](Deadline deadline) -> Result<std::string> {
    POLLUX_TRY(check_client(client_id));
    const auto count = check_count(queues, "queues");
    if (!count) return fail(count.error());
    return backend_.attachments.ensure_controller(caller_, client_id, *count, deadline);
  });
}

void Handler::controller_delete(const rpc::RequestContext& ctx, const std::string& client_id) {
  run("controller_delete", ctx, client_id, [&](Deadline deadline) -> Status {
    POLLUX_TRY(check_client(client_id));
    return backend_.attachments.delete_controller(caller_, client_id, deadline);
  });
}

void Handler::data_open(rpc::DataSocketInfo& answer, const rpc::RequestContext& ctx, const rpc::DataSocketSpec& spec) {
  answer = run("data_open", ctx, spec.socket_id, [&](Deadline deadline) -> Result<rpc::DataSocketInfo> {
    const auto id = check_uuid(spec.socket_id, "socket_id");
    if (!id) return fail(id.error());
    const auto volume = check_uuid(spec.volume_id, "volume_id");
    if (!volume) return fail(volume.error());
    const bool read_only = spec.__isset.read_only && spec.read_only;
    const bool shared = spec.__isset.shared && spec.shared;
    if (!read_only) backend_.data_sockets.close_abandoned(*volume, deadline);
    auto socket = backend_.data_sockets.open({*id, *volume, read_only, shared}, deadline);
    if (!socket) return fail(explain(std::move(socket.error())));
    rpc::DataSocketInfo info;
    info.socket_id = socket->id.to_string();
    info.volume_id = socket->volume.to_string();
    info.path = socket->path;
    info.export_name = socket->export_name;
    info.read_only = socket->read_only;
    return info;
  });
}

void Handler::data_close(const rpc::RequestContext& ctx, const std::string& socket_id) {
  run("data_close", ctx, socket_id, [&](Deadline deadline) -> Status {
    const auto id = check_uuid(socket_id, "socket_id");
    if (!id) return fail(id.error());
    return backend_.data_sockets.close(*id, deadline);
  });
}

void Handler::job_list(std::vector<rpc::JobInfo>& answer, const rpc::RequestContext& ctx) {
  answer = run("job_list", ctx, "", [&](Deadline deadline) -> Result<std::vector<rpc::JobInfo>> {
    const auto jobs = ask(backend_.volumes.list_jobs(), deadline);
    if (!jobs) return fail(jobs.error());
    std::vector<rpc::JobInfo> list;
    for (const auto& job : *jobs) list.push_back(to_rpc(job));
    for (const auto& check : backend_.pool_checks.list()) list.push_back(to_rpc(check.as_job()));
    return list;
  });
}

void Handler::job_cancel(const rpc::RequestContext& ctx, const std::string& job_id) {
  run("job_cancel", ctx, job_id, [&](Deadline deadline) -> Status {
    const auto id = check_uuid(job_id, "job_id");
    if (!id) return fail(id.error());
    if (backend_.pool_checks.cancel(*id)) return {};
    return ask(backend_.volumes.cancel_job(*id), deadline);
  });
}

}  // namespace pollux::control
