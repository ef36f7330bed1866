#pragma once
// HttpServer: answers GET of one path with a text that is made at that moment, over plain HTTP/1.1, a connection a
// request.
//
// One thread serves all connections and waits for none of them. How many there are, for how long, and how much each may
// send is bounded; when there is no place for one more, the oldest that has said nothing goes (see who_leaves()), so
// connections that say nothing do not shut the page.

#include <poll.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/log_limiter.h"
#include "base/result.h"

namespace pollux::metrics {

class HttpServer {
 public:
  struct Options {
    std::string listen;  // "ADDRESS:PORT", "[ADDRESS]:PORT"
    std::string path;    // "/metrics"
    std::string content_type;
    std::chrono::milliseconds patience{5'000};  // for the request to come, and for the answer to be taken
  };
  // Called on the server's thread.
  using MakeText = std::function<std::string()>;

  // kBusy: the address is taken or not ours.
  static Result<std::unique_ptr<HttpServer>> start(Options options, MakeText make_text);
  // No MakeText is under way afterwards.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  std::uint16_t port() const;

 private:
  using Clock = std::chrono::steady_clock;
  class Socket {
   public:
    explicit Socket(int fd = -1) : fd_(fd) {}
    Socket(Socket&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
    Socket& operator=(Socket&& other) noexcept;
    ~Socket();
    int get() const { return fd_; }

   private:
    int fd_;
  };
  struct Client {
    Socket socket;
    std::string address;
    std::string request;
    std::string answer;  // empty: the request has not come yet
    std::size_t sent_bytes = 0;
    Clock::time_point until;
  };

  HttpServer(Options options, MakeText make_text) : options_(std::move(options)), make_text_(std::move(make_text)) {}
  Status bind();
  void loop();
  void take_clients();
  void make_room(const std::string& address);
  // False: the connection is over.
  bool go_on(Client& client);
  bool receive(Client& client);
  bool send(Client& client);
  std::string answer_to(const std::string& request);

  const Options options_;
  const MakeText make_text_;
  Socket listener_;
  Socket stop_event_;
  std::thread thread_;
  // The thread's alone.
  std::list<Client> clients_;
  Clock::time_point accept_after_{};
  LogLimiter accept_failures_;
};

}  // namespace pollux::metrics
