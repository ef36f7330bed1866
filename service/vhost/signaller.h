#pragma once
// Signaller: raises interrupts in guests through the descriptors that their front ends gave, and cannot be made to
// wait.
//
// A write to an eventfd blocks when the counter is full and O_NONBLOCK is clear. A front end controls both: the flag
// belongs to the open file, which it shares with us, so that setting it here promises nothing. The kernel signals an
// eventfd for its own purposes without ever waiting: it adds as much as the counter takes. Linux AIO leads there, since
// a request with IOCB_FLAG_RESFD signals an eventfd when it completes (io_submit(2)). The request is a read of nothing
// from /dev/null, which completes within io_submit().
//
// User-mode Linux gives Unix sockets instead (its interrupts need SIGIO, which eventfds do not send). There the call
// itself says that it must not wait, and the sender takes no lock under which a reader may sleep. Pipes have such a
// lock, sockets of other families too.

#include <linux/aio_abi.h>

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "base/unique_fd.h"

namespace pollux::vhost {

// What a front end wants to be signalled through: nothing, an eventfd, or a Unix socket.
class SignalFd {
 public:
  SignalFd() = default;
  // kInvalid: of another kind.
  static Result<SignalFd> make(UniqueFd fd);

  explicit operator bool() const { return static_cast<bool>(fd_); }
  int get() const { return fd_.get(); }
  bool socket() const { return socket_; }

 private:
  UniqueFd fd_;
  bool socket_ = false;
};

// One a reactor. Made and destroyed on any thread, raise() on the reactor's.
class Signaller {
 public:
  // kInternal: the kernel has no AIO context left (fs.aio-max-nr) or no /dev/null.
  static Result<std::unique_ptr<Signaller>> make();
  ~Signaller();
  Signaller(const Signaller&) = delete;
  Signaller& operator=(const Signaller&) = delete;

  enum class Outcome : std::uint8_t {
    kRaised,
    // The kernel has no memory now: nothing was signalled, and it has to be tried again.
    kRetry,
    // Not an eventfd, and never will be one; a socket whose other end is gone.
    kUnusable,
  };
  // Precondition: the descriptor is there.
  Outcome raise(const SignalFd& fd) { return fd.socket() ? send_on_socket(fd.get()) : raise(fd.get()); }
  Outcome raise(int eventfd);

 private:
  // What the kernel maps at the address that names a context (fs/aio.c); user space may take events by moving `head`.
  struct Ring {
    std::uint32_t id;
    std::uint32_t events;
    std::uint32_t head;
    std::uint32_t tail;
    std::uint32_t magic;
    std::uint32_t compatible_features;
    std::uint32_t incompatible_features;
    std::uint32_t header_bytes;
  };
  static constexpr std::uint32_t kRingMagic = 0xa10a10a1;

  Signaller() = default;
  static Outcome send_on_socket(int fd);
  Ring& ring() const { return *reinterpret_cast<Ring*>(context_); }

  aio_context_t context_ = 0;
  UniqueFd null_;
  iocb request_{};
};

// Whether the descriptor is an eventfd, whose poll(), close() and signalling never wait.
bool is_eventfd(int fd);

}  // namespace pollux::vhost
