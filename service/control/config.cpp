#include "control/config.h"

#include <unistd.h>

#include <toml++/toml.h>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <sstream>
#include <utility>

namespace pollux::control {

namespace {

// A UNIX socket's path has at most 107 characters (unix(7)); "/scsi-<uuid>.sock" takes 47 of them.
constexpr std::size_t kMaxSocketDirLength = 60;
constexpr std::size_t kMaxHostIdLength = 255;
constexpr unsigned kMaxReactors = 128;

// Takes a value into the configuration; what was expected when it does not fit.
using Setter = std::function<std::optional<std::string>(const toml::node&, Config&)>;

struct Key {
  const char* section;
  const char* name;
  Setter set;
};

template <typename Section, typename Field>
Setter text(Section Config::*section, Field Section::*field) {
  return [=](const toml::node& node, Config& config) -> std::optional<std::string> {
    const auto* value = node.as_string();
    if (value == nullptr || value->get().find('\0') != std::string::npos) return "a text";
    config.*section.*field = value->get();
    return {};
  };
}

template <typename Section>
Setter path(Section Config::*section, std::string Section::*field, bool may_be_empty) {
  return [=](const toml::node& node, Config& config) -> std::optional<std::string> {
    const auto* value = node.as_string();
    const bool fits = value != nullptr && value->get().find('\0') == std::string::npos &&
                      (value->get().empty() ? may_be_empty : value->get().front() == '/');
    if (!fits) return may_be_empty ? "an absolute path, or an empty text" : "an absolute path";
    config.*section.*field = value->get();
    return {};
  };
}

template <typename Section, typename Number>
Setter number(Section Config::*section, Number Section::*field, std::int64_t least, std::int64_t most) {
  return [=](const toml::node& node, Config& config) -> std::optional<std::string> {
    const auto* value = node.as_integer();
    if (value == nullptr || value->get() < least || value->get() > most) {
      return "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
    }
    config.*section.*field = static_cast<Number>(value->get());
    return {};
  };
}

template <typename Section>
Setter one_of(Section Config::*section, std::string Section::*field, std::vector<std::string> choices) {
  return [=](const toml::node& node, Config& config) -> std::optional<std::string> {
    const auto* value = node.as_string();
    if (value == nullptr || std::find(choices.begin(), choices.end(), value->get()) == choices.end()) {
      std::string expected = "one of";
      for (const auto& choice : choices) expected += (choice == choices.front() ? " \"" : ", \"") + choice + "\"";
      return expected;
    }
    config.*section.*field = value->get();
    return {};
  };
}

template <typename Section>
Setter endpoint(Section Config::*section, std::string Section::*field, bool may_be_empty) {
  return [=](const toml::node& node, Config& config) -> std::optional<std::string> {
    const auto* value = node.as_string();
    const bool fits =
        value != nullptr && (value->get().empty() ? may_be_empty : Endpoint::parse(value->get()).has_value());
    if (!fits) return R"("ADDRESS:PORT", for example "127.0.0.1:9640" or "[::]:9640")";
    config.*section.*field = value->get();
    return {};
  };
}

std::optional<std::string> set_cores(const toml::node& node, Config& config) {
  const std::string expected =
      "a list of different core numbers from 0 to 1023, at most " + std::to_string(kMaxReactors);
  const auto* list = node.as_array();
  if (list == nullptr || list->size() > kMaxReactors) return expected;
  std::vector<unsigned> cores;
  for (const auto& entry : *list) {
    const auto* core = entry.as_integer();
    if (core == nullptr || core->get() < 0 || core->get() > 1023) return expected;
    const auto value = static_cast<unsigned>(core->get());
    if (std::find(cores.begin(), cores.end(), value) != cores.end()) return expected;
    cores.push_back(value);
  }
  config.reactors.cores = std::move(cores);
  return {};
}

std::optional<std::string> set_idle(const toml::node& node, Config& config) {
  const auto* value = node.as_string();
  if (value == nullptr || (value->get() != "adaptive" && value->get() != "poll")) return R"("adaptive" or "poll")";
  config.reactors.adaptive = value->get() == "adaptive";
  return {};
}

std::optional<std::string> set_host_id(const toml::node& node, Config& config) {
  const auto* value = node.as_string();
  const auto printable = [](char c) { return c > ' ' && c < 0x7f; };
  if (value == nullptr || value->get().size() > kMaxHostIdLength ||
      !std::all_of(value->get().begin(), value->get().end(), printable)) {
    return "a host name of at most 255 characters, or an empty text";
  }
  config.service.host_id = value->get();
  return {};
}

std::optional<std::string> set_socket_dir(const toml::node& node, Config& config) {
  const auto unfit = path(&Config::vhost, &Config::Vhost::socket_dir, true)(node, config);
  if (unfit || config.vhost.socket_dir.size() > kMaxSocketDirLength) {
    return "an absolute path of at most 60 characters, or an empty text";
  }
  return {};
}

const std::vector<Key>& schema() {
  using C = Config;
  static const std::vector<Key> keys = {
      {"service", "host_id", set_host_id},
      {"service", "state_dir", path(&C::service, &C::Service::state_dir, false)},
      {"service", "runtime_dir", path(&C::service, &C::Service::runtime_dir, false)},
      {"service", "memory_dir", path(&C::service, &C::Service::memory_dir, true)},
      {"service", "log_level",
       one_of(&C::service, &C::Service::log_level, {"trace", "debug", "info", "warn", "error", "off"})},
      {"service", "log_file", path(&C::service, &C::Service::log_file, true)},
      {"service", "pid_file", path(&C::service, &C::Service::pid_file, true)},
      {"service", "stop_timeout_s", number(&C::service, &C::Service::stop_timeout_s, 5, 3600)},
      {"reactors", "cores", set_cores},
      {"reactors", "count", number(&C::reactors, &C::Reactors::count, 1, kMaxReactors)},
      {"reactors", "idle", set_idle},
      {"reactors", "idle_after_us", number(&C::reactors, &C::Reactors::idle_after_us, 1, 10'000'000)},
      {"reactors", "resume_latency_us", number(&C::reactors, &C::Reactors::resume_latency_us, -1, 1'000'000)},
      {"memory", "hugepages", one_of(&C::memory, &C::Memory::hugepages, {"auto", "on", "off"})},
      {"memory", "size_mb", number(&C::memory, &C::Memory::size_mb, 16, 65536)},
      {"control", "listen", endpoint(&C::control, &C::Control::listen, false)},
      {"control", "ca", path(&C::control, &C::Control::ca, false)},
      {"control", "certificate", path(&C::control, &C::Control::certificate, false)},
      {"control", "key", path(&C::control, &C::Control::key, false)},
      {"control", "default_deadline_ms", number(&C::control, &C::Control::default_deadline_ms, 100, 3'600'000)},
      {"control", "max_deadline_ms", number(&C::control, &C::Control::max_deadline_ms, 100, 3'600'000)},
      {"control", "max_frame_bytes", number(&C::control, &C::Control::max_frame_bytes, 4096, 16 << 20)},
      {"control", "max_connections", number(&C::control, &C::Control::max_connections, 1, 4096)},
      {"control", "max_handshakes", number(&C::control, &C::Control::max_handshakes, 4, 4096)},
      {"control", "handshake_timeout_s", number(&C::control, &C::Control::handshake_timeout_s, 1, 300)},
      {"control", "io_timeout_s", number(&C::control, &C::Control::io_timeout_s, 1, 300)},
      {"control", "idle_timeout_s", number(&C::control, &C::Control::idle_timeout_s, 1, 86400)},
      {"vhost", "socket_dir", set_socket_dir},
      {"vhost", "socket_group", text(&C::vhost, &C::Vhost::socket_group)},
      {"vhost", "default_queues", number(&C::vhost, &C::Vhost::default_queues, 1, 64)},
      {"vhost", "max_queues", number(&C::vhost, &C::Vhost::max_queues, 1, 64)},
      {"vhost", "guest_memory_gib", number(&C::vhost, &C::Vhost::guest_memory_gib, 0, 49152)},
      {"data", "socket_group", text(&C::data, &C::Data::socket_group)},
      {"data", "max_sockets", number(&C::data, &C::Data::max_sockets, 1, 1024)},
      {"data", "max_connections", number(&C::data, &C::Data::max_connections, 1, 64)},
      {"data", "abandoned_after_s", number(&C::data, &C::Data::abandoned_after_s, 1, 86400)},
      {"metrics", "listen", endpoint(&C::metrics, &C::Metrics::listen, true)},
  };
  return keys;
}

bool known_section(std::string_view name) {
  return std::any_of(schema().begin(), schema().end(), [&](const Key& key) { return name == key.section; });
}

const Key* find_key(std::string_view section, std::string_view name) {
  for (const auto& key : schema()) {
    if (section == key.section && name == key.name) return &key;
  }
  return nullptr;
}

// A list of names for a message: "a, b, c".
template <typename Keep>
std::string names(Keep keep) {
  std::string list;
  for (const auto& key : schema()) {
    const std::string name = keep(key);
    if (name.empty() || (", " + list + ",").find(", " + name + ",") != std::string::npos) continue;
    list += (list.empty() ? "" : ", ") + name;
  }
  return list;
}

class Problems {
 public:
  explicit Problems(std::string path) : path_(std::move(path)) {}
  void add(const toml::source_region& where, const std::string& what) {
    text_ += (text_.empty() ? "" : "\n") + path_ + ":" + std::to_string(where.begin.line) + ": " + what;
  }
  bool none() const { return text_.empty(); }
  const std::string& text() const { return text_; }

