// What a front end sees of a service that dies: a pause, no error, nothing lost, nothing done twice (vhost-user
// in-flight tracking).

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <filesystem>
#include <random>
#include <thread>

#include "initiator/load.h"

namespace pollux::initiator {
namespace {

// pollux-diskhost as a process of its own, with disks in a file that outlive it.
class DiskHost {
 public:
  DiskHost() {
    char name[] = "/tmp/pollux-restart-XXXXXX";
    if (!::mkdtemp(name)) throw std::runtime_error("mkdtemp");
    directory_ = name;
  }
  ~DiskHost() {
    if (pid_ > 0) end(SIGKILL);
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  // Returns once all sockets are there.
  void start() {
    int out[2];
    if (::pipe(out) != 0) throw std::runtime_error("pipe");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(out[1], STDOUT_FILENO);
      ::close(out[0]);
      ::close(out[1]);
      const std::string blk = "d=file:" + directory_ + "/blk.img:64M";
      const std::string scsi = "d:0=file:" + directory_ + "/scsi.img:64M";
      ::execl(DISKHOST, DISKHOST, "--dir", directory_.c_str(), "--blk", blk.c_str(), "--scsi", scsi.c_str(), "--queues",
              "2", "--reactors", "2", "--log-level", "error", nullptr);
      ::_exit(127);
    }
    ::close(out[1]);
    char line[6];
    std::size_t got = 0;
    while (got < sizeof(line)) {
      const ssize_t part = ::read(out[0], line + got, sizeof(line) - got);
      if (part <= 0) break;
      got += static_cast<std::size_t>(part);
    }
    ::close(out[0]);
    if (got != sizeof(line)) throw std::runtime_error("pollux-diskhost does not start");
  }
  void send(int signal) { ::kill(pid_, signal); }
  void end(int signal) {
    send(signal);
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    if (signal == SIGTERM && status != 0) throw std::runtime_error("pollux-diskhost did not end well");
  }
  std::string socket(const std::string& transport) const { return directory_ + "/" + transport + "-d.sock"; }

 private:
  std::string directory_;
  pid_t pid_ = -1;
};

struct Variant {
  const char* name;
  bool scsi;
  RingOptions ring;
  int signal;
};
std::ostream& operator<<(std::ostream& out, const Variant& variant) {
  return out << variant.name;
}

const Variant kVariants[] = {
    {"blk, split, killed", false, {.size = 128, .event_idx = true, .indirect = true}, SIGKILL},
    {"blk, packed, killed", false, {.size = 100, .packed = true, .event_idx = true}, SIGKILL},
    {"scsi, split, killed", true, {.size = 128}, SIGKILL},
    {"scsi, packed, killed", true, {.size = 128, .packed = true, .indirect = true}, SIGKILL},
    {"blk, split, terminated", false, {.size = 128}, SIGTERM},
    {"scsi, packed, terminated", true, {.size = 90, .packed = true}, SIGTERM},
};

int kills() {
  const char* wanted = std::getenv("POLLUX_RESTARTS");
  return wanted ? std::atoi(wanted) : 5;
}

BOOST_DATA_TEST_CASE(verified_load_goes_on_over_restarts, boost::unit_test::data::make(kVariants), variant) {
  const unsigned seed = std::random_device{}();
  BOOST_TEST_MESSAGE("seed " << seed);
  std::mt19937 random(seed);
  DiskHost host;
  host.start();
  FrontEndOptions options;
  options.socket_path = host.socket(variant.scsi ? "scsi" : "blk");
  options.queues = variant.scsi ? 4 : 2;
  options.ring = variant.ring;
  options.inflight = true;
  FrontEnd front_end(options);
  front_end.start();
  std::unique_ptr<Disk> disk;
  if (variant.scsi) {
    disk = std::make_unique<ScsiDisk>(0, 0, 512);
  } else {
    disk = std::make_unique<BlkDisk>();
  }
  const std::uint16_t first = disk->first_queue();
  LoadOptions load{.seed = seed, .length_bytes = 32 << 20, .queue_depth = 24, .flush_every = 100, .stall_ms = 20000};
  QueueLoad left(front_end, *disk, first, 0, 2, load);
  QueueLoad right(front_end, *disk, static_cast<std::uint16_t>(first + 1), 1, 2, load);
  std::atomic<bool> stop{false};
  std::string failure;
  const auto work = [&](QueueLoad& queue) {
    try {
      queue.run(stop);
    } catch (const std::exception& error) {
      failure = error.what();
    }
  };
  std::thread a([&] { work(left); }), b([&] { work(right); });
  // Whatever ends the test, the threads end first.
  const auto join = [&](void*) {
    stop = true;
    if (a.joinable()) a.join();
    if (b.joinable()) b.join();
  };
  const std::unique_ptr<void, decltype(join)> joined(&stop, join);
  for (int i = 0; i < kills(); ++i) {
    // Any instant will do, so the clock picks it.
    std::this_thread::sleep_for(std::chrono::milliseconds(20 + random() % 200));
    host.send(variant.signal);
    BOOST_REQUIRE(front_end.wait_lost(30000));
    host.end(variant.signal);
    const auto died = std::chrono::steady_clock::now();
    host.start();
    front_end.reconnect();
    BOOST_TEST_MESSAGE(
        "back after "
        << std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - died).count()
        << " ms");
  }
  join(nullptr);
  BOOST_TEST(failure == "");
  left.check_all();
  right.check_all();
  for (const LoadResult& result : {left.result(), right.result()}) {
    BOOST_TEST(result.errors == 0u);
    BOOST_TEST(result.requests > 0u);
    for (const auto& text : result.what) BOOST_TEST_MESSAGE(text);
  }
  front_end.stop();
  host.end(SIGTERM);
}

}  // namespace
}  // namespace pollux::initiator
