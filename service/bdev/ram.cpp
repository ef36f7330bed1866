#include "bdev/ram.h"

#include <sys/mman.h>

#include <cstring>

#include "base/units.h"

namespace pollux::bdev {

namespace {

constexpr std::uint64_t kPageBytes = 4096;

class RamBdev : public Bdev, public std::enable_shared_from_this<RamBdev> {
 public:
  RamBdev(std::string name, std::byte* memory, std::uint64_t size_bytes, std::uint32_t block_bytes)
      : name_(std::move(name)), memory_(memory), size_bytes_(size_bytes), block_bytes_(block_bytes) {}
  ~RamBdev() override { munmap(memory_, size_bytes_); }

  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return size_bytes_; }
  std::uint32_t block_bytes() const override { return block_bytes_; }
  bool supports_unmap() const override { return true; }
  std::uint32_t unmap_granularity_bytes() const override { return kPageBytes; }
  Opening open_channel(reactor::Reactor& reactor) override;

  IoStatus execute(const IoRequest& request);

 private:
  IoStatus execute_other(const IoRequest& request, bool fits);
  IoStatus zero(std::uint64_t offset_bytes, std::uint64_t length_bytes, bool free_pages);

  std::string name_;
  std::byte* memory_;
  std::uint64_t size_bytes_;
  std::uint32_t block_bytes_;
};

class RamChannel final : public Channel {
 public:
  explicit RamChannel(std::shared_ptr<RamBdev> bdev) : bdev_(std::move(bdev)) {}
  void submit(IoRequest& request) override;

 private:
  std::shared_ptr<RamBdev> bdev_;
};

Opening RamBdev::open_channel(reactor::Reactor&) {
  co_return std::make_unique<RamChannel>(shared_from_this());
}

inline IoStatus RamBdev::execute(const IoRequest& request) {
  const std::uint64_t offset = request.offset_bytes;
  const std::uint64_t length = request.length_bytes;
  const bool fits = ((offset | length) & (block_bytes_ - 1)) == 0 && range_fits(offset, length, size_bytes_);
  // As nearly all requests are.
  const bool reads = request.op == IoOp::kRead;
  if (fits && (reads || request.op == IoOp::kWrite) && request.iov_count == 1 && length <= request.iov->iov_len) {
    std::byte* const at = memory_ + offset;
    void* const piece = request.iov->iov_base;
    std::memcpy(reads ? piece : at, reads ? at : piece, length);
    return IoStatus::kOk;
  }
  return execute_other(request, fits);
}

void RamChannel::submit(IoRequest& request) {
  request.status = bdev_->execute(request);
  request.complete(request);
}

IoStatus RamBdev::execute_other(const IoRequest& request, bool fits) {
  if (request.op == IoOp::kFlush) return IoStatus::kOk;
  if (!fits || request.op == IoOp::kExtent) return IoStatus::kInvalid;
  if (request.op == IoOp::kUnmap || request.op == IoOp::kWriteZeroes) {
    return zero(request.offset_bytes, request.length_bytes,
                request.op == IoOp::kUnmap || (request.flags & IoRequest::kMayUnmap));
  }
  std::byte* at = memory_ + request.offset_bytes;
  std::uint64_t left = request.length_bytes;
  for (std::uint16_t i = 0; i < request.iov_count && left > 0; ++i) {
    const std::uint64_t now = std::min<std::uint64_t>(request.iov[i].iov_len, left);
    if (request.op == IoOp::kRead) {
      std::memcpy(request.iov[i].iov_base, at, now);
    } else {
      std::memcpy(at, request.iov[i].iov_base, now);
    }
    at += now;
    left -= now;
  }
  return left == 0 ? IoStatus::kOk : IoStatus::kInvalid;
}

IoStatus RamBdev::zero(std::uint64_t offset_bytes, std::uint64_t length_bytes, bool free_pages) {
  const std::uint64_t end = offset_bytes + length_bytes;
  const std::uint64_t first_page = align_up(offset_bytes, kPageBytes);
  const std::uint64_t last_page = align_down(end, kPageBytes);
  if (!free_pages || first_page >= last_page) {
    std::memset(memory_ + offset_bytes, 0, length_bytes);
    return IoStatus::kOk;
  }
  std::memset(memory_ + offset_bytes, 0, first_page - offset_bytes);
  std::memset(memory_ + last_page, 0, end - last_page);
  return madvise(memory_ + first_page, last_page - first_page, MADV_DONTNEED) == 0 ? IoStatus::kOk : IoStatus::kIoError;
}

}  // namespace

Result<std::shared_ptr<Bdev>> make_ram_bdev(std::string name, std::uint64_t size_bytes, std::uint32_t block_bytes) {
  if (size_bytes == 0 || !is_aligned(size_bytes, kPageBytes)) {
    return fail(ErrorCode::kInvalid,
                "a RAM device's size is a multiple of 4096 bytes, not " + std::to_string(size_bytes));
  }
  if (block_bytes != 512 && block_bytes != 4096) {
    return fail(ErrorCode::kInvalid,
                "a RAM device has blocks of 512 or 4096 bytes, not " + std::to_string(block_bytes));
  }
  void* memory = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return fail(ErrorCode::kNoSpace, "cannot map " + std::to_string(size_bytes) + " bytes for RAM device " + name +
                                         ": " + std::strerror(errno));
  }
  // Advice only: without huge pages the device is slower, not wrong.
  madvise(memory, size_bytes, MADV_HUGEPAGE);
  return std::make_shared<RamBdev>(std::move(name), static_cast<std::byte*>(memory), size_bytes, block_bytes);
}

}  // namespace pollux::bdev
