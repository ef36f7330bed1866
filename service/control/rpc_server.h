#pragma once
// RpcServer: the control port. Framed Thrift over TLS 1.3. Clients that have not shown who they are wait in Handshakes,
// served by the accepting thread; each that did has a thread, so that a call that waits keeps nobody else waiting.
// Everything a peer can make large or slow is bounded: connections, handshake, frame, nesting, time on the wire, idle
// time.
//
// A thread belongs to its connection from the end of the handshake to close. The port opens in start() and not before.

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "base/log_limiter.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "control/access_log.h"
#include "control/config.h"
#include "control/deadline.h"
#include "control/handshakes.h"
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
    std::uint32_t max_handshakes = 64;
    std::uint32_t handshake_timeout_ms = 5'000;
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
    std::unique_ptr<TlsStream> stream;
    Caller caller;
    std::thread thread;
    std::atomic<bool> finished{false};
    // When its last call was answered; kBusy while one is under way.
    std::atomic<std::uint64_t> idle_since_ns{0};
    bool leaving = false;
  };
  static constexpr std::uint64_t kBusy = UINT64_MAX;

  RpcServer(Options options, TlsKeeper& tls, AccessLog& access_log, ProcessorFactory factory);
  Status bind();
  void accept_loop();
  void take_clients();
  void accept_failed(int error);
  void admit(std::unique_ptr<TlsStream> stream, const std::string& peer);
  bool make_room(const Caller& caller);
  void reap(bool all);
  void serve(Connection& connection);
  // One request and its answer. False: the connection is over.
  bool serve_call(Connection& connection, apache::thrift::TProcessor& processor);

  const Options options_;
  AccessLog& access_log_;
  const ProcessorFactory factory_;
  std::uint16_t port_ = 0;
  UniqueFd listener_;
  UniqueFd stop_event_;
  UniqueFd finished_event_;
  std::thread acceptor_;
  // The acceptor's alone.
  Handshakes handshakes_;
  std::list<Connection> connections_;
  std::optional<Deadline> accept_again_;
  std::uint64_t accept_pause_ms_ = 0;
  LogLimiter accept_failures_;
};

}  // namespace pollux::control
