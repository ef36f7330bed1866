#include "reactor/resume_latency.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace pollux::reactor {
namespace {

// A folder like the kernel's, with the cores 0 to 3, and one for the record.
struct Cores {
  Cores() {
    char name[] = "/tmp/pollux-latency-XXXXXX";
    path = ::mkdtemp(name);
    for (unsigned core = 0; core < 4; ++core) {
      std::filesystem::create_directories(file(core).parent_path());
      set(core, "0");
    }
  }
  ~Cores() { std::filesystem::remove_all(path); }

  std::filesystem::path file(unsigned core) const {
    return path / ("cpu" + std::to_string(core)) / "power" / "pm_qos_resume_latency_us";
  }
  std::filesystem::path record() const { return path / "record"; }
  void set(unsigned core, const std::string& text) const { std::ofstream(file(core)) << text << '\n'; }
  std::string bound(unsigned core) const {
    std::string word;
    std::ifstream(file(core)) >> word;
    return word;
  }
  std::string bounds() const { return bound(0) + " " + bound(1) + " " + bound(2) + " " + bound(3); }

  ResumeLatency::Options options(std::vector<unsigned> cores, std::uint32_t limit_us) const {
    ResumeLatency::Options wanted;
    wanted.cores = std::move(cores);
    wanted.limit_us = limit_us;
    wanted.record = record();
    wanted.root = path;
    return wanted;
  }

  std::filesystem::path path;
};

// A process that bounds cores and is killed: nothing of it runs at its end.
void bound_and_die(const ResumeLatency::Options& options) {
  const pid_t child = fork();
  BOOST_REQUIRE(child >= 0);
  if (child == 0) {
    const ResumeLatency held(options);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  BOOST_REQUIRE_EQUAL(::waitpid(child, &status, 0), child);
  BOOST_REQUIRE(WIFSIGNALED(status));
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_cores_named_are_bounded_for_as_long_as_it_lives) {
  const Cores cores;
  {
    const ResumeLatency held(cores.options({1, 3}, 20));
    BOOST_TEST(cores.bounds() == "0 20 0 20");
  }
  BOOST_TEST(cores.bounds() == "0 0 0 0");
  BOOST_TEST(!std::filesystem::exists(cores.record()));
}

BOOST_AUTO_TEST_CASE(no_latency_at_all_is_written_as_the_kernel_wants_it) {
  const Cores cores;
  const ResumeLatency held(cores.options({0}, 0));
  BOOST_TEST(cores.bounds() == "n/a 0 0 0");
}

BOOST_AUTO_TEST_CASE(a_tighter_bound_of_somebody_else_stays) {
  const Cores cores;
  cores.set(0, "n/a");
  cores.set(1, "5");
  cores.set(2, "300");
  {
    const ResumeLatency held(cores.options({0, 1, 2, 3}, 20));
    BOOST_TEST(cores.bounds() == "n/a 5 20 20");
  }
  BOOST_TEST(cores.bounds() == "n/a 5 300 0");
}

BOOST_AUTO_TEST_CASE(what_somebody_else_wrote_meanwhile_is_not_put_back) {
  const Cores cores;
  {
    const ResumeLatency held(cores.options({0, 1}, 20));
    cores.set(0, "70");
  }
  BOOST_TEST(cores.bounds() == "70 0 0 0");
}

BOOST_AUTO_TEST_CASE(after_a_kill_the_next_one_puts_back_what_was_there_before) {
  const Cores cores;
  cores.set(2, "300");
  bound_and_die(cores.options({0, 2}, 20));
  BOOST_TEST(cores.bounds() == "20 0 20 0");
  // Other cores and another limit since.
  {
    const ResumeLatency held(cores.options({1, 2}, 50));
    BOOST_TEST(cores.bounds() == "0 50 50 0");
  }
  BOOST_TEST(cores.bounds() == "0 0 300 0");

  bound_and_die(cores.options({0}, 0));
  bound_and_die(cores.options({0}, 0));
  // Nobody wants a bound any more.
  const ResumeLatency none(cores.options({}, 0));
  BOOST_TEST(cores.bounds() == "0 0 300 0");
}

BOOST_AUTO_TEST_CASE(cores_without_a_bound_and_a_record_that_makes_no_sense_are_left_alone) {
  const Cores cores;
  std::ofstream(cores.record()) << "1 0 20 7\n2\n3 0 never\n9 0 20\n-1 0 20\n0 0 2";
  cores.set(1, "20");
  cores.set(3, "never");
  const ResumeLatency held(cores.options({3, 7, 0}, 20));
  BOOST_TEST(cores.bounds() == "20 20 0 never");
}

BOOST_AUTO_TEST_CASE(without_a_record_no_bound_is_set) {
  const Cores cores;
  auto options = cores.options({0}, 20);
  options.record = cores.path / "missing" / "record";
  const ResumeLatency held(options);
  BOOST_TEST(cores.bounds() == "0 0 0 0");
}

}  // namespace pollux::reactor
