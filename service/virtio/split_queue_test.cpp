// What a split queue makes of its guest's descriptors: the same pieces, whichever way they are gathered.
#include "virtio/split_queue.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <string>
#include <vector>

namespace pollux::virtio {
namespace {

using namespace protocol;

constexpr std::uint16_t kSize = 16;
constexpr std::uint64_t kRegionBytes = 64 << 10;
constexpr std::uint64_t kGuestBase = 0x1000;
// In the guest the second region follows the first, in this process it does not.
constexpr std::uint64_t kSecond = kGuestBase + kRegionBytes;
constexpr std::uint64_t kUserBase = 0x7000'0000;
constexpr std::uint64_t kAvail = 0x1000;
constexpr std::uint64_t kUsed = 0x2000;
constexpr std::uint64_t kTable = 0x3000;
constexpr std::uint32_t kMaxPieces = 8;

struct Guest {
  Guest() {
    std::vector<std::shared_ptr<const Region>> regions;
    for (std::uint64_t i = 0; i < 2; ++i) {
      const UniqueFd file(::memfd_create("guest", MFD_CLOEXEC));
      BOOST_REQUIRE(::ftruncate(file.get(), kRegionBytes) == 0);
      auto region = map_region({.guest_addr = kGuestBase + i * kRegionBytes,
                                .size_bytes = kRegionBytes,
                                .user_addr = kUserBase + 2 * i * kRegionBytes,
                                .file_offset = 0},
                               file);
      BOOST_REQUIRE(region);
      memory[i] = (*region)->mapping->data();
      regions.push_back(std::move(*region));
    }
    QueueSetup setup{.size = kSize,
                     .indirect = true,
                     .desc_user_addr = kUserBase,
                     .driver_user_addr = kUserBase + kAvail,
                     .device_user_addr = kUserBase + kUsed,
                     .memory = GuestMemory::make(std::move(regions)).value()};
    queue = SplitQueue::create(std::move(setup)).value();
  }

  // Writes a chain into a table and shows its head, which is 0.
  void show(const std::vector<SplitDesc>& chain, bool indirect) {
    auto* ring = reinterpret_cast<SplitDesc*>(memory[0]);
    auto* table = indirect ? reinterpret_cast<SplitDesc*>(memory[0] + kTable) : ring;
    for (std::size_t i = 0; i < chain.size(); ++i) {
      table[i] = chain[i];
      table[i].next = static_cast<std::uint16_t>(i + 1);
      if (i + 1 < chain.size()) table[i].flags |= kDescNext;
    }
    const auto bytes = static_cast<std::uint32_t>(chain.size() * sizeof(SplitDesc));
    if (indirect) ring[0] = {kGuestBase + kTable, bytes, kDescIndirect, 0};
    auto* avail = reinterpret_cast<std::uint16_t*>(memory[0] + kAvail);
    ++avail[1];
  }
  bool pop() {
    pieces.count = 0;
    BOOST_REQUIRE(queue->look() == 1U);
    return queue->pop(chain, pieces);
  }
  // Where it lies in this process.
  std::byte* at(std::uint64_t addr) const {
    const std::uint64_t offset = addr - kGuestBase;
    return memory[offset / kRegionBytes] + offset % kRegionBytes;
  }
  void check_pieces(const std::vector<std::pair<std::uint64_t, std::size_t>>& expected) const {
    BOOST_REQUIRE(pieces.count == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      BOOST_TEST(pieces.items[i].iov_base == at(expected[i].first));
      BOOST_TEST(pieces.items[i].iov_len == expected[i].second);
    }
  }
  void check_broken(const std::vector<SplitDesc>& wrong, bool indirect, const std::string& why) {
    show(wrong, indirect);
    BOOST_TEST(!pop());
    BOOST_REQUIRE(queue->broken());
    BOOST_TEST(queue->broken_reason() == why);
  }

