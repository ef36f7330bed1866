#pragma once
// AlignedBuffer: page-aligned memory for device I/O, so that O_DIRECT devices need not bounce it.

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

#include "base/memory.h"
#include "blob/format.h"

namespace pollux::blob {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Zeroed.
  explicit AlignedBuffer(std::size_t bytes)
      : data_(static_cast<std::byte*>(memory::allocate(bytes, kPageBytes))), bytes_(bytes) {
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
  }
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  std::size_t size() const { return bytes_; }
  bool empty() const { return bytes_ == 0; }

 private:
  std::unique_ptr<std::byte, memory::Release> data_;
  std::size_t bytes_ = 0;
};

}  // namespace pollux::blob
