// How the service ends when something it waits for does not: the process itself ends, so it is one of the test's own.
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/log.h"
#include "control/stop_limit.h"
#include "control/test_certificates.h"

using namespace pollux;
using namespace pollux::control;

namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_stop_that_does_not_end_ends_the_process_and_says_what_it_waited_for) {
  const test::Folder folder;
  const std::string log_file = folder.path() + "/log";
  const std::string pid_file = folder.path() + "/pid";
  std::ofstream(pid_file) << "1\n";
  const pid_t child = fork();
  BOOST_REQUIRE(child >= 0);
  if (child == 0) {
    if (!log::init("info", log_file)) _exit(99);
    StopLimit limit(std::chrono::seconds(1), pid_file);
    limit.waiting_for("requests of data sockets");
    std::this_thread::sleep_for(std::chrono::hours(1));
    _exit(98);
  }
  int status = -1;
  BOOST_REQUIRE(waitpid(child, &status, 0) == child);
  BOOST_TEST(WIFEXITED(status));
  BOOST_TEST(WEXITSTATUS(status) == EXIT_FAILURE);
  BOOST_TEST(read_file(log_file).find("still waiting for requests of data sockets") != std::string::npos,
             read_file(log_file));
  BOOST_TEST(!std::filesystem::exists(pid_file));
}

BOOST_AUTO_TEST_CASE(a_stop_that_ends_in_time_is_left_alone) {
  StopLimit limit(std::chrono::seconds(3600), "");
  limit.waiting_for("nothing");
}
