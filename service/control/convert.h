#pragma once
// Between the contract's types and ours: the one table of error codes, and the checks that every parameter passes
// before anything else sees it. Each check names the parameter in its message.

#include <optional>
#include <string>
#include <utility>

#include "base/result.h"
#include "base/uuid.h"
#include "control/attachments.h"
#include "control/pool_checks.h"
#include "control/state_store.h"
#include "pollux_types.h"
#include "volume/volume_service.h"

namespace pollux::control {

// kIoError and kCorrupt are INTERNAL on the wire: the service's log says more.
rpc::ErrorCode::type to_rpc(ErrorCode code);

Result<Uuid> check_uuid(const std::string& text, const char* parameter);
// Empty: none.
Result<std::optional<Uuid>> check_optional_uuid(const std::string& text, const char* parameter);
// As check_uuid, and the nil UUID: the grant of callers that give no ids.
Result<Uuid> check_grant(const std::string& text);
// [A-Za-z0-9][A-Za-z0-9._-]{0,62}
Status check_pool_name(const std::string& name, const char* parameter);
// A pool's name or its UUID.
Status check_pool(const std::string& pool);
// 1 to 255 bytes of UTF-8 without control characters.
Status check_friendly_name(const std::string& name, const char* parameter);
// [A-Za-z0-9][A-Za-z0-9-]{0,63}: it becomes part of a socket's name.
Status check_client(const std::string& client);
Status check_host(const std::string& host);
// More than 0, whole blocks, below 2^60.
Result<std::uint64_t> check_size(std::int64_t bytes, const char* parameter);
Result<std::uint32_t> check_count(std::int32_t number, const char* parameter);

Result<bdev::Spec> from_rpc(const rpc::BdevSpec& spec);
Result<volume::PoolSpec> from_rpc(const rpc::PoolSpec& spec);
// size_may_be_zero: a clone that keeps its snapshot's size.
Result<volume::VolumeSpec> from_rpc(const rpc::VolumeSpec& spec, bool size_may_be_zero);
Result<volume::QosLimits> from_rpc(const rpc::QosLimits& limits);
rpc::QosLimits to_rpc(const volume::QosLimits& limits);
Result<AttachRequest> from_rpc(const rpc::AttachSpec& spec);
Result<AuthorisationRecord> from_rpc(const rpc::Authorisation& authorisation);

rpc::PoolInfo to_rpc(const volume::PoolInfo& pool);
rpc::VolumeInfo to_rpc(const volume::VolumeInfo& volume, std::uint32_t attachments);
rpc::VolumeStats to_rpc(const volume::VolumeStats& stats);
rpc::JobState::type to_rpc(volume::JobState state);
rpc::JobInfo to_rpc(const volume::JobInfo& job);
rpc::PoolCheck to_rpc(const PoolCheckInfo& check);
rpc::Authorisation to_rpc(const AuthorisationRecord& authorisation);
rpc::AttachmentInfo to_rpc(const Attachment& attachment, const std::string& host_id);

}  // namespace pollux::control
