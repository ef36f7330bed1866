#pragma once
// Handshakes: clients of the control port that have not shown who they are. They have places of their own, so that they
// cannot take those of clients that did; and no thread each, for all handshakes go on in one loop, none of them
// waiting. A client that has said nothing yet costs a descriptor.
//
// The accepting thread's alone.

#include <poll.h>

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "base/waiting_clients.h"
#include "control/access_log.h"
#include "control/deadline.h"
#include "control/tls_context.h"
#include "control/tls_stream.h"

namespace pollux::control {

class Handshakes {
 public:
  // Takes over a client whose handshake is done.
  using Admit = std::function<void(std::unique_ptr<TlsStream> stream, const std::string& peer)>;

  // The TLS keeper and the access log outlive it.
  Handshakes(WaitingLimits limits, std::uint32_t timeout_ms, TlsKeeper& tls, AccessLog& access_log, Admit admit)
      : limits_(limits), timeout_ms_(timeout_ms), tls_(tls), access_log_(access_log), admit_(std::move(admit)) {}

  // A new client, called `peer` in the log. `address`: whom its place is counted to. Another may lose its place.
  void take(UniqueFd socket, std::string peer, std::string address);
  // What to wait for, in an order that holds until the next call.
  void append_to(std::vector<pollfd>& fds) const;
  // After poll(): goes on with those that can, and ends those whose time is over. `fds` are what append_to() appended.
  void go_on(std::span<const pollfd> fds);
  // How long poll() may wait until go_on() has to be called, at most `most_ms`.
  int wait_ms(int most_ms) const;

 private:
  struct Client {
    UniqueFd socket;                    // until it says something
    std::unique_ptr<TlsStream> stream;  // then
    std::string peer;
    std::string address;
    Deadline deadline;
    short events = POLLIN;
    bool refused = false;  // reads its alert
  };
  enum class Stage : std::uint8_t { kUnderWay, kOver };

  void make_room(const std::string& address);
  Stage step(Client& client);

  const WaitingLimits limits_;
  const std::uint32_t timeout_ms_;
  TlsKeeper& tls_;
  AccessLog& access_log_;
  const Admit admit_;
  std::list<Client> clients_;  // in order of arrival
};

}  // namespace pollux::control
