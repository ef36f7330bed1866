#include "metrics/page.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <vector>

using namespace pollux;
using namespace pollux::metrics;

namespace {

int connect_to(std::uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  BOOST_REQUIRE(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  return fd;
}

std::string ask(std::uint16_t port, const std::string& request) {
  const int fd = connect_to(port);
  BOOST_REQUIRE(write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(fd, buffer, sizeof(buffer))) > 0;)
    answer.append(buffer, static_cast<std::size_t>(got));
  close(fd);
  return answer;
}

std::string get(std::uint16_t port, const std::string& path) {
  return ask(port, "GET " + path + " HTTP/1.0\r\n\r\n");
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_page_shows_what_is_gathered_at_that_moment) {
  double value = 1;
  auto page = Page::start("127.0.0.1:0", [&] {
    Family gauge{"pollux_free_bytes", "Free.", Kind::kGauge, {{{{"pool", "a"}}, value}}};
    Family counter{"pollux_ops_total", "Ops.", Kind::kCounter, {{{{"pool", "a"}}, 7}}};
    Family histogram{
        "pollux_read_seconds", "Reads.", Kind::kHistogram, {{{{"pool", "a"}}, 0, {{0.001, 2}, {0.002, 5}}, 6, 0.5}}};
    return std::vector<Family>{gauge, counter, histogram};
  });
  BOOST_REQUIRE_MESSAGE(page, page.error().message);
  const auto first = get((*page)->port(), "/metrics");
  BOOST_TEST(contains(first, "# TYPE pollux_free_bytes gauge"), first);
  BOOST_TEST(contains(first, "pollux_free_bytes{pool=\"a\"} 1\n"), first);
  BOOST_TEST(contains(first, "pollux_ops_total{pool=\"a\"} 7\n"), first);
  BOOST_TEST(contains(first, "pollux_read_seconds_bucket{pool=\"a\",le=\"0.002\"} 5\n"), first);
  BOOST_TEST(contains(first, "pollux_read_seconds_count{pool=\"a\"} 6\n"), first);
  value = 2;
  BOOST_TEST(contains(get((*page)->port(), "/metrics"), "pollux_free_bytes{pool=\"a\"} 2\n"));
}

BOOST_AUTO_TEST_CASE(clients_that_say_nothing_or_too_much_do_not_shut_the_page) {
  const auto page = Page::start("127.0.0.1:0", [] {
    return std::vector<Family>{{"pollux_free_bytes", "Free.", Kind::kGauge, {{{{"pool", "a"}}, 1}}}};
  });
  BOOST_REQUIRE(page);
  const auto port = (*page)->port();
  std::vector<int> silent;
  for (int i = 0; i < 200; ++i) silent.push_back(connect_to(port));
  const auto begin = std::chrono::steady_clock::now();
  BOOST_TEST(contains(get(port, "/metrics"), "pollux_free_bytes{pool=\"a\"} 1\n"));
  BOOST_TEST((std::chrono::steady_clock::now() - begin < std::chrono::seconds(3)));
  for (const int fd : silent) close(fd);
  BOOST_TEST(contains(ask(port, std::string(20'000, 'x')), "HTTP/1.1 431 "));
}

BOOST_AUTO_TEST_CASE(other_requests_are_told_what_is_wrong) {
  const auto page = Page::start("127.0.0.1:0", [] { return std::vector<Family>(); });
  BOOST_REQUIRE(page);
  const auto port = (*page)->port();
  BOOST_TEST(contains(get(port, "/"), "HTTP/1.1 404 "));
  BOOST_TEST(contains(ask(port, "POST /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 "));
  BOOST_TEST(contains(ask(port, "rubbish\r\n\r\n"), "HTTP/1.1 400 "));
  BOOST_TEST(contains(ask(port, "HEAD /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"), "HTTP/1.1 200 "));
}

BOOST_AUTO_TEST_CASE(an_address_that_is_taken_is_reported) {
  const auto nothing = [] { return std::vector<Family>(); };
  auto page = Page::start("127.0.0.1:0", nothing);
  BOOST_REQUIRE(page);
  const auto second = Page::start("127.0.0.1:" + std::to_string((*page)->port()), nothing);
  BOOST_REQUIRE(!second);
  BOOST_TEST(to_string(second.error().code) == "busy");
}
