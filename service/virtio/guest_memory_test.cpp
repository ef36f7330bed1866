#include "virtio/guest_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>

#include "virtio/dirty_log.h"

namespace pollux::virtio {
namespace {

UniqueFd memory_file(std::uint64_t bytes) {
  UniqueFd fd(::memfd_create("guest-memory-test", MFD_CLOEXEC));
  BOOST_REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
  return fd;
}

std::shared_ptr<const Region> region(std::uint64_t guest_addr, std::uint64_t size, std::uint64_t user_addr) {
  auto mapped = map_region({guest_addr, size, user_addr, 0}, memory_file(size));
  BOOST_REQUIRE(mapped);
  return *mapped;
}

struct TwoRegions {
  // [0x1000, 0x3000) and, adjacent, [0x3000, 0x4000); then nothing.
  std::shared_ptr<const GuestMemory> memory =
      *GuestMemory::make({region(0x3000, 0x1000, 0x90000), region(0x1000, 0x2000, 0x50000)});
  iovec items[4];
  IovecList list{items, 4, 0};
};

BOOST_FIXTURE_TEST_SUITE(guest_memory, TwoRegions)

BOOST_AUTO_TEST_CASE(a_range_within_one_region_is_one_piece) {
  BOOST_TEST((memory->translate(0x1800, 0x100, list) == GuestMemory::Translation::kOk));
  BOOST_TEST(list.count == 1u);
  BOOST_TEST(items[0].iov_len == 0x100u);
  BOOST_TEST(memory->guest_addr(items[0].iov_base).value() == 0x1800u);
}
BOOST_AUTO_TEST_CASE(a_range_over_adjacent_regions_is_two_pieces) {
  BOOST_TEST((memory->translate(0x2f00, 0x200, list) == GuestMemory::Translation::kOk));
  BOOST_TEST(list.count == 2u);
  BOOST_TEST(items[0].iov_len == 0x100u);
  BOOST_TEST(memory->guest_addr(items[1].iov_base).value() == 0x3000u);
  BOOST_TEST(memory->pointer(0x2f00, 0x200) == nullptr);
}
BOOST_AUTO_TEST_CASE(what_lies_outside_is_unmapped_whatever_overflows) {
  for (const auto& [start, length] : {std::pair<std::uint64_t, std::uint64_t>{0, 1},
                                      {0xfff, 2},
                                      {0x3fff, 2},
                                      {0x4000, 1},
                                      {UINT64_MAX, 1},
                                      {UINT64_MAX, UINT64_MAX},
                                      {0x1000, UINT64_MAX},
                                      {0x1000, 0x3001}}) {
    list.count = 0;
    BOOST_TEST((memory->translate(start, length, list) == GuestMemory::Translation::kUnmapped));
    BOOST_TEST(memory->pointer(start, length) == nullptr);
  }
  BOOST_TEST((memory->translate(0x1000, 0x3000, list) == GuestMemory::Translation::kOk));
}
BOOST_AUTO_TEST_CASE(no_length_is_no_piece) {
  BOOST_TEST((memory->translate(0, 0, list) == GuestMemory::Translation::kOk));
  BOOST_TEST(list.count == 0u);
}
BOOST_AUTO_TEST_CASE(too_many_pieces_are_said_to_be) {
  list.capacity = 1;
  BOOST_TEST((memory->translate(0x2f00, 0x200, list) == GuestMemory::Translation::kTooManyPieces));
}
BOOST_AUTO_TEST_CASE(rings_are_found_by_the_front_ends_addresses) {
  BOOST_TEST(memory->guest_addr(memory->ring_pointer(0x50010, 16)).value() == 0x1010u);
  BOOST_TEST(memory->guest_addr(memory->ring_pointer(0x90000, 0x1000)).value() == 0x3000u);
  BOOST_TEST(memory->ring_pointer(0x90000, 0x1001) == nullptr);
  BOOST_TEST(memory->ring_pointer(0x4ffff, 1) == nullptr);
  BOOST_TEST(memory->ring_pointer(UINT64_MAX, 16) == nullptr);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_CASE(tables_that_overlap_or_are_too_long_are_refused) {
  BOOST_TEST(!GuestMemory::make({}));
  BOOST_TEST(!GuestMemory::make({region(0x1000, 0x2000, 0x50000), region(0x2000, 0x1000, 0x90000)}));
  BOOST_TEST(!GuestMemory::make({region(0x1000, 0x2000, 0x50000), region(0x8000, 0x1000, 0x51000)}));
  std::vector<std::shared_ptr<const Region>> many;
  for (std::uint64_t i = 0; i <= GuestMemory::kMaxRegions; ++i) many.push_back(region(i * 0x1000, 0x1000, i * 0x1000));
  BOOST_TEST(!GuestMemory::make(many));
  many.pop_back();
  BOOST_TEST(GuestMemory::make(many).has_value());
}

BOOST_AUTO_TEST_CASE(a_mapping_stays_within_its_file) {
  const UniqueFd file = memory_file(0x3000);
  BOOST_TEST(SharedMapping::map(file.get(), 0, 0x3000).has_value());
  BOOST_TEST(SharedMapping::map(file.get(), 0x123, 0x1000).has_value());
  for (const auto& [offset, size] : {std::pair<std::uint64_t, std::uint64_t>{0, 0},
                                     {0, 0x3001},
                                     {0x3000, 1},
                                     {UINT64_MAX, 1},
                                     {1, UINT64_MAX},
                                     {UINT64_MAX - 10, 0x1000}}) {
    BOOST_TEST(!SharedMapping::map(file.get(), offset, size));
  }
  int pipe_fds[2];
  BOOST_REQUIRE(::pipe(pipe_fds) == 0);
  BOOST_TEST(!SharedMapping::map(pipe_fds[0], 0, 4096));
  ::close(pipe_fds[0]);
  ::close(pipe_fds[1]);
  BOOST_TEST(!SharedMapping::map(-1, 0, 4096));
}

BOOST_AUTO_TEST_CASE(memory_whose_file_shrinks_reads_as_zeros_and_is_marked) {
  const UniqueFd file = memory_file(0x4000);
  auto mapping = SharedMapping::map(file.get(), 0, 0x4000);
  BOOST_REQUIRE(mapping);
  (*mapping)->data()[0x2000] = std::byte{7};
  BOOST_TEST(!(*mapping)->lost());
  BOOST_REQUIRE(::ftruncate(file.get(), 0) == 0);
  const volatile std::byte* gone = (*mapping)->data() + 0x2000;
  BOOST_TEST(std::to_integer<int>(*gone) == 0);
  BOOST_TEST((*mapping)->lost());
}

BOOST_AUTO_TEST_CASE(the_dirty_log_marks_the_pages_of_a_range_and_stays_within_its_bounds) {
  const UniqueFd file = memory_file(4096);
  auto mapping = SharedMapping::map(file.get(), 0, 2);
  BOOST_REQUIRE(mapping);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>((*mapping)->data());
  DirtyLog log(std::move(*mapping));
  log.mark(0x1fff, 2);
  BOOST_TEST(bytes[0] == 0x06);
  log.mark(0x8000, 0);
  BOOST_TEST(bytes[1] == 0);
  log.mark(0xf000, UINT64_MAX);
  BOOST_TEST(bytes[1] == 0x80);
  log.mark(UINT64_MAX, UINT64_MAX);
  BOOST_TEST(bytes[2] == 0);
}

}  // namespace
}  // namespace pollux::virtio
