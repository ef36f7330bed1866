#include "base/memory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <vector>

#include "base/units.h"

namespace pollux::memory {

namespace {

bool aligned(const void* memory, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(memory) % alignment == 0;
}

// Allocates, fills and frees more than the heap holds; ends by 0 when every block kept its bytes and alignment.
int use_memory(bool expect_started) {
  if (usage().started != expect_started) return 10;
  std::vector<unsigned char*> blocks;
  for (int i = 0; i < 96; ++i) {
    auto* block = static_cast<unsigned char*>(allocate(kMiB, 4096));
    if (block == nullptr || !aligned(block, 4096)) return 11;
    std::memset(block, i, kMiB);
    blocks.push_back(block);
  }
  if (expect_started && usage().heap_used_bytes < 8 * kMiB) return 12;
  for (int i = 0; i < 96; ++i) {
    for (const std::size_t at : {std::size_t{0}, std::size_t{kMiB / 2}, std::size_t{kMiB - 1}}) {
      if (blocks[static_cast<std::size_t>(i)][at] != i) return 13;
    }
    release(blocks[static_cast<std::size_t>(i)]);
  }
  return usage().heap_used_bytes < kMiB ? 0 : 14;
}

// EAL cannot be stopped, so each start has a process of its own. -1: it did not end by itself.
int in_child(int (*body)()) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
  return WEXITSTATUS(status);
}

int run_without_hugepages() {
  const auto started = start({Hugepages::kOff, 64});
  if (!started) {
    std::cerr << started.error().message << '\n';
    return 20;
  }
  return usage().hugepages ? 21 : use_memory(true);
}

int run_with_hugepages() {
  const auto started = start({Hugepages::kOn, 16});
  if (!started) {
    std::cerr << started.error().message << '\n';
    return 20;
  }
  return usage().hugepages ? use_memory(true) : 21;
}

std::string meminfo() {
  std::ifstream file("/proc/meminfo");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

BOOST_AUTO_TEST_CASE(memory_comes_from_the_process_before_the_start) {
  BOOST_TEST(use_memory(false) == 0);
}

BOOST_AUTO_TEST_CASE(memory_comes_from_dpdk_without_hugepages_and_goes_on_when_its_heap_is_full) {
  BOOST_TEST(in_child(run_without_hugepages) == 0);
}

BOOST_AUTO_TEST_CASE(hugepages_are_taken_when_the_machine_has_them_and_refused_otherwise) {
  const bool there = wants_hugepages({Hugepages::kAuto, 16}, meminfo()).value();
  BOOST_TEST(in_child(run_with_hugepages) == (there ? 0 : 20));
}

BOOST_AUTO_TEST_CASE(impossible_sizes_are_refused) {
  BOOST_TEST(allocate(SIZE_MAX - 8, 4096) == nullptr);
  BOOST_CHECK_THROW(Allocator<std::uint64_t>().allocate(SIZE_MAX / 4), std::bad_alloc);
  release(nullptr);
}

BOOST_AUTO_TEST_CASE(hugepages_are_used_as_configured_and_as_there_are) {
  const std::string meminfo =
      "MemTotal: 1 kB\nHugePages_Total: 64\nHugePages_Free: 40\nHugePages_Rsvd: 8\nHugepagesize: 2048 kB\n";
  const auto use = [&](Hugepages mode, std::uint32_t size_mb) { return wants_hugepages({mode, size_mb}, meminfo); };
  BOOST_TEST(use(Hugepages::kAuto, 64).value());
  BOOST_TEST(!use(Hugepages::kAuto, 65).value());
  BOOST_TEST(use(Hugepages::kOn, 64).value());
  BOOST_TEST(!use(Hugepages::kOff, 16).value());
  const auto missing = use(Hugepages::kOn, 65);
  BOOST_REQUIRE(!missing);
  BOOST_TEST(missing.error().message.find("64 MiB of hugepages are free") != std::string::npos);
  BOOST_TEST(!wants_hugepages({Hugepages::kAuto, 16}, "").value());
}

}  // namespace pollux::memory
