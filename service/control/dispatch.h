#pragma once
// GuardedProcessor: the one gate between the wire and the handler. It looks every call up in the table of roles before
// its parameters are read, and answers DENIED by itself; the handler never sees a call that its caller may not make.

#include <memory>
#include <string>

#include "PolluxService.h"
#include "control/access_log.h"
#include "control/roles.h"

namespace pollux::control {

class GuardedProcessor : public rpc::PolluxServiceProcessor {
 public:
  // One a connection. A caller without a role was logged when it connected; its calls add no lines.
  GuardedProcessor(std::shared_ptr<rpc::PolluxServiceIf> handler, Caller caller, AccessLog& access_log)
      : rpc::PolluxServiceProcessor(std::move(handler)), caller_(std::move(caller)), access_log_(access_log) {}

 protected:
  bool dispatchCall(apache::thrift::protocol::TProtocol* in, apache::thrift::protocol::TProtocol* out,
                    const std::string& method, std::int32_t sequence, void* context) override;

 private:
  std::string refusal(const std::string& method) const;

  const Caller caller_;
  AccessLog& access_log_;
};

}  // namespace pollux::control
