#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "vhost/transport.h"

namespace pollux::vhost {
namespace {

using Clock = std::chrono::steady_clock;

class Nobody final : public Connection {
 public:
  Stage stage() const override { return Stage::kSilent; }
  bool dismiss() override { return true; }
  Verdict on_message(Message&) override { return Verdict::kDone; }
  void on_hangup() override {}
  void on_close() override {}
};

class Anybody final : public Acceptor {
 public:
  std::shared_ptr<Connection> on_connect() override {
    accepted = true;
    return std::make_shared<Nobody>();
  }
  std::atomic<bool> accepted{false};
};

struct Directory {
  Directory() {
    char name[] = "/tmp/pollux-transport-XXXXXX";
    BOOST_REQUIRE(::mkdtemp(name) != nullptr);
    path = name;
  }
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

void connect(const UniqueFd& socket, const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy(path.begin(), path.end(), address.sun_path);
  BOOST_REQUIRE(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
}

// No more descriptors for this process, whichever it gives back, until its end.
class NoDescriptors {
 public:
  NoDescriptors() {
    BOOST_REQUIRE(::getrlimit(RLIMIT_NOFILE, &limit_) == 0);
    const rlimit none{0, limit_.rlim_max};
    BOOST_REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  }
  ~NoDescriptors() { ::setrlimit(RLIMIT_NOFILE, &limit_); }

 private:
  rlimit limit_{};
};

BOOST_AUTO_TEST_CASE(sockets_are_closed_while_there_is_no_descriptor_for_a_front_end_that_waits) {
  BOOST_REQUIRE(log::init("off", "").has_value());
  const Directory directory;
  auto transport = make_socket_transport();
  BOOST_REQUIRE(transport.has_value());
  Anybody acceptor;
  const std::string busy = directory.path + "/busy";
  BOOST_REQUIRE((*transport)->open(busy, acceptor).has_value());
  std::vector<std::string> others;
  for (unsigned i = 0; i < 20; ++i) {
    others.push_back(directory.path + "/" + std::to_string(i));
    BOOST_REQUIRE((*transport)->open(others.back(), acceptor).has_value());
  }
  const UniqueFd waiting(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  std::chrono::duration<double> took{};
  {
    const NoDescriptors none;
    connect(waiting, busy);
    for (const auto& path : others) {
      const auto begun = Clock::now();
      (*transport)->close(path);
      took += Clock::now() - begun;
      // The transport tries again meanwhile, ten times a second.
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    BOOST_TEST(!acceptor.accepted);
  }
  BOOST_TEST_MESSAGE("closing " << others.size() << " sockets took " << took.count() << " s");
  BOOST_TEST(took.count() < 0.8);
  const auto deadline = Clock::now() + std::chrono::seconds(30);
  while (!acceptor.accepted && Clock::now() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  BOOST_TEST(acceptor.accepted);
}

}  // namespace
}  // namespace pollux::vhost
