#pragma once
// Seals and checks metadata pages: magic, type, number, generation, checksum. Pure functions; any thread.

#include <cstdint>

#include "base/result.h"
#include "blob/format.h"

namespace pollux::blob {

// Every checksum of a pool is seeded with this, so what another pool left on the device never passes.
std::uint32_t checksum_seed(const Uuid& pool_id);

// Fills in the header of a page whose payload is complete.
void seal_page(void* page, PageType type, std::uint64_t number, std::uint64_t generation, std::uint32_t seed);

// True when the page is one of ours, of this type and number, intact, and not newer than `newest_generation`.
bool page_valid(const void* page, PageType type, std::uint64_t number, std::uint64_t newest_generation,
                std::uint32_t seed);

// True when the page is intact but was written by a checkpoint after `newest_generation`, one that never completed.
bool page_from_future(const void* page, PageType type, std::uint64_t number, std::uint64_t newest_generation,
                      std::uint32_t seed);

void seal_super(Superblock& super);
// kCorrupt: not a superblock, or damaged, or a field out of range. kUnsupported: a version or feature this build does
// not know; the message names it. device_bytes bounds what the fields may claim.
Status check_super(const Superblock& super, std::uint64_t device_bytes);

}  // namespace pollux::blob
