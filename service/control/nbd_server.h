#pragma once
// NbdServer: one block device on one local UNIX socket (mode 0660), for programs that stream whole images: qemu-img,
// nbdcopy, a backup. It is not the guests' path: data is copied through buffers of the connection.
//
// Threads of its own: one accepts, two serve each connection. start() and stop() are called from a control thread.

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/log_limiter.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "bdev/bdev.h"
#include "control/deadline.h"
#include "control/nbd_connection.h"
#include "reactor/reactor.h"

namespace pollux::control {

class NbdServer {
 public:
  struct Options {
    std::string path;
    std::string export_name;
    std::optional<gid_t> group;
    std::uint32_t max_connections = 8;
    bool read_only = false;
    // Nobody else writes the volume: a flush of a client is what tells of lost writes.
    bool sole_writer = true;
  };

  // kIoError: the socket cannot be made there.
  static Result<std::unique_ptr<NbdServer>> start(reactor::ReactorGroup& reactors, std::shared_ptr<bdev::Bdev> device,
                                                  Options options);
  // Cuts off the clients that are still connected, and waits.
  ~NbdServer();

  // Removes the socket and ends connections; what they had in flight goes on. May be repeated.
  void begin_stop();
  // begin_stop(), waits for what was in flight, and flushes the device. kRetry: not finished by the deadline. An error
  // of the flush means that data may be lost. May be repeated.
  Status stop(Deadline deadline);
  // For how long nobody has been connected; 0 while somebody is.
  std::uint64_t unused_ms();

 private:
  struct Client {
    std::thread thread;
    std::unique_ptr<nbd::Connection> connection;
    Deadline negotiation;
    bool finished = false;
    bool leaving = false;  // its place went to another
  };

  NbdServer(reactor::ReactorGroup& reactors, std::shared_ptr<bdev::Bdev> device, Options options)
      : reactors_(reactors), device_(std::move(device)), options_(std::move(options)) {}
  Status listen();
  nbd::Export describe() const;
  // Beside a guest, whose next flush it is that has to tell it of lost writes.
  std::uint8_t flush_flags() const { return options_.sole_writer ? 0 : bdev::IoRequest::kAside; }
  void accept_loop();
  void take_client();
  bool make_room();
  void reap();
  void note_breach(const std::string& what);
  void pause_accepting(int error);
  void stop_accepting();
  void interrupt_all();

  reactor::ReactorGroup& reactors_;
  const std::shared_ptr<bdev::Bdev> device_;
  const Options options_;
  UniqueFd listener_;
  UniqueFd stop_event_;
  std::thread acceptor_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Client> clients_;                       // under mutex_
  std::uint64_t unused_since_ns_ = monotonic_ns();  // under mutex_: when the last client went
  LogLimiter breaches_;
  LogLimiter accept_failures_;
  std::size_t next_reactor_ = 0;  // the acceptor's
};

}  // namespace pollux::control
