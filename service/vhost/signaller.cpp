#include "vhost/signaller.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

namespace pollux::vhost {

namespace {

// One is under way at a time. The kernel makes room for some more by itself.
constexpr unsigned kRequests = 1;

}  // namespace

Result<SignalFd> SignalFd::make(UniqueFd fd) {
  SignalFd made;
  if (!is_eventfd(fd.get())) {
    int family = 0;
    socklen_t size = sizeof(family);
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_DOMAIN, &family, &size) != 0 || family != AF_UNIX)
      return fail(ErrorCode::kInvalid, "a descriptor that is neither an eventfd nor a Unix socket");
    made.socket_ = true;
  }
  made.fd_ = std::move(fd);
  return made;
}

Result<std::unique_ptr<Signaller>> Signaller::make() {
  std::unique_ptr<Signaller> made(new Signaller);
  if (::syscall(SYS_io_setup, kRequests, &made->context_) != 0) {
    const int error = errno;
    const std::string hint = error == EAGAIN ? " (fs.aio-max-nr is used up: raise it)" : "";
    return fail(ErrorCode::kInternal,
                "cannot make the AIO context that interrupts need: " + std::string(std::strerror(error)) + hint);
  }
  const Ring& ring = made->ring();
  if (ring.magic != kRingMagic || ring.incompatible_features != 0)
    return fail(ErrorCode::kInternal, "the kernel's AIO ring has an unknown format");
  made->null_ = UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!made->null_) return fail(ErrorCode::kInternal, "cannot open /dev/null: " + std::string(std::strerror(errno)));
  iocb& request = made->request_;
  request.aio_lio_opcode = IOCB_CMD_PREAD;
  request.aio_fildes = static_cast<std::uint32_t>(made->null_.get());
  request.aio_flags = IOCB_FLAG_RESFD;
  return made;
}

Signaller::~Signaller() {
  if (context_ != 0) ::syscall(SYS_io_destroy, context_);
}

Signaller::Outcome Signaller::raise(int eventfd) {
  request_.aio_resfd = static_cast<std::uint32_t>(eventfd);
  iocb* const requests[] = {&request_};
  if (::syscall(SYS_io_submit, context_, 1, requests) != 1) [[unlikely]]
    return errno == EAGAIN || errno == ENOMEM ? Outcome::kRetry : Outcome::kUnusable;
  // It has completed, and its event is to make room for the next.
  Ring& events = ring();
  __atomic_store_n(&events.head, __atomic_load_n(&events.tail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
  return Outcome::kRaised;
}

Signaller::Outcome Signaller::send_on_socket(int fd) {
  const std::uint64_t one = 1;
  if (::send(fd, &one, sizeof(one), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(one)) return Outcome::kRaised;
  // A socket that is full of signals tells its reader enough.
  if (errno == EAGAIN) return Outcome::kRaised;
  return errno == ENOMEM || errno == ENOBUFS ? Outcome::kRetry : Outcome::kUnusable;
}

bool is_eventfd(int fd) {
  // Files of a file system have a path, which begins with a slash.
  constexpr std::string_view kName = "anon_inode:[eventfd]";
  char name[32];
  const ssize_t length = ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), name, sizeof(name));
  return length >= 0 && std::string_view(name, static_cast<std::size_t>(length)) == kName;
}

}  // namespace pollux::vhost
