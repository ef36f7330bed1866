// The control port under friendly and hostile clients, over real TLS. Behind the gate stands Thrift's own null handler:
// what is tested here is who gets through to it.
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <csignal>
#include <fstream>
#include <map>
#include <mutex>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include "base/log.h"
#include "control/dispatch.h"
#include "control/rpc_server.h"
#include "control/test_certificates.h"
#include "control/test_client.h"

using namespace pollux;
using namespace pollux::control;
using test::Client;
using test::Holder;

namespace {

// Keeps the lines of the log that are warnings or worse.
class Lines : public spdlog::sinks::base_sink<std::mutex> {
 public:
  // Waits for the first line, if none is there, then answers all and forgets them.
  std::vector<std::string> take() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < deadline) {
      {
        const std::lock_guard lock(mutex_);
        if (!lines_.empty()) return std::exchange(lines_, {});
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return {};
  }
  std::size_t count() {
    const std::lock_guard lock(mutex_);
    return lines_.size();
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    if (message.level >= spdlog::level::warn) lines_.emplace_back(message.payload.begin(), message.payload.end());
  }
  void flush_() override {}

 private:
  std::vector<std::string> lines_;
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

struct Fixture {
  Fixture() : authority(folder, "good"), stranger(folder, "strange") {
    std::signal(SIGPIPE, SIG_IGN);
    lines = std::make_shared<Lines>();
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", lines));
    const auto files = authority.issue("server", {"server", {"server"}});
    auto context = TlsContext::load(files);
    BOOST_REQUIRE_MESSAGE(context, context.error().message);
    keeper = std::make_unique<TlsKeeper>(files, *context);
    server_files = files;
    start({});
  }

  void start(RpcServer::Options options) {
    server.reset();
    options.listen = {"127.0.0.1", 0};
    auto started = RpcServer::start(options, *keeper, access_log, [this](const Caller& caller) {
      return std::make_shared<GuardedProcessor>(std::make_shared<rpc::PolluxServiceNull>(), caller, access_log);
    });
    BOOST_REQUIRE_MESSAGE(started, started.error().message);
    server = std::move(*started);
  }

  std::unique_ptr<Client> client(const TlsFiles& files, test::TlsOptions options = {}) {
    return std::make_unique<Client>(server->port(), files, options);
  }
  std::unique_ptr<Client> client(const std::string& role) { return client(authority.issue(role, {"host-1", {role}})); }
  // The service still answers others.
  void still_serves() { BOOST_TEST(client("admin")->call("describe") == "ok"); }
  void refused_with_one_line(const std::string& name, const std::string& reason) {
    const auto taken = lines->take();
    BOOST_REQUIRE(taken.size() == 1U);
    BOOST_TEST(contains(taken[0], "refused 127.0.0.1:"), taken[0]);
    BOOST_TEST(contains(taken[0], "(CN " + name + ")"), taken[0]);
    BOOST_TEST(contains(taken[0], reason), taken[0]);
    still_serves();
    BOOST_TEST(lines->count() == 0U);
  }

  test::Folder folder;
  test::Authority authority;
  test::Authority stranger;
  std::shared_ptr<Lines> lines;
  TlsFiles server_files;
  AccessLog access_log;
  std::unique_ptr<TlsKeeper> keeper;
  std::unique_ptr<RpcServer> server;
};

// "method" -> roles in the comment that stands before it in the contract.
std::map<std::string, std::set<std::string>> contract() {
  std::ifstream file(POLLUX_THRIFT_FILE);
  BOOST_REQUIRE(file);
  std::map<std::string, std::set<std::string>> methods;
  std::set<std::string> roles;
  bool inside = false;
  const std::regex method(R"(^  [\w<>]+ (\w+)\(1: RequestContext ctx.*)");
  const std::regex tagged(R"(.*\*\s*\[([a-z, ]+)\].*)");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("service PolluxService")) inside = true;
    if (!inside) continue;
    std::smatch match;
    if (std::regex_match(line, match, tagged)) {
      std::string list = match[1];
      roles.clear();
      if (list == "all") list = "admin, cinder, compute, reader";
      std::istringstream parts(list);
      for (std::string role; std::getline(parts, role, ',');) roles.insert(role.substr(role.find_first_not_of(' ')));
    } else if (std::regex_match(line, match, method)) {
      methods[match[1]] = roles;
    }
  }
  return methods;
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_table_of_roles_says_what_the_contract_says_for_every_call) {
  const auto methods = contract();
  BOOST_TEST(methods.size() >= 30U);
  std::set<std::string> known;
  for (const auto method : known_methods()) known.insert(std::string(method));
  std::set<std::string> in_contract;
  for (const auto& [method, roles] : methods) {
    in_contract.insert(method);
    for (const std::string role : {"admin", "cinder", "compute", "reader"}) {
      BOOST_TEST(may_call(role_of(role), method) == roles.contains(role), method << " by " << role);
    }
    BOOST_TEST(!may_call(Role::kNone, method), method);
  }
  BOOST_TEST(known == in_contract, boost::test_tools::per_element());
}

