#pragma once
// For tests: a client of the control port that can be as wrong as a test wants. It speaks TLS through OpenSSL alone, so
// that it shares no code with the server.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <thrift/protocol/TBinaryProtocol.h>
#include <thrift/transport/TBufferTransports.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "PolluxService.h"
#include "control/tls_context.h"

namespace pollux::control::test {

inline int connect_to(std::uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  // Longer than anything takes that these tests wait for; a failure, not a wait.
  const timeval limit{30, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    close(fd);
    throw std::runtime_error("cannot connect");
  }
  return fd;
}

struct TlsOptions {
  bool certificate = true;
  int version = TLS1_3_VERSION;
};

class Client {
 public:
  Client(std::uint16_t port, const TlsFiles& files, TlsOptions options = {})
      : context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free), ssl_(nullptr, SSL_free) {
    SSL_CTX_set_min_proto_version(context_.get(), options.version);
    SSL_CTX_set_max_proto_version(context_.get(), options.version);
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_NONE, nullptr);
    if (options.certificate) {
      SSL_CTX_use_certificate_chain_file(context_.get(), files.certificate.c_str());
      SSL_CTX_use_PrivateKey_file(context_.get(), files.key.c_str(), SSL_FILETYPE_PEM);
    }
    fd_ = connect_to(port);
    ssl_.reset(SSL_new(context_.get()));
    SSL_set_fd(ssl_.get(), fd_);
    ERR_clear_error();
    if (SSL_connect(ssl_.get()) != 1) error_ = last_error();
  }
  ~Client() {
    if (fd_ >= 0) close(fd_);
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // What OpenSSL says of the alert or failure that ended the connection; in TLS 1.3 it comes with the first read.
  const std::string& error() const { return error_; }
  bool connected() const { return error_.empty(); }

  bool send(const std::string& bytes) {
    ERR_clear_error();
    if (SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())) == static_cast<int>(bytes.size()))
      return true;
    error_ = last_error();
    return false;
  }
  // Up to `length` bytes, fewer at the end of the connection.
  std::string receive(std::size_t length) {
    std::string bytes;
    while (bytes.size() < length) {
      char buffer[4096];
      ERR_clear_error();
      const int got = SSL_read(ssl_.get(), buffer, static_cast<int>(std::min(sizeof(buffer), length - bytes.size())));
      if (got <= 0) {
        error_ = last_error();
        break;
      }
      bytes.append(buffer, static_cast<std::size_t>(got));
    }
    return bytes;
  }
  // A frame's content; empty when the connection ended.
  std::string receive_frame() {
    const std::string header = receive(4);
    if (header.size() < 4) return {};
    std::uint32_t length = 0;
    std::memcpy(&length, header.data(), 4);
    return receive(ntohl(length));
  }
  static std::string frame(const std::string& content) {
    const std::uint32_t length = htonl(static_cast<std::uint32_t>(content.size()));
    return std::string(reinterpret_cast<const char*>(&length), 4) + content;
  }

  // A call without arguments. "ok", "denied: ...", "error N: ...", "exception: ..." or "closed: ...".
  std::string call(const std::string& method) {
    using namespace apache::thrift;
    auto out = std::make_shared<transport::TMemoryBuffer>();
    protocol::TBinaryProtocol writer(out);
    writer.writeMessageBegin(method, protocol::T_CALL, 7);
    writer.writeFieldStop();
    writer.writeMessageEnd();
    if (!send(frame(out->getBufferAsString()))) return "closed: " + error_;
    return parse(receive_frame());
  }
  std::string parse(const std::string& answer) {
    using namespace apache::thrift;
    if (answer.empty()) return "closed: " + error_;
    std::string copy = answer;
    auto in = std::make_shared<transport::TMemoryBuffer>(reinterpret_cast<std::uint8_t*>(copy.data()),
                                                         static_cast<std::uint32_t>(copy.size()));
    protocol::TBinaryProtocol reader(in);
    std::string name;
    protocol::TMessageType type{};
    std::int32_t sequence = 0;
    reader.readMessageBegin(name, type, sequence);
    if (type == protocol::T_EXCEPTION) {
      TApplicationException exception;
      exception.read(&reader);
      return std::string("exception: ") + exception.what();
    }
    while (true) {
      protocol::TType field{};
      std::int16_t id = 0;
      reader.readFieldBegin(name, field, id);
      if (field == protocol::T_STOP) return "ok";
      if (id == 1 && field == protocol::T_STRUCT) {
        rpc::PolluxError error;
        error.read(&reader);
        return (error.code == rpc::ErrorCode::DENIED ? "denied: " : "error " + std::to_string(error.code) + ": ") +
               error.message;
      }
      reader.skip(field);
    }
  }

 private:
  static std::string last_error() {
    const auto text = openssl_errors();
    return text.empty() ? "connection closed" : text;
  }

  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_;
  int fd_ = -1;
  std::string error_;
};

}  // namespace pollux::control::test
