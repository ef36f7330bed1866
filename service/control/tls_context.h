#pragma once
// TlsContext: certificates and rules of the control port. TLS 1.3 alone; every client shows a certificate that the
// configured CA signed; no session is resumed, so that an expired certificate is seen at the next connection.
//
// TlsKeeper holds the one in use and exchanges it when the files changed; connections that are open keep theirs.

#include <openssl/ssl.h>

#include <memory>
#include <mutex>
#include <string>

#include "base/result.h"

namespace pollux::control {

struct TlsFiles {
  std::string ca;
  std::string certificate;
  std::string key;
};

class TlsContext {
 public:
  // kInvalid: a file that is missing, holds no PEM of its kind, does not belong to the others, or a key that others may
  // read; the message names it.
  static Result<std::shared_ptr<TlsContext>> load(const TlsFiles& files);

  SSL_CTX* get() const { return context_.get(); }

 private:
  TlsContext() = default;
  struct Free {
    void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  };
  std::unique_ptr<SSL_CTX, Free> context_;
};

class TlsKeeper {
 public:
  TlsKeeper(TlsFiles files, std::shared_ptr<TlsContext> first) : files_(std::move(files)), current_(std::move(first)) {}

  // Any thread.
  std::shared_ptr<TlsContext> current() const;
  // Any thread. On failure the old context stays in use.
  Status reload();

 private:
  const TlsFiles files_;
  mutable std::mutex mutex_;
  std::shared_ptr<TlsContext> current_;
};

// The oldest errors of this thread's OpenSSL queue as text, and the queue emptied.
std::string openssl_errors();

}  // namespace pollux::control
