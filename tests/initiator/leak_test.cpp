// Attaching and detaching again and again leaves nothing: descriptors, mappings, threads and memory are back where they
// began. Service and front ends share this process, so that neither may leak.

#include <dirent.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "initiator/service_fixture.h"
#include "initiator/wait_until.h"

namespace pollux::initiator {
namespace {

int cycles() {
  const char* wanted = std::getenv("POLLUX_CYCLES");
  return wanted ? std::atoi(wanted) : 200;
}

std::size_t entries(const char* folder) {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator(folder), std::filesystem::directory_iterator()));
}

struct Holdings {
  std::size_t descriptors = 0;
  std::size_t threads = 0;
  std::size_t mappings = 0;
  std::size_t resident_bytes = 0;
};

Holdings holdings() {
  Holdings now;
  now.descriptors = entries("/proc/self/fd");
  now.threads = entries("/proc/self/task");
  std::ifstream maps("/proc/self/maps");
  // Heaps and stacks of threads come and go as the allocator likes; what is shared is ours.
  for (std::string line; std::getline(maps, line);) now.mappings += line.find(" rw-s ") != std::string::npos;
  std::ifstream statm("/proc/self/statm");
  std::size_t total = 0, resident = 0;
  statm >> total >> resident;
  now.resident_bytes = resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return now;
}

FrontEndOptions options_for(const std::string& socket, std::uint16_t queues, bool packed) {
  FrontEndOptions options;
  options.socket_path = socket;
  options.queues = queues;
  options.ring.packed = packed;
  options.inflight = true;
  options.ram_bytes = 1 << 20;
  return options;
}

// A guest comes, does an I/O and goes; every other one without a word.
void visit(const FrontEndOptions& options, const Disk& disk, bool politely) {
  FrontEnd front_end(options);
  front_end.start();
  IoSlot slot(front_end.ram(), 4096);
  // Of scsi the first command may be answered with a unit attention: what it says is not the question here.
  run_io(front_end, disk.first_queue(), disk, slot, Op::kWrite, 0, 4096);
  if (politely) front_end.stop();
}

BOOST_FIXTURE_TEST_CASE(attaching_and_detaching_leaves_nothing_behind, ServiceFixture) {
  const std::string socket = scsi("guest", 2);
  auto disk = ram(1 << 20);
  const auto cycle = [&](int i) {
    const std::string name = "d" + std::to_string(i % 7);
    visit(options_for(blk(name, disk), 2, i % 2 == 0), BlkDisk(), i % 3 != 0);
    BOOST_REQUIRE(service().remove_blk(name).has_value());
    const auto target = static_cast<std::uint16_t>(i % 255);
    add("guest", target, disk);
    visit(options_for(socket, 4, i % 2 == 0), ScsiDisk(static_cast<std::uint8_t>(target), 0, 512), i % 3 != 0);
    BOOST_REQUIRE(service().remove_scsi_target("guest", {target, 0}).has_value());
  };
  // Allocators and caches fill up first.
  const int warm_up = std::max(cycles() / 4, 20);
  for (int i = 0; i < warm_up; ++i) cycle(i);
  const Holdings before = holdings();
  for (int i = 0; i < cycles(); ++i) cycle(i);
  // A session of a front end that went without a word ends in its own time.
  BOOST_TEST(wait_until([&] {
    const Holdings now = holdings();
    return now.descriptors <= before.descriptors && now.threads <= before.threads && now.mappings <= before.mappings;
  }));
  const Holdings after = holdings();
  BOOST_TEST(after.descriptors <= before.descriptors);
  BOOST_TEST(after.threads <= before.threads);
  BOOST_TEST(after.mappings <= before.mappings);
#ifndef __SANITIZE_ADDRESS__  // keeps what was freed for a while, and finds what was forgotten by itself
  // Less than anything that a cycle could forget, in the long run; in a short one, what allocators do.
  const auto allowed = static_cast<std::size_t>(8 << 20);
  BOOST_TEST(after.resident_bytes <= before.resident_bytes + allowed);
#endif
  BOOST_TEST_MESSAGE(cycles() << " cycles: " << before.resident_bytes / 1024 << " KiB before, "
                              << after.resident_bytes / 1024 << " KiB after");
}

}  // namespace
}  // namespace pollux::initiator
