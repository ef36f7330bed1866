#pragma once
// StopLimit: the time that the service's end may take. Everything it waits for has a bound of its own but one thing: a
// device that does not answer, for memory that the device may still write must not go. When the time is over, the log
// says what is not finished, and the process ends with status 1, as SIGKILL would end it: the next start replays the
// pools' journals and what guests have in flight, and removes sockets and other leftovers in runtime_dir.
//
// Made and destroyed on the main thread; a thread of its own watches the clock.

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace pollux::control {

class StopLimit {
 public:
  // `pid_file` is removed when the time is over; empty: there is none.
  StopLimit(std::chrono::seconds limit, std::string pid_file);
  // The end was reached in time.
  ~StopLimit();
  StopLimit(const StopLimit&) = delete;
  StopLimit& operator=(const StopLimit&) = delete;

  // What is being waited for from here on, as the log would say it: "requests of data sockets".
  void waiting_for(std::string what);

 private:
  void watch();
  [[noreturn]] void give_up();

  const std::chrono::seconds limit_;
  const std::string pid_file_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;  // under mutex_
  std::string what_;      // under mutex_
  std::thread thread_;
};

}  // namespace pollux::control