BOOST_FIXTURE_TEST_CASE(every_call_is_let_through_or_denied_by_role_over_tls, Fixture) {
  for (const std::string role : {"admin", "cinder", "compute", "reader"}) {
    const auto connection = client(role);
    for (const auto& [method, roles] : contract()) {
      const auto answer = connection->call(method);
      if (roles.contains(role)) {
        BOOST_TEST(answer == "ok", method << " by " << role << ": " << answer);
        BOOST_TEST(lines->count() == 0U);
        continue;
      }
      BOOST_TEST(contains(answer, "denied: the role " + role + " may not call " + method), answer);
      const auto taken = lines->take();
      BOOST_REQUIRE(taken.size() == 1U);
      BOOST_TEST(contains(taken[0], "(CN host-1)"), taken[0]);
      BOOST_TEST(contains(taken[0], "may not call " + method), taken[0]);
    }
  }
}

BOOST_FIXTURE_TEST_CASE(a_client_without_certificate_is_refused, Fixture) {
  const auto connection = client({}, {.certificate = false});
  BOOST_TEST(contains(connection->call("describe"), "closed: "));
  BOOST_TEST(contains(connection->error(), "certificate required"), connection->error());
  refused_with_one_line("none", "peer did not return a certificate");
}

BOOST_FIXTURE_TEST_CASE(a_certificate_of_another_authority_is_refused, Fixture) {
  const auto connection = client(stranger.issue("admin", {"mallory", {"admin"}}));
  BOOST_TEST(contains(connection->call("describe"), "closed: "));
  BOOST_TEST(contains(connection->error(), "unknown ca"), connection->error());
  refused_with_one_line("mallory", "certificate refused: ");
}

BOOST_FIXTURE_TEST_CASE(an_expired_certificate_is_refused, Fixture) {
  const auto connection = client(authority.issue("old", {"host-2", {"admin"}, -7200, -3600}));
  BOOST_TEST(contains(connection->call("describe"), "closed: "));
  BOOST_TEST(contains(connection->error(), "certificate expired"), connection->error());
  refused_with_one_line("host-2", "certificate has expired");
}

BOOST_FIXTURE_TEST_CASE(a_certificate_that_is_not_valid_yet_is_refused, Fixture) {
  const auto connection = client(authority.issue("early", {"host-3", {"admin"}, 3600, 7200}));
  BOOST_TEST(contains(connection->call("describe"), "closed: "));
  refused_with_one_line("host-3", "certificate is not yet valid");
}

BOOST_FIXTURE_TEST_CASE(a_certificate_without_a_known_role_is_denied_once_and_closed, Fixture) {
  for (const auto& units : {std::vector<std::string>{"guest"}, {}, {"admin", "cinder"}, {"Admin"}, {"admin\n"}}) {
    const auto connection = client(authority.issue("odd", {"host-4", units}));
    const auto answer = connection->call("describe");
    BOOST_TEST(contains(answer, "denied: the certificate of host-4 gives it no role"), answer);
    BOOST_TEST(contains(connection->call("describe"), "closed: "));
    refused_with_one_line("host-4", "is no role");
  }
}

BOOST_FIXTURE_TEST_CASE(a_certificate_without_a_common_name_has_no_role, Fixture) {
  const auto connection = client(authority.issue("nameless", {"", {"admin"}}));
  BOOST_TEST(contains(connection->call("describe"), "denied: the certificate of this client gives it no role"));
  refused_with_one_line("none", "common name");
}

BOOST_FIXTURE_TEST_CASE(tls_1_2_is_refused, Fixture) {
  const auto connection = client(authority.issue("admin", {"host-1", {"admin"}}), {.version = TLS1_2_VERSION});
  BOOST_TEST(!connection->connected());
  BOOST_TEST(contains(connection->error(), "protocol version"), connection->error());
  refused_with_one_line("none", "unsupported protocol");
}

