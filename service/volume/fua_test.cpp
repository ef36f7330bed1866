// What was answered with FUA is there after a power cut: every operation that changes a volume, with every flag, over
// every state that its map can be in, whole clusters and parts of them.
//
//   POLLUX_TEST_SEED      replays a run

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <functional>

#include "volume/crash_harness.h"

using namespace pollux;
using namespace pollux::volume::test;
using bdev::IoOp;
using bdev::IoRequest;

namespace {

constexpr std::uint32_t kClusterBytes = 64 * kKiB;  // of sixteen sub-blocks
constexpr std::uint64_t kVolumeBytes = 4 * kClusterBytes;
// Each draws anew what the cut leaves of the disk's cache.
constexpr std::uint64_t kCuts = 3;

Uuid id_of(std::uint8_t number) {
  Uuid id;
  id.bytes[15] = number;
  return id;
}
const Uuid kVolume = id_of(1);
const Uuid kSnapshot = id_of(2);

struct Operation {
  const char* name;
  IoOp op;
  std::uint8_t flags;
};
const Operation kOperations[] = {
    {"write", IoOp::kWrite, IoRequest::kFua},
    {"unmap", IoOp::kUnmap, IoRequest::kFua},
    {"write zeroes", IoOp::kWriteZeroes, IoRequest::kFua},
    {"write zeroes that may unmap", IoOp::kWriteZeroes, IoRequest::kFua | IoRequest::kMayUnmap},
};
std::ostream& operator<<(std::ostream& out, const Operation& operation) {
  return out << operation.name;
}

bool write(CrashHarness& pool, std::vector<CrashHarness::Extent> extents) {
  return pool.write(kVolume, extents);
}
bool write_all(CrashHarness& pool) {
  return write(pool, {{0, kVolumeBytes}});
}
bool write_some(CrashHarness& pool) {
  return write(pool, {{0, 8192}, {16384, 512}, {60 * kKiB, 12 * kKiB}});
}

struct MapState {
  const char* name;
  std::function<bool(CrashHarness&)> make;
};
const MapState kStates[] = {
    {"never written", [](CrashHarness&) { return true; }},
    {"fully mapped", [](CrashHarness& pool) { return write_all(pool) && pool.flush(kVolume); }},
    {"partly mapped", [](CrashHarness& pool) { return write_some(pool) && pool.flush(kVolume); }},
    {"written a moment ago", [](CrashHarness& pool) { return write_all(pool); }},
    {"written over a moment ago",
     [](CrashHarness& pool) { return write_all(pool) && pool.flush(kVolume) && write_some(pool); }},
    {"unmapped a moment ago",
     [](CrashHarness& pool) {
       return write_all(pool) && pool.flush(kVolume) && pool.unmap(kVolume, {0, kVolumeBytes});
     }},
    {"shared with a snapshot",
     [](CrashHarness& pool) { return write_all(pool) && pool.fork(kVolume, kSnapshot, /*snapshot=*/true); }},
    {"partly mapped, shared with a snapshot",
     [](CrashHarness& pool) { return write_some(pool) && pool.fork(kVolume, kSnapshot, /*snapshot=*/true); }},
    {"partly split off from a snapshot",
     [](CrashHarness& pool) {
       return write_all(pool) && pool.fork(kVolume, kSnapshot, /*snapshot=*/true) && write_some(pool) &&
              pool.flush(kVolume);
     }},
};

struct Range {
  const char* name;
  CrashHarness::Extent extent;
};
const Range kRanges[] = {
    {"a cluster", {0, kClusterBytes}},
    {"clusters", {0, kVolumeBytes}},
    {"a sub-block", {4096, 4096}},
    {"a block", {512, 512}},
    {"from within a sub-block into the next", {7680, 1024}},
    {"from within a cluster into the next", {59 * kKiB + 512, 8 * kKiB}},
};

}  // namespace

BOOST_AUTO_TEST_SUITE(fua)

// On a disk with blocks as small as the volume's, and on one with larger ones.
BOOST_DATA_TEST_CASE(what_was_answered_with_fua_is_there_after_a_power_cut,
                     boost::unit_test::data::make(kOperations) * boost::unit_test::data::make({512U, 4096U}), operation,
                     device_block_bytes) {
  const std::uint64_t seed = test_seed();
  reactor::Stepper reactors(2, seed);
  const auto blank = CrashHarness::formatted(reactors, blob::kMinPoolBytes, kClusterBytes);
  std::uint64_t draw = seed;
  for (const MapState& state : kStates) {
    for (const Range& range : kRanges) {
      BOOST_TEST_CONTEXT(operation.name << " of " << range.name << ", " << state.name) {
        CrashHarness pool(reactors, device_block_bytes);
        pool.open(blank, ++draw);
        BOOST_REQUIRE(pool.create(kVolume, kVolumeBytes) && state.make(pool));
        BOOST_REQUIRE(operation.op == IoOp::kWrite
                          ? pool.write(kVolume, {range.extent}, /*fua=*/true)
                          : pool.clear(kVolume, range.extent, operation.op, operation.flags));
        std::vector<std::vector<std::byte>> left;
        for (std::uint64_t cut = 0; cut < kCuts; ++cut) left.push_back(pool.disk().image_after_power_cut(++draw));
        const auto promised = pool.model();
        for (auto& image : left) {
          pool.model() = promised;
          pool.open(std::move(image), draw);
          BOOST_CHECK_NO_THROW(pool.verify());
        }
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()