 private:
  std::string path_;
  std::string text_;
};

void read_section(std::string_view section, const toml::table& table, Config& config, Problems& problems) {
  for (const auto& [name, node] : table) {
    const Key* key = find_key(section, name.str());
    if (key == nullptr) {
      problems.add(name.source(), "unknown key '" + std::string(name.str()) + "' in [" + std::string(section) +
                                      "]; expected one of " +
                                      names([&](const Key& k) { return section == k.section ? k.name : ""; }));
    } else if (const auto expected = key->set(node, config)) {
      problems.add(node.source(), std::string(section) + "." + key->name + ": expected " + *expected);
    }
  }
}

// What concerns two keys at once.
void check_whole(const toml::table& root, const Config& config, Problems& problems) {
  const auto line_of = [&](const char* section, const char* name) {
    return root[section][name].node() != nullptr ? root[section][name].node()->source() : root.source();
  };
  if (config.vhost.default_queues > config.vhost.max_queues) {
    problems.add(line_of("vhost", "default_queues"), "vhost.default_queues: expected at most vhost.max_queues (" +
                                                         std::to_string(config.vhost.max_queues) + ")");
  }
  if (config.control.default_deadline_ms > config.control.max_deadline_ms) {
    problems.add(line_of("control", "default_deadline_ms"),
                 "control.default_deadline_ms: expected at most control.max_deadline_ms (" +
                     std::to_string(config.control.max_deadline_ms) + ")");
  }
  if (config.vhost.socket_dir.empty() && config.service.runtime_dir.size() + 6 > kMaxSocketDirLength) {
    problems.add(
        line_of("service", "runtime_dir"),
        "service.runtime_dir: expected at most 54 characters, or a shorter vhost.socket_dir beside it, because "
        "the path of a UNIX socket has at most 107");
  }
}

Status fill_in(Config& config) {
  if (config.service.host_id.empty()) {
    char name[HOST_NAME_MAX + 1] = {};
    if (gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') {
      return fail(ErrorCode::kInvalid, "the machine has no host name: set service.host_id");
    }
    config.service.host_id = name;
  }
  if (config.service.memory_dir.empty()) config.service.memory_dir = config.service.runtime_dir;
  if (config.vhost.socket_dir.empty()) config.vhost.socket_dir = config.service.runtime_dir + "/vhost";
  return {};
}

}  // namespace

Result<Endpoint> Endpoint::parse(std::string_view text) {
  const auto wrong = [&] {
    return fail(ErrorCode::kInvalid, "'" + std::string(text) + "' is not of the form ADDRESS:PORT");
  };
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return wrong();
  std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  if (host.front() == '[') {
    if (host.size() < 3 || host.back() != ']') return wrong();
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return wrong();
  }
  Endpoint endpoint{std::string(host), 0};
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), endpoint.port);
  if (error != std::errc() || end != port.data() + port.size() || port.empty()) return wrong();
  return endpoint;
}