  std::array<std::byte*, 2> memory{};
  std::unique_ptr<Virtqueue> queue;
  std::array<iovec, kMaxPieces> items{};
  IovecList pieces{items.data(), kMaxPieces, 0};
  Chain chain;
};

constexpr std::uint64_t kHere = kGuestBase + 0x8000;
constexpr std::uint64_t kThere = kSecond + 0x8000;

}  // namespace

BOOST_AUTO_TEST_CASE(a_chain_may_go_from_region_to_region) {
  for (const bool indirect : {false, true}) {
    Guest guest;
    // Twice: what the queue remembers of the first chain must not be believed of the second.
    for (int i = 0; i < 2; ++i) {
      guest.show(
          {{kThere, 16, 0, 0}, {kHere, 512, 0, 0}, {kThere + 512, 4096, kDescWrite, 0}, {kHere, 1, kDescWrite, 0}},
          indirect);
      BOOST_REQUIRE(guest.pop());
      guest.check_pieces({{kThere, 16}, {kHere, 512}, {kThere + 512, 4096}, {kHere, 1}});
      BOOST_TEST(!guest.chain.faulty);
      BOOST_TEST(guest.chain.readable == 2U);
      BOOST_TEST(guest.chain.writable == 2U);
      BOOST_TEST(guest.chain.readable_bytes == 528U);
      BOOST_TEST(guest.chain.writable_bytes == 4097U);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_range_across_regions_is_two_pieces) {
  Guest guest;
  guest.show({{kHere, 16, 0, 0}, {kSecond - 100, 512, kDescWrite, 0}}, false);
  BOOST_REQUIRE(guest.pop());
  guest.check_pieces({{kHere, 16}, {kSecond - 100, 100}, {kSecond, 412}});
  BOOST_TEST(guest.chain.readable == 1U);
  BOOST_TEST(guest.chain.writable == 2U);
  BOOST_TEST(guest.chain.writable_bytes == 512U);
}

BOOST_AUTO_TEST_CASE(a_descriptor_of_no_length_is_no_piece) {
  Guest guest;
  guest.show({{kHere, 16, 0, 0}, {kThere, 0, kDescWrite, 0}, {kHere + 16, 8, 0, 0}, {kThere, 1, kDescWrite, 0}}, false);
  BOOST_REQUIRE(guest.pop());
  guest.check_pieces({{kHere, 16}, {kHere + 16, 8}, {kThere, 1}});
  BOOST_TEST(guest.chain.readable == 2U);
  BOOST_TEST(guest.chain.readable_bytes == 24U);
}

BOOST_AUTO_TEST_CASE(what_is_nowhere_makes_the_chain_faulty_and_no_other) {
  Guest guest;
  guest.show({{kHere, 16, 0, 0}, {kSecond + kRegionBytes - 8, 16, kDescWrite, 0}}, false);
  BOOST_REQUIRE(guest.pop());
  BOOST_TEST(guest.chain.faulty);
  BOOST_TEST(guest.pieces.items[1].iov_base == static_cast<void*>(nullptr));
  guest.show({{kHere, 16, 0, 0}}, false);
  BOOST_REQUIRE(guest.pop());
  BOOST_TEST(!guest.chain.faulty);
  BOOST_TEST(guest.chain.readable == 1U);
  BOOST_TEST(guest.chain.writable == 0U);
}

BOOST_AUTO_TEST_CASE(chains_that_break_the_rules_break_the_queue) {
  Guest().check_broken({{kHere, 1, kDescWrite, 0}, {kHere, 1, 0, 0}}, false,
                       "a readable descriptor after a writable one");
  Guest().check_broken(std::vector<SplitDesc>(kMaxPieces + 1, {kHere, 1, 0, 0}), false,
                       "more pieces than a request may have");
  Guest().check_broken({{kHere, 16, 0, 0}, {kGuestBase + kTable, 16, kDescIndirect, 0}}, true,
                       "an indirect table within an indirect table");
  // The ring's own table, which then leads to itself.
  Guest().check_broken({{kGuestBase, 16, kDescIndirect, 0}}, false, "an indirect table within an indirect table");
  Guest().check_broken({{kHere, UINT32_MAX, 0, 0}, {kHere, UINT32_MAX, 0, 0}}, false, "a chain of more than 4 GiB");
}

}  // namespace pollux::virtio
