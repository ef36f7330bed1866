#pragma once
// AlignedBuffer: page-aligned memory for device I/O, so that O_DIRECT devices need not bounce it.

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

#include "blob/format.h"

namespace pollux::blob {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Zeroed.
  explicit AlignedBuffer(std::size_t bytes)
      : data_(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kPageBytes}))), bytes_(bytes) {
    std::memset(data_.get(), 0, bytes);
  }
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  std::size_t size() const { return bytes_; }
  bool empty() const { return bytes_ == 0; }

 private:
  struct Free {
    void operator()(std::byte* data) const { ::operator delete (data, std::align_val_t{kPageBytes}); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t bytes_ = 0;
};

}  // namespace pollux::blob
