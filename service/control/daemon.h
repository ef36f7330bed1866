#pragma once
// Daemon: the whole service, put together in the order that survival asks for.
//
//   state -> reactors -> volumes -> vhost -> pools -> attachments -> data sockets -> metrics -> control port
//
// The control port opens last, so a caller gets its answer from a service whose guests have their disks back.
// stop() goes the other way round. All calls on the main thread.

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "control/config.h"

namespace pollux::control {

class Daemon {
 public:
  // A line in the log for each stage. On failure what was started is stopped again.
  static Result<std::unique_ptr<Daemon>> start(const Config& config, const std::string& version);
  // stop(), when that was not called.
  ~Daemon();

  // Takes no more calls, lets those under way finish, closes data sockets, disconnects front ends with no request in
  // flight, checkpoints and closes the pools. The error is the pools'. Does not return when that takes longer than
  // service.stop_timeout_s: the process ends, see StopLimit.
  Status stop();
  // Log file and certificates, again. What fails is logged and stays as it was.
  void reload();

  std::uint16_t control_port() const;

 private:
  explicit Daemon(const Config& config);
  Status start_stages(const std::string& version);
  void warn_of_new_state() const;
  Status start_reactors();
  Status start_services();
  Status open_port();
  void bound_resume_latency();
  void leave_reactor_cores();

  struct Parts;
  const Config config_;
  std::unique_ptr<Parts> parts_;
};

}  // namespace pollux::control
