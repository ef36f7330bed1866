#pragma once
// A volume (or snapshot, which is a read-only one) in memory: its record, its leaves, and what is going on with it.
// Home reactor only, but for `view`.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "blob/format.h"
#include "blob/home_io.h"
#include "blob/map.h"

namespace pollux::blob {

struct Volume {
  VolumeNo number = 0;
  Uuid id;
  Uuid parent_id;
  std::string name;
  std::uint64_t size_bytes = 0;
  std::int64_t created_ms = 0;
  std::uint8_t flags = 0;
  std::uint8_t block_shift = 0;
  Qos qos{};
  Bursts bursts{};
  std::uint32_t mapped = 0;
  std::uint32_t charged = 0;

  // Page numbers of the leaves, once they are known: index pages are read at first use.
  std::vector<PageNo> leaves;
  std::vector<PageNo> index_pages;
  bool index_loaded = true;

  // While open.
  std::unique_ptr<VolumeView> view;
  std::uint32_t opens = 0;
  // I/O held back while view->frozen, oldest first.
  HomeIoList parked;
  // False until the record that made it is known to be durable.
  bool durable = true;
  // Of Store's losses: how many its user was told of.
  std::uint64_t losses_told = 0;
  // A job or a structural change is at work on it; delete and its like answer kBusy.
  bool pinned = false;

  // Goes on for those who use `from`.
  void take_users(Volume& from) {
    view = std::move(from.view);
    opens = from.opens;
    losses_told = from.losses_told;
  }
  // Of its logical blocks, on a device with blocks of so many.
  std::uint32_t block_bytes(std::uint32_t device_block_bytes) const {
    return block_shift != 0 ? 1U << block_shift : std::max(kSectorBytes, device_block_bytes);
  }
  bool snapshot() const { return flags & kVolumeSnapshot; }
  bool thick() const { return flags & kVolumeThick; }
  bool deleting() const { return flags & kVolumeDeleting; }
  bool indexed() const { return leaves.size() > kRoots; }
};

}  // namespace pollux::blob
