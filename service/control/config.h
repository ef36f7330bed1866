#pragma once
// Configuration of polluxd: what etc/polluxd.toml may say, with its defaults.
//
// Loading refuses unknown sections and keys, wrong types and values out of range, each with file, line and what was
// expected, and reports all of them at once. etc/polluxd.toml documents the keys.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace pollux::control {

// "127.0.0.1:9640", "[::1]:9640" or "name:9640".
struct Endpoint {
  std::string host;
  std::uint16_t port = 0;

  // Nothing when the text is not of that form. Port 0 lets the kernel choose.
  static Result<Endpoint> parse(std::string_view text);
  std::string to_string() const;
};

struct Config {
  struct Service {
    std::string host_id;
    std::string state_dir = "/var/lib/pollux";
    std::string runtime_dir = "/run/pollux";
    std::string memory_dir;
    std::string log_level = "info";
    std::string log_file;
    std::string pid_file;
    std::uint32_t stop_timeout_s = 90;
  } service;

  struct Reactors {
    std::vector<unsigned> cores;
    unsigned count = 1;
    bool adaptive = true;
    std::uint32_t idle_after_us = 100;
    std::int32_t resume_latency_us = 20;  // -1: the cores' sleep is left as it is
  } reactors;

  struct Memory {
    std::string hugepages = "auto";  // auto, on, off
    std::uint32_t size_mb = 64;
  } memory;

  struct Control {
    std::string listen = "127.0.0.1:9640";
    std::string ca = "/etc/pollux/certs/ca.pem";
    std::string certificate = "/etc/pollux/certs/server.pem";
    std::string key = "/etc/pollux/certs/server-key.pem";
    std::uint32_t default_deadline_ms = 30'000;
    std::uint32_t max_deadline_ms = 600'000;
    std::uint32_t max_frame_bytes = 1 << 20;
    std::uint32_t max_connections = 256;
    std::uint32_t max_handshakes = 64;
    std::uint32_t handshake_timeout_s = 5;
    std::uint32_t io_timeout_s = 10;
    std::uint32_t idle_timeout_s = 600;
  } control;

  struct Vhost {
    std::string socket_dir;
    std::string socket_group;
    std::uint32_t default_queues = 2;
    std::uint32_t max_queues = 16;
    std::uint32_t guest_memory_gib = 0;
  } vhost;

  struct Data {
    std::string socket_group;
    std::uint32_t max_sockets = 64;
    std::uint32_t max_connections = 8;
    std::uint32_t abandoned_after_s = 60;
  } data;

  struct Metrics {
    std::string listen = "127.0.0.1:9641";
  } metrics;
};

// kInvalid: what is wrong, a line "FILE:LINE: ..." each. kNotFound, kIoError: the file cannot be read. What the file
// leaves empty (host_id, socket_dir) is filled in.
Result<Config> load_config(const std::string& path);
// The same from text; `path` is what messages call it.
Result<Config> parse_config(std::string_view text, const std::string& path);

// "section.key" of every key, in order of the file.
std::vector<std::string> config_keys();

}  // namespace pollux::control
