#pragma once
// RpcServer: the control port. Framed Thrift over TLS 1.3, one thread a connection, so that a call that waits keeps
// nobody else waiting; everything a peer can make large or slow is bounded (connections, handshake, frame, nesting,
// time on the wire, idle time).
//
// A thread belongs to its connection from accept to close. The port opens in start() and not before.

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>

#include "base/result.h"
#include "control/access_log.h"
#include "control/config.h"
#include "control/fd.h"
#include "control/roles.h"
#include "control/tls_context.h"
#include "control/tls_stream.h"

namespace apache::thrift {
class TProcessor;
}

namespace pollux::control {

class RpcServer {
 public:
  struct Options {
    Endpoint listen;
    std::uint32_t max_frame_bytes = 1 << 20;
    std::uint32_t max_connections = 256;
    std::uint32_t io_timeout_ms = 10'000;
    std::uint32_t idle_timeout_ms = 600'000;
  };
  // Makes what serves one connection; called on its thread.
  using ProcessorFactory = std::function<std::shared_ptr<apache::thrift::TProcessor>(const Caller&)>;

  // kInvalid: the address does not resolve. kBusy: it is taken. The TLS keeper and the access log outlive the server.
  static Result<std::unique_ptr<RpcServer>> start(Options options, TlsKeeper& tls, AccessLog& access_log,
                                                  ProcessorFactory factory);
  // stop().
  ~RpcServer();

  // The port in use, also when the kernel chose it.
  std::uint16_t port() const { return port_; }
  // Closes the port, lets calls that are under way finish and answer, closes connections, joins. May be repeated.
  void stop();

 private:
  struct Connection {
    std::thread thread;
    std::atomic<bool> finished{false};
  };

  RpcServer(Options options, TlsKeeper& tls, AccessLog& access_log, ProcessorFactory factory);
  Status bind();
  void accept_loop();
  void take_connection();
  void reap(bool all);
  void serve(Fd socket, const std::string& peer);
  // One request and its answer. False: the connection is over.
  bool serve_call(TlsStream& stream, apache::thrift::TProcessor& processor, const Caller& caller);

  const Options options_;
  TlsKeeper& tls_;
  AccessLog& access_log_;
  const ProcessorFactory factory_;
  std::uint16_t port_ = 0;
  Fd listener_;
  Fd stop_event_;
  std::thread acceptor_;
  std::list<Connection> connections_;  // the acceptor's alone
};

}  // namespace pollux::control
