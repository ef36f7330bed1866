#pragma once
// Handler: the calls of the contract, one connection's. It checks parameters, sets the call's deadline, asks the rooms
// below, and turns their answers into the contract's. Who may call is GuardedProcessor's business, what must last the
// registries'.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "PolluxService.h"
#include "control/attachments.h"
#include "control/data_sockets.h"
#include "control/deadline.h"
#include "control/pool_checks.h"
#include "control/pools.h"
#include "control/roles.h"
#include "reactor/reactor.h"
#include "vhost/vhost_service.h"
#include "volume/volume_service.h"

namespace pollux::control {

// What every connection's handler works on. All of it outlives the RPC server.
struct Backend {
  reactor::ReactorGroup& reactors;
  volume::VolumeService& volumes;
  vhost::VhostService& vhost;
  StateStore& store;
  Pools& pools;
  Attachments& attachments;
  DataSockets& data_sockets;
  PoolChecks& pool_checks;
  std::string host_id;
  std::string version;
  std::int64_t started_at_ms = 0;
  std::uint32_t default_deadline_ms = 30'000;
  std::uint32_t max_deadline_ms = 600'000;
};

class Handler : public rpc::PolluxServiceIf {
 public:
  Handler(Backend& backend, Caller caller) : backend_(backend), caller_(std::move(caller)) {}

  void describe(rpc::ServiceInfo& answer, const rpc::RequestContext& ctx) override;
  void stats(rpc::ServiceStats& answer, const rpc::RequestContext& ctx) override;
  void pool_create(rpc::PoolInfo& answer, const rpc::RequestContext& ctx, const rpc::PoolSpec& spec) override;
  void pool_import(rpc::PoolInfo& answer, const rpc::RequestContext& ctx, const rpc::BdevSpec& bdev,
                   bool force) override;
  void pool_export(const rpc::RequestContext& ctx, const std::string& pool) override;
  void pool_list(std::vector<rpc::PoolInfo>& answer, const rpc::RequestContext& ctx) override;
  void pool_describe(rpc::PoolInfo& answer, const rpc::RequestContext& ctx, const std::string& pool) override;
  void pool_check(rpc::PoolCheck& answer, const rpc::RequestContext& ctx, const std::string& pool,
                  const std::string& check_id, bool repair) override;
  void pool_check_describe(rpc::PoolCheck& answer, const rpc::RequestContext& ctx,
                           const std::string& check_id) override;
  void pool_set_discard(rpc::PoolInfo& answer, const rpc::RequestContext& ctx, const std::string& pool,
                        bool discard) override;
  void pool_trim(rpc::JobInfo& answer, const rpc::RequestContext& ctx, const std::string& pool,
                 const std::string& job_id) override;
  void volume_create(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& pool,
                     const rpc::VolumeSpec& spec) override;
  void volume_delete(const rpc::RequestContext& ctx, const std::string& volume_id) override;
  void volume_extend(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id,
                     std::int64_t size_bytes) override;
  void volume_describe(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id) override;
  void volume_list(rpc::VolumePage& answer, const rpc::RequestContext& ctx, const std::string& pool,
                   const std::string& after, std::int32_t limit) override;
  void snapshot_create(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id,
                       const std::string& snapshot_id, const std::string& name) override;
  void volume_clone(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& snapshot_id,
                    const rpc::VolumeSpec& spec) override;
  void volume_revert(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id,
                     const std::string& snapshot_id) override;
  void volume_flatten(rpc::JobInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id,
                      const std::string& job_id) override;
  void volume_set_qos(rpc::VolumeInfo& answer, const rpc::RequestContext& ctx, const std::string& volume_id,
                      const rpc::QosLimits& limits) override;
  void volume_stats(rpc::VolumeStats& answer, const rpc::RequestContext& ctx, const std::string& volume_id) override;
  void authorise(const rpc::RequestContext& ctx, const rpc::Authorisation& authorisation) override;
  void unauthorise(const rpc::RequestContext& ctx, const std::string& volume_id, const std::string& host,
                   const std::string& grant_id) override;
  void authorisation_list(std::vector<rpc::Authorisation>& answer, const rpc::RequestContext& ctx,
                          const std::string& volume_id) override;
  void attach(rpc::AttachmentInfo& answer, const rpc::RequestContext& ctx, const rpc::AttachSpec& spec) override;
  void detach(const rpc::RequestContext& ctx, const std::string& attachment_id) override;
  void attachment_list(std::vector<rpc::AttachmentInfo>& answer, const rpc::RequestContext& ctx,
                       const std::string& volume_id, const std::string& client_id) override;
  void controller_ensure(std::string& answer, const rpc::RequestContext& ctx, const std::string& client_id,
                         std::int32_t queues) override;
  void controller_delete(const rpc::RequestContext& ctx, const std::string& client_id) override;
  void data_open(rpc::DataSocketInfo& answer, const rpc::RequestContext& ctx, const rpc::DataSocketSpec& spec) override;
  void data_close(const rpc::RequestContext& ctx, const std::string& socket_id) override;
  void job_list(std::vector<rpc::JobInfo>& answer, const rpc::RequestContext& ctx) override;
  void job_cancel(const rpc::RequestContext& ctx, const std::string& job_id) override;

 private:
  // Runs one call: deadline, log line, and the error as the contract's exception. `work` takes the deadline and returns
  // a Result or Status.
  template <typename Work>
  auto run(const char* method, const rpc::RequestContext& ctx, const std::string& object, Work work);
  // What of run() is the same whatever a call answers, so that it is compiled once.
  Deadline deadline_of(const rpc::RequestContext& ctx) const;
  void finish(const char* method, const rpc::RequestContext& ctx, const std::string& object, std::uint64_t begin_ns,
              const Error* error) const;
  // A task on the reactor that owns the pool tables.
  template <typename T>
  Result<T> ask(reactor::Task<Result<T>> task, Deadline deadline);
  Result<rpc::VolumeInfo> with_attachments(Result<volume::VolumeInfo> volume);
  // A registered pool that is not open may hold what was not found.
  Error explain(Error error) const;

  Backend& backend_;
  const Caller caller_;
};

}  // namespace pollux::control
