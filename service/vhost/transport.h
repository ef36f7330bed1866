#pragma once
// Transport: listens on the sockets and moves vhost-user messages. What a message means is the session's business.
//
// Callbacks come from the transport's own threads, messages of one connection one at a time, those of different
// connections at once; and from close().

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace pollux::vhost {

struct Message {
  // The largest that is known, a configuration space of 256 bytes or a table of 8 regions, and some.
  static constexpr std::size_t kMaxPayloadBytes = 512;
  static constexpr std::size_t kMaxFds = 8;

  std::uint32_t request = 0;
  std::uint32_t flags = 0;
  std::uint32_t size_bytes = 0;
  alignas(8) std::array<std::byte, kMaxPayloadBytes> payload{};
  std::array<UniqueFd, kMaxFds> fds;
  std::size_t fd_count = 0;
  // A descriptor to send along with a reply; stays the connection's, which keeps it open until its next message.
  int reply_fd = -1;

  // The payload as T; false unless it is exactly that large.
  template <typename T>
  bool read(T& value) const {
    if (size_bytes != sizeof(T)) return false;
    std::memcpy(&value, payload.data(), sizeof(T));
    return true;
  }
  template <typename T>
  void write(const T& value) {
    static_assert(sizeof(T) <= kMaxPayloadBytes);
    std::memcpy(payload.data(), &value, sizeof(T));
    size_bytes = sizeof(T);
  }
};

// What becomes of a message.
enum class Verdict : std::uint8_t {
  kDone,   // acknowledge if the front end asked for it
  kReply,  // send the message back as the answer
  kDrop,   // end the connection
};

// How far a front end has come.
enum class Stage : std::uint8_t {
  kSilent,  // has not sent a whole message
  kTalking,
  kServed,     // a queue of it runs, or ran
  kDismissed,  // its place went to another before that: none will
};

// One connected front end.
class Connection {
 public:
  virtual ~Connection() = default;
  // Any thread.
  virtual Stage stage() const = 0;
  // Takes its place away, for good; false when it is served. Any thread.
  virtual bool dismiss() = 0;
  virtual Verdict on_message(Message& message) = 0;
  // The front end has closed its end; on_close() is to follow. Returns at once, from any thread.
  virtual void on_hangup() = 0;
  // The front end is gone, or is about to be disconnected: it finds its connection closed only after this has returned.
  // May be called more than once, from any thread, also while a message is being handled.
  virtual void on_close() = 0;
};

class Acceptor {
 public:
  virtual ~Acceptor() = default;
  virtual std::shared_ptr<Connection> on_connect() = 0;
};

class Transport {
 public:
  // Connections of a socket. A front end that reconnects may be there before its old connection is known to be dead;
  // many at once are an attack. One more takes the place of one that is not served (base/waiting_clients.h, where a
  // process counts as an address), and is refused when all are.
  static constexpr std::size_t kMaxFrontEnds = 16;

  virtual ~Transport() = default;
  // Listens on the path, replacing a socket that a dead process left there. The acceptor must live until close(path)
  // has returned. kInvalid: path too long; kExists: already open; kBusy: too many sockets; kInternal: the kernel
  // refuses.
  virtual Status open(const std::string& path, Acceptor& acceptor) = 0;
  // Disconnects the path's front ends, calling on_close() for each, and removes the socket. Not from a callback.
  virtual void close(const std::string& path) = 0;
};

// kInternal when the kernel refuses.
Result<std::unique_ptr<Transport>> make_socket_transport();

}  // namespace pollux::vhost
