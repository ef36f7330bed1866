// What one guest, or its front end, does to the others on its reactor: nothing. For each thing that they share there is
// a guest that takes all it can get, or a descriptor that would block whoever touches it.

#include "initiator/neighbours.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <climits>
#include <cstdint>

#include "initiator/hanging_disk.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

FrontEndOptions options_for(const std::string& socket, std::uint16_t queues = 1) {
  FrontEndOptions options;
  options.socket_path = socket;
  options.queues = queues;
  options.ring.size = 64;
  return options;
}

BOOST_FIXTURE_TEST_SUITE(neighbours, Neighbours)

BOOST_AUTO_TEST_CASE(an_interrupt_that_cannot_be_delivered_holds_nobody_up) {
  FrontEnd bad(options_for(blk("bad", ram(), 1)));
  bad.start();
  const int call = ::eventfd(0, EFD_CLOEXEC);
  bad.request(Vu::kSetVringCall, std::uint64_t{0}, std::span(&call, 1));
  const std::uint64_t full = ULLONG_MAX - 1;
  std::uint64_t count = 0;
  const IoSlot slot(bad.ram(), 4096);
  const auto begin = [&] {
    // Whatever flags the service gave the file, its owner takes them away; a full counter then makes writers wait.
    BOOST_REQUIRE(::fcntl(call, F_SETFL, O_NONBLOCK) == 0);
    static_cast<void>(::read(call, &count, sizeof(count)));
    BOOST_REQUIRE(::write(call, &full, sizeof(full)) == sizeof(full));
    BOOST_REQUIRE(::fcntl(call, F_SETFL, 0) == 0);
    IoSlot io = slot;
    BOOST_REQUIRE(bad.ring(0).add(BlkDisk().build(bad.ram(), io, Op::kRead, 0, 4096, 0), 1));
    bad.ring(0).want_call();
    bad.ring(0).show();
    bad.kick(0);
  };
  const auto end = [&] {
    BOOST_REQUIRE(::read(call, &count, sizeof(count)) == sizeof(count));
    BOOST_TEST(wait_until([&] { return bad.ring(0).take().has_value(); }));
  };
  BOOST_TEST(part_kept(begin, end) >= kEnough);
  ::close(call);
}

BOOST_AUTO_TEST_CASE(descriptors_that_are_no_eventfds_end_the_connection) {
  const std::string socket = blk("bad", ram(), 1);
  int ends[2];
  BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const int sock = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int memory = ::memfd_create("call", MFD_CLOEXEC);
  const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
  for (const Vu request : {Vu::kSetVringKick, Vu::kSetVringCall, Vu::kSetVringErr}) {
    for (const int fd : {ends[0], ends[1], sock, memory, epoll}) {
      FrontEnd bad(options_for(socket));
      bad.start();
      const std::uint64_t index = 0;
      bad.wire().send(static_cast<std::uint32_t>(request), Wire::bytes_of(index), std::span(&fd, 1));
      BOOST_TEST(bad.wire().closed_by_peer());
    }
  }
  for (const int fd : {ends[0], ends[1], sock, memory, epoll}) ::close(fd);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
