#pragma once
// For tests: a pool with something of everything in it, and what must hold for whatever became of its bytes.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "volume/crash_harness.h"

namespace pollux::volume::test {

// Volumes, snapshots, half-written clusters, an indexed volume and something in the journal. The same bytes each time.
std::vector<std::byte> busy_pool(reactor::Stepper& reactors);

// Changes the payload of the metadata page at this byte of the image and gives it a right checksum.
void forge_page(std::vector<std::byte>& image, std::size_t at, const std::function<void(std::byte* payload)>& change);

// Where in the image metadata pages lie, valid or not.
std::vector<std::size_t> metadata_pages(const std::vector<std::byte>& image);

// Checks, repairs, opens and uses the pool in this image; true when it opened. Throws when a repair left what it should
// have put right. That nothing crashes is the process's to show.
bool survives(const std::vector<std::byte>& image, std::uint64_t seed = 1);

}  // namespace pollux::volume::test
