#pragma once
// GuestMemory: the only place that turns a guest's address into a pointer.
//
// A front end shares its guest's memory as up to kMaxRegions files. A GuestMemory is one immutable table of them; a
// change of the table makes a new object while queues that still use the old one keep its mappings alive. Every answer
// is checked against overflow and against the ends of regions. Nothing here trusts a size that the front end states:
// the file behind a region is asked, and bus_fault.h takes care of one that shrinks later.

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "virtio/bus_fault.h"

namespace pollux::virtio {

// Where a region lies: in the guest's physical addresses, in the front end's virtual addresses, and in its file.
struct RegionSpec {
  std::uint64_t guest_addr = 0;
  std::uint64_t size_bytes = 0;
  std::uint64_t user_addr = 0;
  std::uint64_t file_offset = 0;

  bool operator==(const RegionSpec&) const = default;
};

// A shared file mapping that survives the file's truncation: guest memory, a dirty log, an in-flight region.
class SharedMapping {
 public:
  // kInvalid: size 0, offset + size overflows or lies past the end of the file, or the descriptor is no regular file.
  // kUnsupported: its file system may keep a thread at a page for ever (FUSE, NFS and others that are not of
  // this host). kInternal: the kernel refuses the mapping, or too many exist. The descriptor may be closed afterwards.
  static Result<std::unique_ptr<SharedMapping>> map(int fd, std::uint64_t file_offset, std::uint64_t size_bytes);
  ~SharedMapping();
  SharedMapping(const SharedMapping&) = delete;
  SharedMapping& operator=(const SharedMapping&) = delete;

  std::byte* data() const { return data_; }
  std::uint64_t size_bytes() const { return size_bytes_; }
  // True once a page of it has gone away; it then reads as private zeros.
  bool lost() const { return lost_.load(std::memory_order_relaxed); }

 private:
  SharedMapping() = default;
  std::byte* data_ = nullptr;
  std::uint64_t size_bytes_ = 0;
  void* base_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  std::atomic<bool> lost_{false};
  std::unique_ptr<BusFaultGuard> guard_;
};

struct Region {
  RegionSpec spec;
  std::unique_ptr<SharedMapping> mapping;
};

// Validates the addresses and maps the file; errors as SharedMapping::map, and kInvalid for an address range that
// overflows.
Result<std::shared_ptr<const Region>> map_region(const RegionSpec& spec, const UniqueFd& fd);

// Room for the pieces of one request, owned by the caller.
struct IovecList {
  iovec* items = nullptr;
  std::uint32_t capacity = 0;
  std::uint32_t count = 0;

  bool push(void* base, std::size_t length) {
    if (count == capacity) return false;
    items[count++] = iovec{base, length};
    return true;
  }
};

class GuestMemory {
 public:
  static constexpr std::size_t kMaxRegions = 64;

  // kInvalid: none, too many, or two that overlap in guest or in front end addresses.
  static Result<std::shared_ptr<const GuestMemory>> make(std::vector<std::shared_ptr<const Region>> regions);

  // A region as a look-up sees it.
  struct Range {
    std::uint64_t guest_addr = 0;
    std::uint64_t size_bytes = 0;
    std::byte* data = nullptr;

    // nullptr unless it holds all of them.
    std::byte* pointer(std::uint64_t addr, std::uint64_t length) const {
      // Unsigned: an address below the region wraps to something larger than its size.
      const std::uint64_t offset = addr - guest_addr;
      return offset < size_bytes && length <= size_bytes - offset ? data + offset : nullptr;
    }
  };
  // With the lowest address.
  const Range& first() const { return ranges_.front(); }
  // The one with this address; null: there is none. As long as this lives.
  const Range* find(std::uint64_t guest_addr) const {
    for (const Range& range : ranges_) {
      if (guest_addr - range.guest_addr < range.size_bytes) return &range;
    }
    return nullptr;
  }

  enum class Translation : std::uint8_t { kOk, kUnmapped, kTooManyPieces };
  // Appends what [guest_addr, guest_addr + length) is in this process, one piece for each region it touches. On failure
  // the list may hold some of the pieces. A length of 0 is kOk and adds nothing.
  Translation translate(std::uint64_t guest_addr, std::uint64_t length, IovecList& out) const;
  // nullptr unless the whole range lies in one region.
  std::byte* pointer(std::uint64_t guest_addr, std::uint64_t length) const {
    const Range* range = find(guest_addr);
    return range ? range->pointer(guest_addr, length) : nullptr;
  }
  // The same for an address of the front end's process, which is how rings are given (vhost-user SET_VRING_ADDR).
  std::byte* ring_pointer(std::uint64_t user_addr, std::uint64_t length) const;
  // The guest address of a pointer handed out earlier.
  std::optional<std::uint64_t> guest_addr(const void* pointer) const;

  bool lost() const;
  const std::vector<std::shared_ptr<const Region>>& regions() const { return regions_; }

 private:
  GuestMemory() = default;

  // Side by side and sorted by guest address.
  std::vector<Range> ranges_;
  std::vector<std::shared_ptr<const Region>> regions_;
};

}  // namespace pollux::virtio
