#include "virtio/guest_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <limits>

#include "base/units.h"

namespace pollux::virtio {
namespace {

bool overflows(std::uint64_t start, std::uint64_t length) {
  return length > std::numeric_limits<std::uint64_t>::max() - start;
}

// Pages of a file come when a reactor touches them, and it waits for them with everybody whom it serves. From memory
// they come at once; from a disk's file system, in which libvirt keeps the memory of guests with <source type="file"/>,
// as soon as the disk has read them. From elsewhere, a network or a process (FUSE), they may never come.
Status check_source_of_pages(int fd) {
  // Files of tmpfs and hugetlbfs have seals, whether they are memfds or not; and no other has.
  if (::fcntl(fd, F_GET_SEALS) >= 0) return {};
  struct statfs info = {};
  if (::fstatfs(fd, &info) != 0)
    return fail(ErrorCode::kInvalid, "shared memory descriptor: " + std::string(std::strerror(errno)));
  // Some of these have no name in the kernel's headers.
  constexpr std::uint32_t kZfs = 0x2fc12fc1;
  constexpr std::uint32_t kBcachefs = 0xca451a4e;
  constexpr std::uint32_t kLocal[] = {EXT4_SUPER_MAGIC,       XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC,
                                      OVERLAYFS_SUPER_MAGIC, RAMFS_MAGIC,     kZfs,              kBcachefs};
  const auto type = static_cast<std::uint32_t>(info.f_type);
  if (std::ranges::find(kLocal, type) != std::end(kLocal)) return {};
  char number[16];
  std::snprintf(number, sizeof(number), "%#x", type);
  return fail(ErrorCode::kUnsupported, "shared memory in a file system (" + std::string(number) +
                                           ") that may keep all guests waiting for a page: it has to be a memfd, or in "
                                           "tmpfs, hugetlbfs or the file system of a local disk");
}

bool overlap(std::uint64_t a, std::uint64_t a_length, std::uint64_t b, std::uint64_t b_length) {
  return a < b + b_length && b < a + a_length;
}

}  // namespace

Result<std::unique_ptr<SharedMapping>> SharedMapping::map(int fd, std::uint64_t file_offset, std::uint64_t size_bytes) {
  if (size_bytes == 0 || overflows(file_offset, size_bytes))
    return fail(ErrorCode::kInvalid, "shared memory with an impossible range");
  POLLUX_TRY(check_source_of_pages(fd));
  struct stat file = {};
  if (::fstat(fd, &file) != 0)
    return fail(ErrorCode::kInvalid, "shared memory descriptor: " + std::string(std::strerror(errno)));
  if (!S_ISREG(file.st_mode)) return fail(ErrorCode::kInvalid, "shared memory descriptor is not a memory file");
  if (!range_fits(file_offset, size_bytes, static_cast<std::uint64_t>(file.st_size))) {
    return fail(ErrorCode::kInvalid, "shared memory reaches past the end of its file");
  }
  // On hugetlbfs st_blksize is the huge page, and mapping as well as unmapping need multiples of it.
  std::uint64_t page = 4096;
  if (file.st_blksize > 4096 && std::has_single_bit(static_cast<std::uint64_t>(file.st_blksize))) {
    page = static_cast<std::uint64_t>(file.st_blksize);
  }
  const std::uint64_t start = align_down(file_offset, page);
  const std::uint64_t lead = file_offset - start;
  if (overflows(lead + size_bytes, page)) return fail(ErrorCode::kInvalid, "shared memory with an impossible range");
  const std::uint64_t mapped = align_up(lead + size_bytes, page);
  void* base =
      ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, static_cast<off_t>(start));
  if (base == MAP_FAILED)
    return fail(ErrorCode::kInternal, "cannot map shared memory: " + std::string(std::strerror(errno)));
  std::unique_ptr<SharedMapping> mapping(new SharedMapping);
  mapping->base_ = base;
  mapping->mapped_bytes_ = mapped;
  mapping->data_ = static_cast<std::byte*>(base) + lead;
  mapping->size_bytes_ = size_bytes;
  // A core dump of the service must not carry its guests' memory.
  ::madvise(base, mapped, MADV_DONTDUMP);
  mapping->guard_ = std::make_unique<BusFaultGuard>(base, mapped, mapping->lost_);
  if (!mapping->guard_->active()) return fail(ErrorCode::kInternal, "too many shared memory mappings");
  return mapping;
}

