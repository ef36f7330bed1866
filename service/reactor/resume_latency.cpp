#include "reactor/resume_latency.h"

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <utility>

#include <unistd.h>

#include "base/log.h"

namespace pollux::reactor {

namespace {

constexpr const char* kNoLatency = "n/a";

std::string to_kernel(std::uint32_t limit_us) {
  return limit_us == 0 ? kNoLatency : std::to_string(limit_us);
}

// The bound in microseconds, the largest number for none; nothing when the text is no bound.
std::optional<std::uint32_t> from_kernel(const std::string& text) {
  if (text == kNoLatency) return 0;
  std::uint32_t value = 0;
  const char* end = text.data() + text.size();
  if (auto [stop, error] = std::from_chars(text.data(), end, value); error != std::errc() || stop != end) return {};
  return value == 0 ? std::numeric_limits<std::uint32_t>::max() : value;
}

std::optional<std::string> read_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  if (!(file >> word)) return {};
  return word;
}

bool write_word(const std::string& path, const std::string& word) {
  std::ofstream file(path);
  file << word << std::flush;
  return file.good();
}

}  // namespace

ResumeLatency::ResumeLatency(Options options) : options_(std::move(options)) {
  put_back(recorded());
  const auto planned = plan();
  // The record first: a bound that no record names would stay for ever after a kill.
  if (planned.empty() || !write_record(planned)) return;
  for (const auto& change : planned) {
    if (write_word(file_of(change.core), change.set)) {
      changes_.push_back(change);
    } else {
      log::warn("cannot write {}: {}; waking the reactor of core {} takes as long as the core's deepest sleep",
                file_of(change.core), std::strerror(errno), change.core);
    }
  }
  if (!changes_.empty()) log::info("{} cores take at most {} us back from sleep", changes_.size(), options_.limit_us);
}

ResumeLatency::~ResumeLatency() {
  put_back(changes_);
}

std::string ResumeLatency::file_of(unsigned core) const {
  return options_.root + "/cpu" + std::to_string(core) + "/power/pm_qos_resume_latency_us";
}

std::vector<ResumeLatency::Change> ResumeLatency::plan() const {
  std::vector<Change> planned;
  for (const unsigned core : options_.cores) {
    const auto before = read_word(file_of(core));
    const auto bound = before ? from_kernel(*before) : std::nullopt;
    if (!bound) {
      log::warn(
          "{} has no bound that could be set; waking the reactor of core {} takes as long as the core's deepest sleep",
          file_of(core), core);
    } else if (*bound > options_.limit_us) {
      planned.push_back({core, *before, to_kernel(options_.limit_us)});
    }
  }
  return planned;
}

// One that was cut short by a kill is of no harm: no bound is set before the record is whole.
std::vector<ResumeLatency::Change> ResumeLatency::recorded() const {
  std::vector<Change> changes;
  std::ifstream file(options_.record);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    Change change{};
    std::string more;
    if (words >> change.core >> change.before >> change.set && !(words >> more) && from_kernel(change.before) &&
        from_kernel(change.set)) {
      changes.push_back(std::move(change));
    } else {
      log::warn("{}: a line that says nothing: {}", options_.record, line);
    }
  }
  return changes;
}

bool ResumeLatency::write_record(const std::vector<Change>& changes) const {
  std::ofstream file(options_.record);
  for (const auto& change : changes) file << change.core << ' ' << change.before << ' ' << change.set << '\n';
  file << std::flush;
  if (!file.good()) {
    log::warn("cannot write {}: {}; the cores' sleep stays as it is", options_.record, std::strerror(errno));
  }
  return file.good();
}

void ResumeLatency::put_back(const std::vector<Change>& changes) const {
  for (const auto& change : changes) {
    if (read_word(file_of(change.core)) != change.set) continue;
    if (!write_word(file_of(change.core), change.before)) {
      log::warn("cannot write {}: {}; the core's sleep stays bounded by {} us", file_of(change.core),
                std::strerror(errno), change.set);
    }
  }
  if (unlink(options_.record.c_str()) != 0 && errno != ENOENT) {
    log::warn("cannot remove {}: {}", options_.record, std::strerror(errno));
  }
}

}  // namespace pollux::reactor
