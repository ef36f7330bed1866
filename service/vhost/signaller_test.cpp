#include "vhost/signaller.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <climits>
#include <thread>

namespace pollux::vhost {
namespace {

std::unique_ptr<Signaller> make() {
  auto made = Signaller::make();
  BOOST_REQUIRE(made.has_value());
  return std::move(*made);
}

std::uint64_t take(const UniqueFd& event) {
  std::uint64_t count = 0;
  return ::read(event.get(), &count, sizeof(count)) == sizeof(count) ? count : 0;
}

BOOST_AUTO_TEST_CASE(every_signal_counts_one) {
  const auto signaller = make();
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  // More than an AIO context holds events for, so that they must be taken out of it.
  constexpr unsigned kSignals = 10'000;
  for (unsigned i = 0; i < kSignals; ++i) BOOST_REQUIRE(signaller->raise(event.get()) == Signaller::Outcome::kRaised);
  BOOST_TEST(take(event) == kSignals);
}

BOOST_AUTO_TEST_CASE(a_full_counter_that_blocks_writers_does_not_hold_it_up) {
  const auto signaller = make();
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  const std::uint64_t full = ULLONG_MAX - 1;
  BOOST_REQUIRE(::write(event.get(), &full, sizeof(full)) == sizeof(full));
  for (unsigned i = 0; i < 3; ++i) BOOST_TEST((signaller->raise(event.get()) == Signaller::Outcome::kRaised));
  BOOST_TEST(take(event) >= full);
  BOOST_TEST((signaller->raise(event.get()) == Signaller::Outcome::kRaised));
  BOOST_TEST(take(event) == 1u);
}

BOOST_AUTO_TEST_CASE(it_wakes_who_sleeps_on_the_eventfd) {
  const auto signaller = make();
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  std::uint64_t count = 0;
  std::thread sleeper([&] { count = take(event); });
  BOOST_TEST((signaller->raise(event.get()) == Signaller::Outcome::kRaised));
  sleeper.join();
  BOOST_TEST(count == 1u);
}

BOOST_AUTO_TEST_CASE(what_is_no_eventfd_is_told_apart) {
  const auto signaller = make();
  int ends[2];
  BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  // The name that an eventfd's link in /proc has is no name that a file can have.
  const UniqueFd memory(::memfd_create("anon_inode:[eventfd]", MFD_CLOEXEC));
  for (const UniqueFd* other : {&reader, &writer, &socket, &epoll, &memory}) {
    BOOST_REQUIRE(*other);
    BOOST_TEST(!is_eventfd(other->get()));
    BOOST_TEST((signaller->raise(other->get()) == Signaller::Outcome::kUnusable));
  }
  BOOST_TEST(!is_eventfd(-1));
  BOOST_TEST((signaller->raise(-1) == Signaller::Outcome::kUnusable));
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  BOOST_TEST(is_eventfd(event.get()));
  BOOST_TEST((signaller->raise(event.get()) == Signaller::Outcome::kRaised));
}

BOOST_AUTO_TEST_CASE(a_unix_socket_is_signalled_and_never_waited_for) {
  const auto signaller = make();
  for (const int type : {SOCK_STREAM, SOCK_DGRAM}) {
    int ends[2];
    BOOST_REQUIRE(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends) == 0);
    UniqueFd reader(ends[0]);
    auto made = SignalFd::make(UniqueFd(ends[1]));
    BOOST_REQUIRE(made.has_value());
    BOOST_TEST((signaller->raise(*made) == Signaller::Outcome::kRaised));
    BOOST_TEST(take(reader) == 1u);
    // Far more than it holds.
    for (int i = 0; i < 100'000; ++i) BOOST_REQUIRE((signaller->raise(*made) == Signaller::Outcome::kRaised));
    BOOST_TEST(take(reader) == 1u);
    reader.reset();
    BOOST_TEST((signaller->raise(*made) == Signaller::Outcome::kUnusable));
  }
}

BOOST_AUTO_TEST_CASE(descriptors_of_other_kinds_are_not_signalled) {
  int ends[2];
  BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  for (const int fd : {ends[0], ends[1], ::epoll_create1(EPOLL_CLOEXEC), ::memfd_create("call", MFD_CLOEXEC),
                       ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)}) {
    BOOST_TEST(!SignalFd::make(UniqueFd(fd)).has_value());
  }
}

}  // namespace
}  // namespace pollux::vhost