std::string Endpoint::to_string() const {
  return (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + std::to_string(port);
}

std::vector<std::string> config_keys() {
  std::vector<std::string> keys;
  for (const auto& key : schema()) keys.push_back(std::string(key.section) + "." + key.name);
  return keys;
}

Result<Config> parse_config(std::string_view text, const std::string& path) {
  toml::table root;
  try {
    root = toml::parse(text, path);
  } catch (const toml::parse_error& e) {
    Problems problems(path);
    problems.add(e.source(), std::string(e.description()));
    return fail(ErrorCode::kInvalid, problems.text());
  }
  Config config;
  Problems problems(path);
  for (const auto& [name, node] : root) {
    if (!known_section(name.str())) {
      problems.add(name.source(), "unknown section '" + std::string(name.str()) + "'; expected one of " +
                                      names([](const Key& key) { return key.section; }));
    } else if (const auto* table = node.as_table()) {
      read_section(name.str(), *table, config, problems);
    } else {
      problems.add(node.source(), "expected a section [" + std::string(name.str()) + "]");
    }
  }
  if (problems.none()) check_whole(root, config, problems);
  if (!problems.none()) return fail(ErrorCode::kInvalid, problems.text());
  POLLUX_TRY(fill_in(config));
  return config;
}

Result<Config> load_config(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    const int error = errno;
    return fail(error == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIoError,
                "cannot read the configuration " + path + ": " + std::strerror(error));
  }
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) return fail(ErrorCode::kIoError, "cannot read the configuration " + path);
  return parse_config(text.str(), path);
}

}  // namespace pollux::control
