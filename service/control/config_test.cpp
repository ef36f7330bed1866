#include "control/config.h"

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <set>
#include <sstream>


using namespace pollux;
using namespace pollux::control;

namespace {

std::string error_of(const std::string& text) {
  const auto config = parse_config(text, "polluxd.toml");
  BOOST_REQUIRE_MESSAGE(!config, "was accepted: " << text);
  BOOST_TEST(static_cast<int>(config.error().code) == static_cast<int>(ErrorCode::kInvalid));
  return config.error().message;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string shipped_file() {
  std::ifstream file(POLLUX_ETC_DIR "/polluxd.toml");
  BOOST_REQUIRE(file);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

BOOST_AUTO_TEST_CASE(an_empty_file_gives_the_defaults_with_a_host_name) {
  const auto config = parse_config("", "polluxd.toml");
  BOOST_REQUIRE(config);
  BOOST_TEST(!config->service.host_id.empty());
  BOOST_TEST(config->vhost.socket_dir == "/run/pollux/vhost");
  BOOST_TEST(config->control.listen == "127.0.0.1:9640");
}

BOOST_AUTO_TEST_CASE(the_shipped_file_names_every_key_with_its_default) {
  const std::string text = shipped_file();
  const auto shipped = parse_config(text, "polluxd.toml");
  BOOST_REQUIRE_MESSAGE(shipped, shipped.error().message);
  const auto defaults = parse_config("", "polluxd.toml");
  BOOST_REQUIRE(defaults);
  // Every key stands in its section of the file.
  std::set<std::string> named;
  std::string section;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("[")) section = line.substr(1, line.find(']') - 1);
    if (line.empty() || line[0] == '#' || line[0] == '[') continue;
    named.insert(section + "." + line.substr(0, line.find(' ')));
  }
  const auto keys = config_keys();
  BOOST_TEST(named == std::set<std::string>(keys.begin(), keys.end()), boost::test_tools::per_element());
  BOOST_TEST(shipped->service.host_id == defaults->service.host_id);
  BOOST_TEST(shipped->service.state_dir == defaults->service.state_dir);
  BOOST_TEST(shipped->service.runtime_dir == defaults->service.runtime_dir);
  BOOST_TEST(shipped->service.memory_dir == shipped->service.runtime_dir);
  BOOST_TEST(shipped->service.log_level == defaults->service.log_level);
  BOOST_TEST(shipped->service.log_file == defaults->service.log_file);
  BOOST_TEST(shipped->service.pid_file == defaults->service.pid_file);
  BOOST_TEST(shipped->service.stop_timeout_s == defaults->service.stop_timeout_s);
  BOOST_TEST(shipped->reactors.cores.empty());
  BOOST_TEST(shipped->reactors.count == defaults->reactors.count);
  BOOST_TEST(shipped->reactors.adaptive == defaults->reactors.adaptive);
  BOOST_TEST(shipped->reactors.idle_after_us == defaults->reactors.idle_after_us);
  BOOST_TEST(shipped->reactors.resume_latency_us == defaults->reactors.resume_latency_us);
  BOOST_TEST(shipped->memory.hugepages == defaults->memory.hugepages);
  BOOST_TEST(shipped->memory.size_mb == defaults->memory.size_mb);
  BOOST_TEST(shipped->control.listen == defaults->control.listen);
  BOOST_TEST(shipped->control.ca == defaults->control.ca);
  BOOST_TEST(shipped->control.certificate == defaults->control.certificate);
  BOOST_TEST(shipped->control.key == defaults->control.key);
  BOOST_TEST(shipped->control.default_deadline_ms == defaults->control.default_deadline_ms);
  BOOST_TEST(shipped->control.max_deadline_ms == defaults->control.max_deadline_ms);
  BOOST_TEST(shipped->control.max_frame_bytes == defaults->control.max_frame_bytes);
  BOOST_TEST(shipped->control.max_connections == defaults->control.max_connections);
  BOOST_TEST(shipped->control.max_handshakes == defaults->control.max_handshakes);
  BOOST_TEST(shipped->control.handshake_timeout_s == defaults->control.handshake_timeout_s);
  BOOST_TEST(shipped->control.io_timeout_s == defaults->control.io_timeout_s);
  BOOST_TEST(shipped->control.idle_timeout_s == defaults->control.idle_timeout_s);
  BOOST_TEST(shipped->vhost.socket_dir == defaults->vhost.socket_dir);
  BOOST_TEST(shipped->vhost.socket_group == defaults->vhost.socket_group);
  BOOST_TEST(shipped->vhost.default_queues == defaults->vhost.default_queues);
  BOOST_TEST(shipped->vhost.max_queues == defaults->vhost.max_queues);
  BOOST_TEST(shipped->vhost.guest_memory_gib == defaults->vhost.guest_memory_gib);
  BOOST_TEST(shipped->data.socket_group == defaults->data.socket_group);
  BOOST_TEST(shipped->data.max_sockets == defaults->data.max_sockets);
  BOOST_TEST(shipped->data.max_connections == defaults->data.max_connections);
  BOOST_TEST(shipped->data.abandoned_after_s == defaults->data.abandoned_after_s);
  BOOST_TEST(shipped->metrics.listen == defaults->metrics.listen);
}

BOOST_AUTO_TEST_CASE(an_unknown_key_is_refused_with_its_line_and_the_known_ones) {
  const auto error = error_of("[service]\nhost_id = \"a\"\nhost_ids = \"b\"\n");
  BOOST_TEST(contains(error, "polluxd.toml:3: unknown key 'host_ids' in [service]"), error);
  BOOST_TEST(contains(error, "host_id, state_dir"), error);
}

BOOST_AUTO_TEST_CASE(an_unknown_section_is_refused_with_its_line) {
  const auto error = error_of("\n\n[servce]\nhost_id = \"a\"\n");
  BOOST_TEST(contains(error, "polluxd.toml:3: unknown section 'servce'"), error);
  BOOST_TEST(contains(error, "service, reactors, memory, control, vhost, data, metrics"), error);
}

BOOST_AUTO_TEST_CASE(a_key_outside_a_section_is_refused) {
  BOOST_TEST(contains(error_of("host_id = \"a\"\n"), "polluxd.toml:1: unknown section 'host_id'"));
  BOOST_TEST(contains(error_of("service = 3\n"), "polluxd.toml:1: expected a section [service]"));
}

BOOST_AUTO_TEST_CASE(values_out_of_range_or_of_the_wrong_type_name_what_was_expected) {
  BOOST_TEST(contains(error_of("[reactors]\ncount = 0\n"),
                      "polluxd.toml:2: reactors.count: expected a whole number from 1 to 128"));
  BOOST_TEST(contains(error_of("[reactors]\ncount = \"2\"\n"), ":2: reactors.count: expected a whole number"));
  BOOST_TEST(contains(error_of("[reactors]\ncores = [1, 1]\n"), ":2: reactors.cores: expected a list of different"));
  BOOST_TEST(
      contains(error_of("[reactors]\nidle = \"lazy\"\n"), ":2: reactors.idle: expected \"adaptive\" or \"poll\""));
  BOOST_TEST(
      contains(error_of("[service]\nstate_dir = \"here\"\n"), ":2: service.state_dir: expected an absolute path"));
  BOOST_TEST(
      contains(error_of("[service]\nlog_level = \"loud\"\n"), ":2: service.log_level: expected one of \"trace\""));
  BOOST_TEST(contains(error_of("[control]\nlisten = \"9640\"\n"), ":2: control.listen: expected \"ADDRESS:PORT\""));
  BOOST_TEST(contains(error_of("[control]\nlisten = \"\"\n"), ":2: control.listen: expected"));
  BOOST_TEST(contains(error_of("[vhost]\nmax_queues = 1\ndefault_queues = 2\n"),
                      ":3: vhost.default_queues: expected at most vhost.max_queues (1)"));
  BOOST_TEST(contains(error_of("[vhost]\nsocket_dir = \"/" + std::string(60, 'x') + "\"\n"), ":2: vhost.socket_dir"));
  BOOST_TEST(
      contains(error_of("[service]\nruntime_dir = \"/" + std::string(60, 'x') + "\"\n"), ":2: service.runtime_dir"));
}

BOOST_AUTO_TEST_CASE(a_file_that_is_not_toml_is_refused_with_its_line) {
  BOOST_TEST(contains(error_of("[service]\nhost_id = \n"), "polluxd.toml:2: "));
  BOOST_TEST(contains(error_of("[service]\nhost_id = \"a\"\nhost_id = \"b\"\n"), "polluxd.toml:3: "));
}

BOOST_AUTO_TEST_CASE(every_problem_of_a_file_is_reported_at_once) {
  const auto error = error_of("[reactors]\ncount = 0\nidle = 1\n[metrics]\nport = 1\n");
  BOOST_TEST(contains(error, ":2: "));
  BOOST_TEST(contains(error, ":3: "));
  BOOST_TEST(contains(error, ":5: "));
}

BOOST_AUTO_TEST_CASE(a_file_that_is_not_there_is_not_found) {
  const auto config = load_config("/nonexistent/polluxd.toml");
  BOOST_REQUIRE(!config);
  BOOST_TEST(static_cast<int>(config.error().code) == static_cast<int>(ErrorCode::kNotFound));
  BOOST_TEST(contains(config.error().message, "/nonexistent/polluxd.toml"));
}

BOOST_AUTO_TEST_CASE(endpoints_parse_names_and_both_address_families) {
  const auto v4 = Endpoint::parse("127.0.0.1:9640");
  BOOST_REQUIRE(v4);
  BOOST_TEST(v4->host == "127.0.0.1");
  BOOST_TEST(v4->port == 9640);
  const auto v6 = Endpoint::parse("[::1]:1");
  BOOST_REQUIRE(v6);
  BOOST_TEST(v6->host == "::1");
  BOOST_TEST(v6->to_string() == "[::1]:1");
  for (const char* wrong : {"", ":1", "host", "host:", "host:70000", "host:-1", "::1:5", "[::1:5", "[]:5", "host:1x"}) {
    BOOST_TEST(!Endpoint::parse(wrong), wrong);
  }
}