BOOST_FIXTURE_TEST_CASE(plain_tcp_is_refused, Fixture) {
  const int fd = test::connect_to(server->port());
  const std::string text = "GET / HTTP/1.0\r\n\r\n";
  BOOST_REQUIRE(write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  std::string answer(1024, '\0');
  const auto got = read(fd, answer.data(), answer.size());
  close(fd);
  BOOST_TEST(got >= 0);
  refused_with_one_line("none", "TLS handshake failed");
}

BOOST_FIXTURE_TEST_CASE(a_frame_larger_than_allowed_drops_the_connection_before_it_is_read, Fixture) {
  start({.max_frame_bytes = 4096});
  const auto connection = client("admin");
  BOOST_TEST(connection->send(std::string("\x00\x00\x10\x01", 4)));
  BOOST_TEST(connection->receive_frame() == "");
  refused_with_one_line("host-1", "a request of 4097 bytes; at most 4096 are allowed");
  const auto largest = client("admin");
  BOOST_TEST(largest->send(std::string("\xff\xff\xff\xff", 4)));
  BOOST_TEST(largest->receive_frame() == "");
  refused_with_one_line("host-1", "a request of 4294967295 bytes");
}

BOOST_FIXTURE_TEST_CASE(nested_structures_and_false_lengths_drop_the_connection, Fixture) {
  using namespace apache::thrift::protocol;
  const auto message = [](const std::function<void(TBinaryProtocol&)>& body) {
    auto out = std::make_shared<apache::thrift::transport::TMemoryBuffer>();
    TBinaryProtocol writer(out);
    writer.writeMessageBegin("describe", T_CALL, 1);
    body(writer);
    return Client::frame(out->getBufferAsString());
  };
  const auto nested = message([](TBinaryProtocol& out) {
    for (int depth = 0; depth < 5000; ++depth) out.writeFieldBegin("", T_STRUCT, 99);
  });
  const auto long_list = message([](TBinaryProtocol& out) {
    out.writeFieldBegin("", T_LIST, 99);
    out.writeListBegin(T_BYTE, 1U << 30);
  });
  const auto long_string = message([](TBinaryProtocol& out) {
    out.writeFieldBegin("", T_STRING, 99);
    out.writeI32(0x7fffffff);
  });
  const auto negative_string = message([](TBinaryProtocol& out) {
    out.writeFieldBegin("", T_STRING, 99);
    out.writeI32(-5);
  });
  const auto cut_off = message([](TBinaryProtocol& out) { out.writeByte(T_STRUCT); });
  const auto no_call = Client::frame(std::string(64, '\xee'));
  for (const auto& bytes : {nested, long_list, long_string, negative_string, cut_off, no_call}) {
    const auto connection = client("admin");
    BOOST_TEST(connection->send(bytes));
    BOOST_TEST(connection->receive_frame() == "");
    refused_with_one_line("host-1", "malformed request");
  }
}

BOOST_FIXTURE_TEST_CASE(a_call_that_the_contract_does_not_have_is_answered_as_such, Fixture) {
  const auto connection = client("reader");
  BOOST_TEST(contains(connection->call("format_everything"), "exception: Invalid method name"));
  BOOST_TEST(connection->call("describe") == "ok");
}

BOOST_FIXTURE_TEST_CASE(a_request_that_arrives_byte_by_byte_is_cut_off_at_the_time_out, Fixture) {
  start({.io_timeout_ms = 300});
  const auto connection = client("admin");
  const auto begin = std::chrono::steady_clock::now();
  std::string bytes = Client::frame(std::string(1024, 'x'));
  std::size_t sent = 0;
  // A byte every 20 ms would take 20 s; each byte alone is in time.
  while (sent < bytes.size() && connection->send(bytes.substr(sent, 1)) && lines->count() == 0) {
    ++sent;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  BOOST_TEST(sent < bytes.size());
  BOOST_TEST((std::chrono::steady_clock::now() - begin < std::chrono::seconds(10)));
  const auto taken = lines->take();
  BOOST_REQUIRE(taken.size() == 1U);
  BOOST_TEST(contains(taken[0], "did not arrive in time"), taken[0]);
}

BOOST_FIXTURE_TEST_CASE(a_client_that_says_nothing_is_dropped_in_the_handshake_and_does_not_hold_up_others, Fixture) {
  start({.handshake_timeout_ms = 500});
  const int silent = test::connect_to(server->port());
  still_serves();
  const auto taken = lines->take();
  BOOST_REQUIRE(taken.size() == 1U);
  BOOST_TEST(contains(taken[0], "the TLS handshake took too long"), taken[0]);
  close(silent);
}

BOOST_FIXTURE_TEST_CASE(clients_that_say_nothing_do_not_take_the_places_of_those_that_show_a_certificate, Fixture) {
  start({.max_connections = 4, .max_handshakes = 8, .handshake_timeout_ms = 600'000});
  const auto before = client("admin");
  BOOST_TEST(before->call("describe") == "ok");
  std::vector<int> silent;
  for (int i = 0; i < 60; ++i) {
    silent.push_back(test::connect_to(server->port()));
    // One that begins and does not go on is no better.
    if (i % 4 == 0) BOOST_TEST(write(silent.back(), "\x16\x03\x01", 3) == 3);
  }
  for (int i = 0; i < 10; ++i) BOOST_TEST(client("admin")->call("describe") == "ok");
  BOOST_TEST(before->call("describe") == "ok");
  for (const int fd : silent) close(fd);
}

BOOST_FIXTURE_TEST_CASE(a_name_that_has_all_connections_loses_the_one_that_was_idle_for_longest, Fixture) {
  start({.max_connections = 3});
  const auto reader = authority.issue("reader", {"host-2", {"reader"}});
  std::vector<std::unique_ptr<Client>> held;
  for (int i = 0; i < 3; ++i) {
    held.push_back(client(reader));
    BOOST_TEST(held.back()->call("describe") == "ok");
  }
  BOOST_TEST(held[0]->call("describe") == "ok");
  BOOST_TEST(client("admin")->call("describe") == "ok");
  BOOST_TEST(contains(held[1]->call("describe"), "closed: "));
  BOOST_TEST(held[0]->call("describe") == "ok");
  BOOST_TEST(held[2]->call("describe") == "ok");
}

BOOST_FIXTURE_TEST_CASE(connections_beyond_the_limit_are_refused_and_places_come_back, Fixture) {
  start({.max_connections = 2});
  auto first = client("admin");
  auto second = client("admin");
  BOOST_TEST(first->call("describe") == "ok");
  BOOST_TEST(second->call("describe") == "ok");
  const auto third = client("admin");
  BOOST_TEST(contains(third->call("describe"), "closed: "));
  BOOST_TEST(contains(lines->take().at(0), "there are 2 connections"));
  first.reset();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  std::string answer;
  while (answer != "ok" && std::chrono::steady_clock::now() < deadline) answer = client("admin")->call("describe");
  BOOST_TEST(answer == "ok");
}

BOOST_FIXTURE_TEST_CASE(an_idle_connection_is_closed_after_its_time_without_a_line, Fixture) {
  start({.idle_timeout_ms = 200});
  const auto connection = client("admin");
  BOOST_TEST(connection->call("describe") == "ok");
  BOOST_TEST(connection->receive(1) == "");
  BOOST_TEST(lines->count() == 0U);
}

BOOST_FIXTURE_TEST_CASE(stopping_closes_idle_connections_at_once, Fixture) {
  const auto connection = client("admin");
  BOOST_TEST(connection->call("describe") == "ok");
  const auto begin = std::chrono::steady_clock::now();
  server->stop();
  BOOST_TEST((std::chrono::steady_clock::now() - begin < std::chrono::seconds(5)));
  BOOST_TEST(connection->receive(1) == "");
  BOOST_CHECK_THROW(client("admin"), std::runtime_error);
}

BOOST_FIXTURE_TEST_CASE(certificates_are_read_again_on_request, Fixture) {
  const auto foreign = stranger.issue("admin", {"host-9", {"admin"}});
  BOOST_TEST(contains(client(foreign)->call("describe"), "closed: "));
  lines->take();
  // The service moves to the other authority.
  const auto moved = stranger.issue("server", {"server", {}});
  std::filesystem::copy_file(moved.ca, server_files.ca, std::filesystem::copy_options::overwrite_existing);
  std::filesystem::copy_file(moved.certificate, server_files.certificate,
                             std::filesystem::copy_options::overwrite_existing);
  std::filesystem::copy_file(moved.key, server_files.key, std::filesystem::copy_options::overwrite_existing);
  BOOST_TEST(contains(client(foreign)->call("describe"), "closed: "));
  lines->take();
  BOOST_REQUIRE(keeper->reload());
  BOOST_TEST(client(foreign)->call("describe") == "ok");
  // What cannot be read changes nothing.
  std::ofstream(server_files.certificate, std::ios::trunc) << "rubbish";
  BOOST_TEST(!keeper->reload());
  BOOST_TEST(client(foreign)->call("describe") == "ok");
}

BOOST_FIXTURE_TEST_CASE(files_that_do_not_fit_are_refused_by_name, Fixture) {
  const auto other = authority.issue("other", {"other", {}});
  const auto error_of = [](const TlsFiles& files) {
    const auto context = TlsContext::load(files);
    BOOST_REQUIRE(!context);
    return context.error().message;
  };
  BOOST_TEST(contains(error_of({"/nonexistent", other.certificate, other.key}), "/nonexistent"));
  BOOST_TEST(contains(error_of({other.ca, "/nonexistent", other.key}), "/nonexistent"));
  BOOST_TEST(contains(error_of({other.ca, other.certificate, server_files.key}), server_files.key));
  BOOST_TEST(contains(error_of({other.key, other.certificate, other.key}), "no CA certificate in " + other.key));
  std::filesystem::permissions(other.key, std::filesystem::perms::others_read, std::filesystem::perm_options::add);
  BOOST_TEST(contains(error_of(other), "can be read or written by everybody"));
}
