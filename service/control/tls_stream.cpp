#include "control/tls_stream.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

namespace pollux::control {

namespace {

// After a refused handshake: for how many bytes to let the peer read the alert before the socket goes.
constexpr std::size_t kLingerBytes = 64 * 1024;
constexpr std::size_t kMaxNameLength = 255;

// The one entry of that kind as text. Empty when there is none or several, or when it holds anything but printable
// ASCII (a NUL or a line feed has no place in a name that goes to the log and into comparisons).
std::string entry(X509_NAME* name, int nid) {
  const int index = X509_NAME_get_index_by_NID(name, nid, -1);
  if (index < 0 || X509_NAME_get_index_by_NID(name, nid, index) >= 0) return {};
  unsigned char* text = nullptr;
  const int length = ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, index)));
  if (length < 0) return {};
  std::string value(reinterpret_cast<const char*>(text), static_cast<std::size_t>(length));
  OPENSSL_free(text);
  const bool printable = std::all_of(value.begin(), value.end(), [](char c) { return c > ' ' && c < 0x7f; });
  return printable && value.size() <= kMaxNameLength ? value : std::string();
}

TlsStream::Subject subject_of(X509* certificate) {
  if (certificate == nullptr) return {};
  X509_NAME* name = X509_get_subject_name(certificate);
  return {entry(name, NID_commonName), entry(name, NID_organizationalUnitName)};
}

}  // namespace

TlsStream::TlsStream(UniqueFd socket, std::shared_ptr<TlsContext> context)
    : socket_(std::move(socket)), context_(std::move(context)), ssl_(SSL_new(context_->get())) {
  const int flags = fcntl(socket_.get(), F_GETFL);
  fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK);
  if (ssl_) {
    SSL_set_app_data(ssl_.get(), this);
    SSL_set_fd(ssl_.get(), socket_.get());
  }
}

TlsStream::~TlsStream() = default;

int TlsStream::verify_callback(int ok, X509_STORE_CTX* store) {
  if (ok == 1) return 1;
  auto* ssl = static_cast<SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
  auto* self = static_cast<TlsStream*>(SSL_get_app_data(ssl));
  self->subject_ = subject_of(X509_STORE_CTX_get0_cert(store));
  self->refusal_ = X509_verify_cert_error_string(X509_STORE_CTX_get_error(store));
  return 0;
}

TlsStream::End TlsStream::wait(int ssl_error, Deadline deadline, int stop_fd) {
  const short events = ssl_error == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN;
  std::array<pollfd, 2> fds{{{socket_.get(), events, 0}, {stop_fd, POLLIN, 0}}};
  while (true) {
    const auto ms = std::min<std::uint64_t>(deadline.remaining_ms(), INT_MAX);
    const int ready = poll(fds.data(), fds.size(), static_cast<int>(ms));  // a negative descriptor is ignored
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return End::kFailed;
    if (ready == 0) return End::kTimeout;
    if (fds[1].revents != 0) return End::kStopped;
    return End::kDone;
  }
}

bool TlsStream::linger() {
  std::array<char, 4096> scrap{};
  while (lingered_bytes_ < kLingerBytes) {
    const ssize_t got = recv(socket_.get(), scrap.data(), scrap.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got == 0 || errno != EAGAIN;
    lingered_bytes_ += static_cast<std::size_t>(got);
  }
  return true;
}

void TlsStream::interrupt() {
  shutdown(socket_.get(), SHUT_RDWR);
}

TlsStream::Step TlsStream::handshake() {
  if (!ssl_) {
    refusal_ = "no memory for a TLS connection";
    return Step::kRefused;
  }
  ERR_clear_error();
  const int result = SSL_accept(ssl_.get());
  if (result == 1) {
    subject_ = subject_of(SSL_get0_peer_certificate(ssl_.get()));
    return Step::kDone;
  }
  const int error = SSL_get_error(ssl_.get(), result);
  if (error == SSL_ERROR_WANT_READ) return Step::kWantRead;
  if (error == SSL_ERROR_WANT_WRITE) return Step::kWantWrite;
  const std::string reason = openssl_errors();
  if (!refusal_.empty()) {
    refusal_ = "certificate refused: " + refusal_;
  } else if (reason.empty()) {
    refusal_ = "connection broken off in the TLS handshake";
  } else {
    refusal_ = "TLS handshake failed: " + reason;
  }
  shutdown(socket_.get(), SHUT_WR);
  return Step::kRefused;
}

TlsStream::End TlsStream::read(void* data, std::size_t length, Deadline deadline, int stop_fd) {
  auto* bytes = static_cast<unsigned char*>(data);
  std::size_t done = 0;
  while (done < length) {
    std::size_t got = 0;
    ERR_clear_error();
    const int result = SSL_read_ex(ssl_.get(), bytes + done, length - done, &got);
    if (result == 1) {
      done += got;
      // A peer that sends byte after byte never makes us wait, but must not go on for ever.
      if (done < length && deadline.passed()) return End::kTimeout;
      continue;
    }
    const int error = SSL_get_error(ssl_.get(), result);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
      const End end = wait(error, deadline, done == 0 ? stop_fd : -1);
      if (end != End::kDone) return end;
      continue;
    }
    if (error == SSL_ERROR_ZERO_RETURN && done == 0) return End::kClosed;
    // A peer that dies, or does not care to say good-bye, between two requests.
    const bool eof =
        error == SSL_ERROR_SYSCALL || ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING;
    ERR_clear_error();
    return eof && done == 0 ? End::kClosed : End::kFailed;
  }
  return End::kDone;
}

TlsStream::End TlsStream::write(const void* data, std::size_t length, Deadline deadline) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  std::size_t done = 0;
  while (done < length) {
    std::size_t put = 0;
    ERR_clear_error();
    const int result = SSL_write_ex(ssl_.get(), bytes + done, length - done, &put);
    if (result == 1) {
      done += put;
      if (done < length && deadline.passed()) return End::kTimeout;
      continue;
    }
    const int error = SSL_get_error(ssl_.get(), result);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
      ERR_clear_error();
      return End::kFailed;
    }
    const End end = wait(error, deadline, -1);
    if (end != End::kDone) return end;
  }
  return End::kDone;
}

void TlsStream::close_notify(Deadline deadline) {
  while (true) {
    ERR_clear_error();
    const int result = SSL_shutdown(ssl_.get());
    if (result >= 0) return;  // ours is sent; the peer's is not waited for
    const int error = SSL_get_error(ssl_.get(), result);
    if ((error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) || wait(error, deadline, -1) != End::kDone)
      return;
  }
}

}  // namespace pollux::control
