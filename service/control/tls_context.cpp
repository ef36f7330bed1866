#include "control/tls_context.h"

#include <openssl/err.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "control/tls_stream.h"

namespace pollux::control {

namespace {

// A client's chain: its certificate and up to this many intermediates.
constexpr int kMaxChainDepth = 4;

Status check_readable(const std::string& path, const char* what) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) {
    return fail(ErrorCode::kInvalid, std::string("cannot read the ") + what + " " + path + ": " + std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) {
    return fail(ErrorCode::kInvalid, std::string("the ") + what + " " + path + " is not a regular file");
  }
  return {};
}

Status check_private(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && (info.st_mode & (S_IROTH | S_IWOTH)) != 0) {
    return fail(ErrorCode::kInvalid, "the key " + path + " can be read or written by everybody: chmod o= it");
  }
  return {};
}

// A key with a passphrase would make OpenSSL ask on the terminal.
int no_passphrase(char*, int, int, void*) {
  return -1;
}

}  // namespace

std::string openssl_errors() {
  std::string text;
  unsigned long code = 0;
  const char* data = nullptr;
  int flags = 0;
  while ((code = ERR_get_error_all(nullptr, nullptr, nullptr, &data, &flags)) != 0) {
    if (text.size() > 300) continue;
    const char* reason = ERR_reason_error_string(code);
    text += (text.empty() ? "" : "; ") + std::string(reason != nullptr ? reason : "unknown error");
    if ((flags & ERR_TXT_STRING) != 0 && data != nullptr && *data != '\0') text += std::string(" (") + data + ")";
  }
  return text;
}

Result<std::shared_ptr<TlsContext>> TlsContext::load(const TlsFiles& files) {
  POLLUX_TRY(check_readable(files.ca, "CA certificate"));
  POLLUX_TRY(check_readable(files.certificate, "certificate"));
  POLLUX_TRY(check_readable(files.key, "key"));
  POLLUX_TRY(check_private(files.key));
  ERR_clear_error();
  std::shared_ptr<TlsContext> result(new TlsContext);
  result->context_.reset(SSL_CTX_new(TLS_server_method()));
  SSL_CTX* context = result->context_.get();
  if (context == nullptr || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) != 1) {
    return fail(ErrorCode::kInternal, "OpenSSL cannot do TLS 1.3: " + openssl_errors());
  }
  const auto refuse = [](const std::string& what) { return fail(ErrorCode::kInvalid, what + ": " + openssl_errors()); };
  SSL_CTX_set_default_passwd_cb(context, no_passphrase);
  if (SSL_CTX_load_verify_file(context, files.ca.c_str()) != 1) return refuse("no CA certificate in " + files.ca);
  if (SSL_CTX_use_certificate_chain_file(context, files.certificate.c_str()) != 1) {
    return refuse("no certificate in " + files.certificate);
  }
  if (SSL_CTX_use_PrivateKey_file(context, files.key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return refuse("no key that fits " + files.certificate + " in " + files.key);
  }
  if (SSL_CTX_check_private_key(context) != 1) return refuse(files.key + " does not belong to " + files.certificate);
  STACK_OF(X509_NAME)* names = SSL_load_client_CA_file(files.ca.c_str());
  if (names == nullptr) return refuse("no CA certificate in " + files.ca);
  SSL_CTX_set_client_CA_list(context, names);  // takes the list over

  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, TlsStream::verify_callback);
  SSL_CTX_set_verify_depth(context, kMaxChainDepth);
  // No resumption, no tickets, no early data: each connection is judged by itself.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  return result;
}

std::shared_ptr<TlsContext> TlsKeeper::current() const {
  const std::lock_guard lock(mutex_);
  return current_;
}

Status TlsKeeper::reload() {
  auto loaded = TlsContext::load(files_);
  if (!loaded) return fail(std::move(loaded.error()));
  const std::lock_guard lock(mutex_);
  current_ = std::move(*loaded);
  return {};
}

}  // namespace pollux::control
