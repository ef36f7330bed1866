#pragma once
// Hugepages for the service's own memory: queues, request slots, maps of volumes, buffers. All of it comes from malloc,
// and glibc's takes its memory from hugepages when the tunable glibc.malloc.hugetlb says so (glibc manual, "Memory
// Allocation Tunables"). glibc reads it when a program is executed, so the service executes itself once more with it.

#include <string>
#include <string_view>

#include "base/result.h"
#include "control/config.h"

namespace pollux::control {

// Whether to use hugepages, by configuration and the text of /proc/meminfo. kNoSpace: "on", and fewer than size_mb are
// free.
Result<bool> wants_hugepages(const Config::Memory& memory, std::string_view meminfo);

// Before any other thread is started. Returns when nothing is to be done or it is done already; otherwise executes the
// program anew, with the same arguments and process id, and does not return. kIoError: that failed.
Status apply_memory(const Config::Memory& memory, char** argv);

}  // namespace pollux::control
