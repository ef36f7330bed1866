#pragma once
// AccessLog: one line in the log for each refusal, of any client, and no more than a bounded number of them: a
// peer that keeps knocking cannot fill the disk. What was left out is counted, and told with the next line.

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace pollux::control {

class AccessLog {
 public:
  // Any thread. `peer`: address and port; `name`: CN of the certificate, empty when there is none.
  void refused(const std::string& peer, const std::string& name, const std::string& reason);

 private:
  static constexpr unsigned kLinesPerWindow = 100;
  static constexpr std::chrono::seconds kWindow{10};

  std::mutex mutex_;
  std::chrono::steady_clock::time_point window_start_{};
  unsigned lines_ = 0;
  std::uint64_t left_out_ = 0;
};

}  // namespace pollux::control
