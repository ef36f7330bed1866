#include "control/memory.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

namespace pollux::control {

namespace {

constexpr const char* kVariable = "GLIBC_TUNABLES";
// 2: MAP_HUGETLB of the default size, ordinary pages where none is left.
constexpr const char* kTunable = "glibc.malloc.hugetlb=2";

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

}  // namespace

Result<bool> wants_hugepages(const Config::Memory& memory, std::string_view meminfo) {
  if (memory.hugepages == "off") return false;
  // proc(5): pages nobody has taken or reserved, and the default size in kB.
  const std::uint64_t free_pages = field(meminfo, "HugePages_Free");
  const std::uint64_t reserved_pages = field(meminfo, "HugePages_Rsvd");
  const std::uint64_t usable_pages = free_pages > reserved_pages ? free_pages - reserved_pages : 0;
  const std::uint64_t usable_mb = usable_pages * field(meminfo, "Hugepagesize") / 1024;
  if (usable_mb >= memory.size_mb) return true;
  if (memory.hugepages == "auto") return false;
  return fail(ErrorCode::kNoSpace, "memory.hugepages is \"on\", and " + std::to_string(usable_mb) +
                                       " MiB of hugepages are free; memory.size_mb asks for " +
                                       std::to_string(memory.size_mb) + " (sysctl vm.nr_hugepages)");
}

Status apply_memory(const Config::Memory& memory, char** argv) {
  const char* variable = std::getenv(kVariable);
  const std::string before = variable == nullptr ? "" : variable;
  if (before.find(kTunable) != std::string::npos) return {};
  std::ifstream file("/proc/meminfo");
  std::ostringstream meminfo;
  meminfo << file.rdbuf();
  const auto wanted = wants_hugepages(memory, meminfo.str());
  if (!wanted) return fail(wanted.error());
  if (!*wanted) return {};
  setenv(kVariable, (before.empty() ? kTunable : before + ":" + kTunable).c_str(), 1);
  execv("/proc/self/exe", argv);
  return fail(ErrorCode::kIoError, std::string("cannot execute itself with hugepages: ") + std::strerror(errno));
}

}  // namespace pollux::control
