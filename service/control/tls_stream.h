#pragma once
// TlsStream: one accepted connection of the control port. The handshake never waits, so that one thread can have many
// of them under way; everything after it has a deadline.
//
// Thrift's own TSSLSocket is not used: its time-outs start again with each byte, so a slow client keeps a thread for
// ever; it knows TLS up to "1.2 or later"; and it neither tells why a handshake failed nor shows the peer's
// certificate.
//
// One thread at a time.

#include <openssl/ssl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "control/deadline.h"
#include "control/tls_context.h"

namespace pollux::control {

class TlsStream {
 public:
  // What a certificate says about its holder. Empty: not there, more than one, or not plain printable text.
  struct Subject {
    std::string common_name;
    std::string organisational_unit;
  };

  enum class End : std::uint8_t {
    kDone,
    kClosed,   // the peer ended the connection before the first byte
    kStopped,  // stop_fd became readable before the first byte
    kTimeout,
    kFailed,  // broken off, or not TLS any more
  };

  TlsStream(UniqueFd socket, std::shared_ptr<TlsContext> context);
  ~TlsStream();
  TlsStream(const TlsStream&) = delete;
  TlsStream& operator=(const TlsStream&) = delete;

  enum class Step : std::uint8_t {
    kDone,
    kWantRead,   // go on when the socket is readable
    kWantWrite,  // go on when the socket is writable
    kRefused,    // the peer's certificate is missing, expired or not from our CA, this is not TLS 1.3, or it is over
  };
  // Goes on with the handshake as far as that is possible without waiting.
  Step handshake();
  // After kRefused: why. The peer was sent the alert that says so.
  const std::string& refusal() const { return refusal_; }
  // After kRefused, whenever the socket is readable: reads away what the peer still sends, for closing a socket with
  // unread bytes makes the kernel send a reset, and a reset discards the alert at the peer. True: it can be closed.
  bool linger();
  // After a handshake the peer's; after a refused one what its certificate claimed.
  const Subject& subject() const { return subject_; }
  // For poll().
  int fd() const { return socket_.get(); }
  // Any thread: ends the connection for the thread that reads it.
  void interrupt();

  // Fills the buffer. stop_fd >= 0: give up when it becomes readable while nothing has arrived.
  End read(void* data, std::size_t length, Deadline deadline, int stop_fd = -1);
  End write(const void* data, std::size_t length, Deadline deadline);
  // Tells the peer that no more comes.
  void close_notify(Deadline deadline);

  // SSL_CTX_set_verify's: keeps the subject and the reason of a refusal.
  static int verify_callback(int ok, X509_STORE_CTX* store);

 private:
  // Waits until the socket can go on as OpenSSL asks for.
  End wait(int ssl_error, Deadline deadline, int stop_fd);

  UniqueFd socket_;
  std::shared_ptr<TlsContext> context_;
  struct Free {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };
  std::unique_ptr<SSL, Free> ssl_;
  Subject subject_;
  std::string refusal_;
  std::size_t lingered_bytes_ = 0;
};

}  // namespace pollux::control
