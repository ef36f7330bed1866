#include "control/dispatch.h"

#include <thrift/protocol/TProtocol.h>
#include <thrift/transport/TTransport.h>

namespace pollux::control {

namespace {

using apache::thrift::protocol::TProtocol;

// Every call of the contract throws PolluxError as field 1 of its result, so one answer fits all.
constexpr std::int16_t kErrorField = 1;

void answer_denied(TProtocol* out, const std::string& method, std::int32_t sequence, const std::string& message) {
  rpc::PolluxError error;
  error.code = rpc::ErrorCode::DENIED;
  error.message = message;
  out->writeMessageBegin(method, apache::thrift::protocol::T_REPLY, sequence);
  out->writeStructBegin("result");
  out->writeFieldBegin("e", apache::thrift::protocol::T_STRUCT, kErrorField);
  error.write(out);
  out->writeFieldEnd();
  out->writeFieldStop();
  out->writeStructEnd();
  out->writeMessageEnd();
  out->getTransport()->writeEnd();
  out->getTransport()->flush();
}

}  // namespace

std::string GuardedProcessor::refusal(const std::string& method) const {
  if (caller_.role == Role::kNone) {
    return "the certificate of " + (caller_.host.empty() ? "this client" : caller_.host) +
           " gives it no role: its organisational unit (OU) must be admin, cinder, compute or reader, and it needs a "
           "common name (CN)";
  }
  return "the role " + std::string(to_string(caller_.role)) + " may not call " + method + "; " +
         roles_that_may_call(method) + " may";
}

bool GuardedProcessor::dispatchCall(TProtocol* in, TProtocol* out, const std::string& method, std::int32_t sequence,
                                    void* context) {
  // The generated code answers calls that do not exist; nothing of ours runs for them.
  if (!known_method(method) || may_call(caller_.role, method)) {
    return rpc::PolluxServiceProcessor::dispatchCall(in, out, method, sequence, context);
  }
  in->skip(apache::thrift::protocol::T_STRUCT);
  in->readMessageEnd();
  in->getTransport()->readEnd();
  const std::string reason = refusal(method);
  if (caller_.role != Role::kNone) access_log_.refused(caller_.peer, caller_.host, reason);
  answer_denied(out, method, sequence, reason);
  return true;
}

}  // namespace pollux::control
