// A socket that another process fills with connections which never come to anything: a front end in earnest connects
// and is served all the same, and one that is served keeps its place.

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "initiator/hostile_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

// What each connection sends.
enum class Says { kNothing, kHalfAMessage, kMessages };

// Another process that opens as many connections as it can, and closes its oldest to open one more.
class Crowd {
 public:
  Crowd(const std::string& socket, Says says) {
    void* shared =
        ::mmap(nullptr, sizeof(std::atomic<unsigned>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    BOOST_REQUIRE(shared != MAP_FAILED);
    connected_ = new (shared) std::atomic<unsigned>(0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, socket.data(), socket.size());
    process_ = ::fork();
    BOOST_REQUIRE(process_ >= 0);
    if (process_ == 0) press(address, says);
  }
  ~Crowd() {
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    ::munmap(connected_, sizeof(*connected_));
  }
  Crowd(const Crowd&) = delete;
  Crowd& operator=(const Crowd&) = delete;

  // Connections so far.
  unsigned connected() const { return connected_->load(); }

 private:
  // Only system calls: the parent has threads.
  [[noreturn]] void press(const sockaddr_un& address, Says says) {
    constexpr unsigned kOpen = 64;
    int open[kOpen];
    std::fill_n(open, kOpen, -1);
    const VhostUserHeader get_features{static_cast<std::uint32_t>(VhostUserRequest::kGetFeatures), 1, 0};
    for (unsigned next = 0;; ++next) {
      int& fd = open[next % kOpen];
      if (fd >= 0) ::close(fd);
      fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) continue;
      if (says == Says::kHalfAMessage) static_cast<void>(::send(fd, &get_features, 6, MSG_NOSIGNAL));
      if (says == Says::kMessages) {
        for (unsigned i = 0; i < 4; ++i)
          static_cast<void>(::send(fd, &get_features, sizeof(get_features), MSG_NOSIGNAL));
      }
      connected_->fetch_add(1);
    }
  }

  std::atomic<unsigned>* connected_ = nullptr;
  pid_t process_ = -1;
};

class CrowdedSocket : public ServiceFixture {
 public:
  const std::string socket = blk("crowded", ram());
};

BOOST_FIXTURE_TEST_SUITE(crowded_socket, CrowdedSocket)

BOOST_AUTO_TEST_CASE(a_front_end_is_served_beside_a_process_that_takes_all_the_connections_it_can) {
  for (const Says says : {Says::kNothing, Says::kHalfAMessage, Says::kMessages}) {
    const Crowd crowd(socket, says);
    BOOST_REQUIRE(wait_until([&] { return crowd.connected() >= 200; }));
    for (unsigned i = 0; i < 10; ++i) {
      // The first time, as QEMU connects when its guest starts, which ends when that fails.
      FrontEnd front_end(options_for(socket));
      BOOST_REQUIRE_NO_THROW(front_end.start());
      IoSlot slot(front_end.ram(), 4096);
      const unsigned before = crowd.connected();
      BOOST_TEST(wait_until([&] { return crowd.connected() >= before + 100; }));
      BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kWrite, 0, 4096) == "");
      front_end.stop();
    }
  }
}

BOOST_AUTO_TEST_CASE(a_front_end_that_is_served_keeps_its_place_however_many_come) {
  FrontEnd front_end(options_for(socket));
  front_end.start();
  const Crowd crowd(socket, Says::kMessages);
  BOOST_REQUIRE(wait_until([&] { return crowd.connected() >= 1000; }));
  IoSlot slot(front_end.ram(), 4096);
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kWrite, 0, 4096) == "");
  front_end.stop();
  front_end.resume();
  BOOST_TEST(run_io(front_end, 1, BlkDisk(), slot, Op::kRead, 0, 4096) == "");
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(a_socket_takes_no_more_connections_than_it_has_places) {
  std::vector<std::unique_ptr<Wire>> wires;
  constexpr std::size_t kConnections = 200;
  while (wires.size() < kConnections) wires.push_back(Wire::connect(socket));
  const auto is_open = [](const auto& wire) {
    pollfd entry{wire->fd(), POLLRDHUP, 0};
    return ::poll(&entry, 1, 0) == 0;
  };
  BOOST_TEST(wait_until([&] { return std::ranges::count_if(wires, is_open) == 16; }));
  // Those that came first have left.
  BOOST_TEST(!is_open(wires.front()));
  BOOST_TEST(is_open(wires.back()));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
