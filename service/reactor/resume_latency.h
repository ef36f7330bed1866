#pragma once
// ResumeLatency: bounds how deep the kernel lets cores sleep, so that waking a reactor stays cheap.
//
// A core in a deep sleep state takes up to some hundred microseconds to come back. The bound is the kernel's PM QoS of
// each core (Documentation/ABI/testing/sysfs-devices-power, pm_qos_resume_latency_us), so other cores sleep as they
// did. It outlives the process: what the cores had before is written to a record first, from which the next process
// puts back what a killed process left behind. The record lies where nothing survives a start of the host, as the
// bounds themselves do not.

#include <cstdint>
#include <string>
#include <vector>

namespace pollux::reactor {

class ResumeLatency {
 public:
  struct Options {
    std::vector<unsigned> cores;
    // Microseconds. 0: the cores do not sleep; the kernel spins on them when they have nothing to do.
    std::uint32_t limit_us = 0;
    // A file in a folder that is there, of this process's alone.
    std::string record;
    // The kernel's folder of cores.
    std::string root = "/sys/devices/system/cpu";
  };

  // Puts back what a killed process left, then bounds the cores. One whose bound is as tight already stays as it is. A
  // bound is a matter of speed alone: what cannot be written is logged, and left out.
  explicit ResumeLatency(Options options);
  // Puts back what was changed, except for what another process has changed since.
  ~ResumeLatency();
  ResumeLatency(const ResumeLatency&) = delete;
  ResumeLatency& operator=(const ResumeLatency&) = delete;

 private:
  // Values as the kernel writes them: "0" no bound, "n/a" no latency at all, else microseconds.
  struct Change {
    unsigned core;
    std::string before;
    std::string set;
  };

  std::string file_of(unsigned core) const;
  std::vector<Change> plan() const;
  std::vector<Change> recorded() const;
  bool write_record(const std::vector<Change>& changes) const;
  void put_back(const std::vector<Change>& changes) const;

  Options options_;
  std::vector<Change> changes_;
};

}  // namespace pollux::reactor
