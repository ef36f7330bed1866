#pragma once
// Room on the device for what the pool cannot do without: superblock, journal, reference counts and metadata clusters.
// A pool's file may be sparse, and the file system under it full: a guest's write then fails alone, but one of these
// fails the pool. So their room is taken when they come to be.

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "bdev/bdev.h"
#include "blob/geometry.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::blob {

struct ByteRange {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

// The reference counts of zones [first, ...), and with zone 0 what lies before them.
std::vector<ByteRange> system_ranges(const Geometry& geometry, std::uint32_t first_zone);
// Clusters in ascending order, neighbours together.
std::vector<ByteRange> ranges_of(const Geometry& geometry, const std::vector<ClusterNo>& clusters);

// Room for a range that holds nothing yet: where the file system cannot promise it, zeros are written. kNoSpace,
// kIoError.
reactor::Task<Status> reserve_new(bdev::Bdev& device, bdev::Channel& channel, reactor::Reactor& home, ByteRange range);
// Room for ranges in use. Where the file system cannot promise it they stay as they are, without an error.
reactor::Task<Status> reserve_used(bdev::Bdev& device, reactor::Reactor& home, std::vector<ByteRange> ranges);

}  // namespace pollux::blob