SharedMapping::~SharedMapping() {
  guard_.reset();
  if (base_) ::munmap(base_, mapped_bytes_);
}

Result<std::shared_ptr<const Region>> map_region(const RegionSpec& spec, const UniqueFd& fd) {
  if (overflows(spec.guest_addr, spec.size_bytes) || overflows(spec.user_addr, spec.size_bytes)) {
    return fail(ErrorCode::kInvalid, "memory region whose addresses overflow");
  }
  auto mapping = SharedMapping::map(fd.get(), spec.file_offset, spec.size_bytes);
  if (!mapping) return fail(std::move(mapping.error()));
  auto region = std::make_shared<Region>();
  region->spec = spec;
  region->mapping = std::move(*mapping);
  return std::shared_ptr<const Region>(std::move(region));
}

Result<std::shared_ptr<const GuestMemory>> GuestMemory::make(std::vector<std::shared_ptr<const Region>> regions) {
  if (regions.empty() || regions.size() > kMaxRegions) {
    return fail(ErrorCode::kInvalid, "a memory table has 1 to " + std::to_string(kMaxRegions) + " regions");
  }
  std::sort(regions.begin(), regions.end(),
            [](const auto& a, const auto& b) { return a->spec.guest_addr < b->spec.guest_addr; });
  for (std::size_t i = 0; i < regions.size(); ++i) {
    for (std::size_t j = i + 1; j < regions.size(); ++j) {
      const RegionSpec& a = regions[i]->spec;
      const RegionSpec& b = regions[j]->spec;
      if (overlap(a.guest_addr, a.size_bytes, b.guest_addr, b.size_bytes) ||
          overlap(a.user_addr, a.size_bytes, b.user_addr, b.size_bytes)) {
        return fail(ErrorCode::kInvalid, "memory regions overlap");
      }
    }
  }
  std::shared_ptr<GuestMemory> memory(new GuestMemory);
  for (const auto& region : regions) {
    memory->ranges_.push_back({region->spec.guest_addr, region->spec.size_bytes, region->mapping->data()});
  }
  memory->regions_ = std::move(regions);
  return std::shared_ptr<const GuestMemory>(std::move(memory));
}

GuestMemory::Translation GuestMemory::translate(std::uint64_t guest_addr, std::uint64_t length, IovecList& out) const {
  if (overflows(guest_addr, length)) return Translation::kUnmapped;
  while (length > 0) {
    const Range* range = find(guest_addr);
    if (!range) return Translation::kUnmapped;
    const std::uint64_t offset = guest_addr - range->guest_addr;
    const std::uint64_t piece = std::min(length, range->size_bytes - offset);
    if (!out.push(range->data + offset, piece)) return Translation::kTooManyPieces;
    guest_addr += piece;
    length -= piece;
  }
  return Translation::kOk;
}

std::byte* GuestMemory::ring_pointer(std::uint64_t user_addr, std::uint64_t length) const {
  for (const auto& region : regions_) {
    const RegionSpec& spec = region->spec;
    if (user_addr < spec.user_addr) continue;
    if (range_fits(user_addr - spec.user_addr, length, spec.size_bytes)) {
      return region->mapping->data() + (user_addr - spec.user_addr);
    }
  }
  return nullptr;
}

std::optional<std::uint64_t> GuestMemory::guest_addr(const void* pointer) const {
  const auto* byte = static_cast<const std::byte*>(pointer);
  for (const Range& range : ranges_) {
    if (byte >= range.data && byte < range.data + range.size_bytes) {
      return range.guest_addr + static_cast<std::uint64_t>(byte - range.data);
    }
  }
  return std::nullopt;
}

bool GuestMemory::lost() const {
  return std::any_of(regions_.begin(), regions_.end(), [](const auto& region) { return region->mapping->lost(); });
}

}  // namespace pollux::virtio
