#pragma once
// Memory for what devices and virtqueues work with: requests, bounce buffers, metadata pages. It comes from DPDK's
// heap (EAL 22.11: hugepages, or ordinary pages with --no-huge) once start() has been called, and from the process's
// own heap before that, so that tests of one room need no EAL. When DPDK's heap is full the process's own is used.
//
// Guests' memory is not concerned: it belongs to the front ends, which choose its pages themselves.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace pollux::memory {

enum class Hugepages { kOff, kAuto, kOn };

struct Options {
  Hugepages hugepages = Hugepages::kAuto;
  std::uint32_t size_mb = 64;  // MiB set aside at start
};

// Whether to use hugepages, by options and the text of /proc/meminfo. kNoSpace: kOn, and fewer than size_mb are free.
Result<bool> wants_hugepages(const Options& options, std::string_view meminfo);

// Once a process, before the threads that allocate are started. It is not undone: the memory goes with the process.
// kNoSpace: as for wants_hugepages. kIoError: EAL did not start; its own words are on standard error.
Status start(const Options& options);

struct Usage {
  bool started = false;
  bool hugepages = false;
  std::uint64_t heap_bytes = 0;  // of DPDK's heap
  std::uint64_t heap_used_bytes = 0;
};
Usage usage();

// nullptr: none left. alignment_bytes: a power of two. Any thread; not in the I/O path of a reactor.
void* allocate(std::size_t bytes, std::size_t alignment_bytes) noexcept;
// Of allocate(); nullptr is allowed.
void release(void* memory) noexcept;

struct Release {
  void operator()(void* memory) const { release(memory); }
};

// For standard containers.
template <typename T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <typename U>
  Allocator(const Allocator<U>&) {}  // NOLINT(google-explicit-constructor): the standard's named requirement

  T* allocate(std::size_t count) {
    void* memory = count > SIZE_MAX / sizeof(T) ? nullptr : memory::allocate(count * sizeof(T), alignof(T));
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t) { release(memory); }
  template <typename U>
  bool operator==(const Allocator<U>&) const {
    return true;
  }
};

template <typename T>
using Vector = std::vector<T, Allocator<T>>;

}  // namespace pollux::memory
