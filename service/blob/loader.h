#pragma once
// Loader: reads pages of the last checkpoint into the state when they are first needed. Home reactor only.

#include <coroutine>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "bdev/bdev.h"
#include "blob/state.h"
#include "reactor/task.h"

namespace pollux::blob {

class Loader {
 public:
  Loader(State& state, bdev::Channel& channel, reactor::Reactor& home, std::uint32_t checksum_seed,
         const std::uint64_t& checkpoint)
      : state_(state), channel_(channel), home_(home), seed_(checksum_seed), checkpoint_(checkpoint) {}

  // The leaf is in memory afterwards, as a damaged one if what was read is no leaf. Many may wait for one. kIoError: it
  // could not be read this time; the next call tries again.
  reactor::Task<Status> leaf(PageNo page);
  // The leaf of a slot of this volume, if it has one.
  reactor::Task<Status> leaf_of(Volume& volume, std::size_t slot);
  // The volume's leaves are known afterwards. kCorrupt, kIoError.
  reactor::Task<Status> index(Volume& volume);
  bool idle() const { return loading_.empty() && loading_index_.empty(); }

 private:
  reactor::Task<Status> index_page(Volume& volume, std::size_t chunk);
  reactor::Task<Status> page(PageNo page, PageType type, void* bytes);

  State& state_;
  bdev::Channel& channel_;
  reactor::Reactor& home_;
  const std::uint32_t seed_;
  const std::uint64_t& checkpoint_;
  struct LeafWaiter;
  std::unordered_map<PageNo, std::vector<LeafWaiter*>> loading_;
  std::unordered_map<VolumeNo, std::vector<std::coroutine_handle<>>> loading_index_;
};

}  // namespace pollux::blob
