#include "blob/loader.h"

#include "base/log.h"
#include "blob/aligned_buffer.h"
#include "blob/page_codec.h"
#include "blob/parallel.h"

namespace pollux::blob {

namespace {

constexpr std::size_t kIndexReads = 16;

struct Enlist {
  std::vector<std::coroutine_handle<>>& waiters;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> self) { waiters.push_back(self); }
  void await_resume() const noexcept {}
};

template <typename Map, typename Key>
void wake_all(Map& map, Key key) {
  auto waiters = std::move(map.at(key));
  map.erase(key);
  for (auto waiter : waiters) waiter.resume();
}

}  // namespace

reactor::Task<Status> Loader::page(PageNo number, PageType type, void* bytes) {
  const std::uint64_t offset = state_.pages.slot_offset(number, state_.pages.valid_slot(number));
  const auto status = co_await bdev::read(channel_, offset, bytes, kPageBytes);
  if (status != bdev::IoStatus::kOk) {
    co_return bdev::to_status(status, "read of metadata page " + std::to_string(number));
  }
  if (!page_valid(bytes, type, number, checkpoint_, seed_)) {
    co_return fail(ErrorCode::kCorrupt,
                   "metadata page " + std::to_string(number) + " at byte " + std::to_string(offset) + " is damaged");
  }
  co_return Status{};
}

// A caller that waits for a leaf that another reads.
struct Loader::LeafWaiter {
  reactor::Completion<Status> read;
};

reactor::Task<Status> Loader::leaf(PageNo number) {
  if (state_.leaf(number) != nullptr) co_return Status{};
  if (auto found = loading_.find(number); found != loading_.end()) {
    LeafWaiter waiter;
    found->second.push_back(&waiter);
    co_return co_await waiter.read;
  }
  loading_.try_emplace(number);
  AlignedBuffer bytes(kPageBytes);
  Status read = co_await page(number, PageType::kLeaf, bytes.data());
  if (read) {
    state_.load_leaf(number, *reinterpret_cast<const LeafPage*>(bytes.data()));
    if (state_.leaf(number)->damaged) log::error("metadata page {} is a leaf that names impossible clusters", number);
  } else if (read.error().code == ErrorCode::kCorrupt) {
    log::error("{}; the part of the volumes it maps cannot be read or written", read.error().message);
    state_.load_damaged_leaf(number);
    read = Status{};
  } else {
    log::error("{}; it is read again when it is needed next", read.error().message);
  }
  const auto waiters = std::move(loading_.at(number));
  loading_.erase(number);
  for (LeafWaiter* waiter : waiters) waiter->read.set(read);
  co_return read;
}

reactor::Task<Status> Loader::leaf_of(Volume& volume, std::size_t slot) {
  // While this waited another volume may have dropped the leaf, or a copy may have taken its place.
  while (volume.leaves[slot] != 0 && state_.leaf(volume.leaves[slot]) == nullptr) {
    POLLUX_CO_TRY(co_await leaf(volume.leaves[slot]));
  }
  co_return Status{};
}

reactor::Task<Status> Loader::index_page(Volume& volume, std::size_t chunk) {
  const PageNo number = volume.index_pages[chunk];
  if (number == 0) co_return Status{};
  AlignedBuffer bytes(kPageBytes);
  POLLUX_CO_TRY(co_await page(number, PageType::kIndex, bytes.data()));
  co_return state_.load_index(volume, chunk, reinterpret_cast<const IndexPage*>(bytes.data())->pages);
}

reactor::Task<Status> Loader::index(Volume& volume) {
  while (!volume.index_loaded) {
    if (auto found = loading_index_.find(volume.number); found != loading_index_.end()) {
      co_await Enlist{found->second};
      continue;
    }
    loading_index_.try_emplace(volume.number);
    auto loaded = co_await parallel(home_, volume.index_pages.size(), kIndexReads,
                                    [this, &volume](std::size_t chunk) { return index_page(volume, chunk); });
    volume.index_loaded = loaded.has_value();
    wake_all(loading_index_, volume.number);
    if (!loaded) co_return loaded;
  }
  co_return Status{};
}

}  // namespace pollux::blob
