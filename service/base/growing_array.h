#pragma once
// GrowingArray: plain values, zero at first, in pages of their own. Growing moves page tables instead of values
// (mremap(2)), and what was never written takes no memory: what a pool keeps for each of its clusters can grow on a
// reactor.

#include <sys/mman.h>
#include <unistd.h>

#include <cassert>
#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

#include "base/units.h"

namespace pollux {

template <typename T>
class GrowingArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  GrowingArray() = default;
  explicit GrowingArray(std::size_t size) { grow(size); }
  ~GrowingArray() {
    if (data_ != nullptr) munmap(data_, mapped_bytes(size_));
  }
  GrowingArray(GrowingArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  GrowingArray& operator=(GrowingArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  GrowingArray(const GrowingArray&) = delete;
  GrowingArray& operator=(const GrowingArray&) = delete;

  // Never smaller than before. Throws std::bad_alloc, and is as before then.
  void grow(std::size_t size) {
    assert(size >= size_);
    const std::size_t before = mapped_bytes(size_);
    const std::size_t after = mapped_bytes(size);
    if (after != before) {
      void* const moved = before == 0 ? mmap(nullptr, after, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                                      : mremap(data_, before, after, MREMAP_MAYMOVE);
      if (moved == MAP_FAILED) throw std::bad_alloc();
      data_ = static_cast<T*>(moved);
    }
    size_ = size;
  }

  std::size_t size() const { return size_; }
  T& operator[](std::size_t index) { return data_[index]; }
  const T& operator[](std::size_t index) const { return data_[index]; }

 private:
  static std::size_t mapped_bytes(std::size_t size) {
    return align_up(size * sizeof(T), static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
  }

  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace pollux
