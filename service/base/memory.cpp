#include "base/memory.h"

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_malloc.h>
#include <rte_memory.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <vector>

#include "base/units.h"

namespace pollux::memory {

namespace {

enum class Heap { kProcess, kDpdk, kDpdkHugepages };
std::atomic<Heap> heap{Heap::kProcess};

// The number behind "name:", 0 when it is not there.
std::uint64_t field(std::string_view meminfo, std::string_view name) {
  const auto at = meminfo.find(std::string(name) + ":");
  if (at == std::string_view::npos) return 0;
  const auto digits = meminfo.find_first_of("0123456789", at + name.size());
  if (digits == std::string_view::npos) return 0;
  std::uint64_t value = 0;
  std::from_chars(meminfo.data() + digits, meminfo.data() + meminfo.size(), value);
  return value;
}

// EAL binds the thread that starts it to its lcore's cores: all that the process may use, as before.
Result<std::string> all_cores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
    return fail(ErrorCode::kIoError, "cannot read the affinity");
  std::string cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &allowed)) cores += (cores.empty() ? "" : ",") + std::to_string(core);
  }
  return cores;
}

}  // namespace

Result<bool> wants_hugepages(const Options& options, std::string_view meminfo) {
  if (options.hugepages == Hugepages::kOff) return false;
  // proc(5): pages that are neither used nor reserved, and the default size in kB.
  const std::uint64_t free_pages = field(meminfo, "HugePages_Free");
  const std::uint64_t reserved_pages = field(meminfo, "HugePages_Rsvd");
  const std::uint64_t usable_pages = free_pages > reserved_pages ? free_pages - reserved_pages : 0;
  const std::uint64_t usable_mb = usable_pages * field(meminfo, "Hugepagesize") / 1024;
  if (usable_mb >= options.size_mb) return true;
  if (options.hugepages == Hugepages::kAuto) return false;
  return fail(ErrorCode::kNoSpace, "memory.hugepages is \"on\", and " + std::to_string(usable_mb) +
                                       " MiB of hugepages are free; memory.size_mb asks for " +
                                       std::to_string(options.size_mb) + " (sysctl vm.nr_hugepages)");
}

Status start(const Options& options) {
  if (heap.load() != Heap::kProcess) return {};
  std::ifstream file("/proc/meminfo");
  std::ostringstream meminfo;
  meminfo << file.rdbuf();
  const auto hugepages = wants_hugepages(options, meminfo.str());
  if (!hugepages) return fail(hugepages.error());
  const auto cores = all_cores();
  if (!cores) return fail(cores.error());
  // No secondary processes, hence no files that outlive a process that was killed; no devices: bdev brings its own.
  std::vector<std::string> words = {"polluxd",
                                    "--no-pci",
                                    "--no-telemetry",
                                    "--no-shconf",
                                    "--iova-mode=va",
                                    "--log-level=lib.eal:error",
                                    "--lcores",
                                    "0@(" + *cores + ")",
                                    "-m",
                                    std::to_string(options.size_mb),
                                    *hugepages ? "--in-memory" : "--no-huge"};
  std::vector<char*> arguments;
  for (auto& word : words) arguments.push_back(word.data());
  if (rte_eal_init(static_cast<int>(arguments.size()), arguments.data()) < 0) {
    return fail(ErrorCode::kIoError, std::string("DPDK's EAL does not start: ") + rte_strerror(rte_errno));
  }
  heap.store(*hugepages ? Heap::kDpdkHugepages : Heap::kDpdk);
  return {};
}

Usage usage() {
  const Heap now = heap.load();
  Usage usage{now != Heap::kProcess, now == Heap::kDpdkHugepages, 0, 0};
  if (!usage.started) return usage;
  for (int socket = 0; socket < RTE_MAX_NUMA_NODES; ++socket) {
    rte_malloc_socket_stats stats;
    if (rte_malloc_get_socket_stats(socket, &stats) != 0) continue;
    usage.heap_bytes += stats.heap_totalsz_bytes;
    usage.heap_used_bytes += stats.heap_allocsz_bytes;
  }
  return usage;
}

void* allocate(std::size_t bytes, std::size_t alignment_bytes) noexcept {
  const std::size_t alignment = std::max<std::size_t>(alignment_bytes, RTE_CACHE_LINE_SIZE);
  if (bytes == 0) bytes = 1;
  if (bytes > SIZE_MAX - alignment) return nullptr;
  if (heap.load(std::memory_order_relaxed) != Heap::kProcess) {
    if (void* memory = rte_malloc(nullptr, bytes, static_cast<unsigned>(alignment))) return memory;
  }
  return std::aligned_alloc(alignment, align_up<std::size_t>(bytes, alignment));
}

void release(void* memory) noexcept {
  if (memory == nullptr) return;
  const bool of_dpdk =
      heap.load(std::memory_order_relaxed) != Heap::kProcess && rte_mem_virt2memseg_list(memory) != nullptr;
  if (of_dpdk) {
    rte_free(memory);
  } else {
    std::free(memory);
  }
}

}  // namespace pollux::memory
