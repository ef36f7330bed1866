// pollux-bench: the load generator of tests/perf. It keeps connections to any number of guests' sockets and obeys lines
// on standard input, so that who measures can take turns between targets without connecting anew.
//
//   connect NAME scsi|blk SOCKET [target=N] [queues=N] [depth=N] [io=BYTES] [ring=N] [packed=1] [indirect=1] [event=1]
//   run NAME[,NAME...] [seconds=S] [depth=N] [reads=PERCENT] [io=BYTES] [sequential=1] [once=1] [requests=N] [gap=US]
//                      [length=BYTES] [seed=N] [flush=N] [skip=N] [yield=1]
//   size NAME
//   disconnect NAME
//
// Each line is answered by one of JSON; {"error": TEXT} when it went wrong. Ends with its input.

#include <cstdio>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>

#include "initiator/bench.h"

namespace {

using namespace pollux::initiator;

// The words "key=value" of a line; every one has to be asked for.
class Words {
 public:
  explicit Words(std::istringstream& line) {
    for (std::string word; line >> word;) {
      const auto equals = word.find('=');
      if (equals == std::string::npos) throw std::runtime_error("not key=value: " + word);
      values_[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  template <typename T>
  void take(const std::string& key, T& value) {
    const auto found = values_.find(key);
    if (found == values_.end()) return;
    std::istringstream text(found->second);
    if (!(text >> value) || text.peek() != EOF) throw std::runtime_error("not a number: " + key + "=" + found->second);
    values_.erase(found);
  }
  void end() const {
    if (!values_.empty()) throw std::runtime_error("unknown option " + values_.begin()->first);
  }

 private:
  std::map<std::string, std::string> values_;
};

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return out + "\"";
}

class Bench {
 public:
  std::string obey(const std::string& text) {
    std::istringstream line(text);
    std::string verb;
    line >> verb;
    if (verb == "connect") return connect(line);
    if (verb == "run") return run(line);
    if (verb == "size") return size(line);
    if (verb == "disconnect") return disconnect(line);
    throw std::runtime_error("unknown verb " + verb);
  }

 private:
  std::string connect(std::istringstream& line) {
    std::string name, kind;
    BenchGuestOptions options;
    line >> name >> kind >> options.socket_path;
    if (kind != "scsi" && kind != "blk") throw std::runtime_error("a guest is scsi or blk, not " + kind);
    options.scsi = kind == "scsi";
    Words words(line);
    words.take("target", options.target);
    words.take("queues", options.queues);
    words.take("depth", options.depth);
    words.take("io", options.io_bytes);
    words.take("ring", options.ring.size);
    words.take("packed", options.ring.packed);
    words.take("indirect", options.ring.indirect);
    words.take("event", options.ring.event_idx);
    words.end();
    auto guest = std::make_unique<BenchGuest>(options);
    const std::uint64_t size_bytes = guest->size_bytes();
    guests_[name] = std::move(guest);
    return "{\"size_bytes\": " + std::to_string(size_bytes) + "}";
  }

  std::string size(std::istringstream& line) {
    std::string name;
    line >> name;
    const auto found = guests_.find(name);
    if (found == guests_.end()) throw std::runtime_error("no guest " + name);
    return "{\"size_bytes\": " + std::to_string(found->second->size_bytes()) + "}";
  }

  std::string disconnect(std::istringstream& line) {
    std::string name;
    line >> name;
    if (guests_.erase(name) == 0) throw std::runtime_error("no guest " + name);
    return "{}";
  }

  std::string run(std::istringstream& line) {
    std::string names;
    line >> names;
    std::vector<BenchGuest*> guests;
    std::istringstream list(names);
    for (std::string name; std::getline(list, name, ',');) {
      const auto found = guests_.find(name);
      if (found == guests_.end()) throw std::runtime_error("no guest " + name);
      guests.push_back(found->second.get());
    }
    BenchOptions options;
    Words words(line);
    words.take("seconds", options.seconds);
    words.take("depth", options.depth);
    words.take("reads", options.read_percent);
    words.take("io", options.io_bytes);
    words.take("sequential", options.sequential);
    words.take("once", options.once);
    words.take("requests", options.requests);
    words.take("gap", options.gap_us);
    words.take("length", options.length_bytes);
    words.take("seed", options.seed);
    words.take("flush", options.flush_every);
    words.take("skip", options.skip);
    words.take("yield", options.yield);
    words.end();
    if (guests.empty() || options.depth == 0 || options.io_bytes == 0) throw std::runtime_error("nothing to do");
    return to_json(run_bench(guests, options));
  }

  static std::string to_json(const BenchResult& result) {
    const double us = 1 / (result.cycles_per_ns * 1000);
    std::ostringstream out;
    out << "{\"requests\": " << result.requests << ", \"errors\": " << result.errors
        << ", \"flushes\": " << result.flushes << ", \"worst_share\": " << result.worst_share
        << ", \"first_error\": " << quoted(result.first_error) << ", \"seconds\": " << result.seconds
        << ", \"tsc_cycles\": " << result.tsc_cycles << ", \"tsc_hz\": " << result.cycles_per_ns * 1e9
        << ", \"iops\": " << static_cast<double>(result.requests) / result.seconds
        << ", \"mean_us\": " << result.latency.mean() * us << ", \"p50_us\": " << result.latency.at(0.5) * us
        << ", \"p99_us\": " << result.latency.at(0.99) * us << ", \"p999_us\": " << result.latency.at(0.999) * us
        << ", \"max_us\": " << static_cast<double>(result.latency.max()) * us
        << ", \"flush_p50_us\": " << result.flush_latency.at(0.5) * us
        << ", \"flush_p99_us\": " << result.flush_latency.at(0.99) * us << "}";
    return out.str();
  }

  std::map<std::string, std::unique_ptr<BenchGuest>> guests_;
};

}  // namespace

int main() {
  Bench bench;
  for (std::string line; std::getline(std::cin, line);) {
    std::string answer;
    try {
      answer = bench.obey(line);
    } catch (const std::exception& error) {
      answer = "{\"error\": " + quoted(error.what()) + "}";
    }
    std::cout << answer << std::endl;
  }
  return 0;
}
