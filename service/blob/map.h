#pragma once
// The map of a volume as memory holds it, shared between the home reactor, which alone changes it, and the data path of
// every reactor, which reads it without a lock: one look-up an I/O, at any depth of snapshots.
//
// A volume's LeafTable has a slot for each leaf; a Leaf has an Entry for each cluster. What is unlinked from here is
// destroyed only after a grace period (lanes.h), so a pointer that was found within one call may be followed in it.

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>

#include "blob/format.h"
#include "blob/geometry.h"

namespace pollux::blob {

// One cluster of a volume, decoded. See LeafEntry for the meaning of own, base and bits.
struct MapEntry {
  ClusterNo own = 0;
  ClusterNo base = 0;
  std::uint64_t bits = 0;

  bool full() const { return bits == kAllBits; }
};

// An entry is open, and then the data path may write to `own` in place, or closed, and then writes go to the home
// reactor. A change closes it; only the Publication opens one (publication.h).
class Entry {
 public:
  // Home reactor.
  MapEntry get() const {
    const std::uint64_t word = word_.load(std::memory_order_relaxed);
    return decode(word, bits_.load(std::memory_order_relaxed));
  }
  // Home reactor. Closes it.
  void set(const MapEntry& value) {
    const std::uint64_t word = encode(value);
    const std::uint64_t old = word_.load(std::memory_order_relaxed);
    if (old == word) {
      bits_.store(value.bits, std::memory_order_release);
      return;
    }
    // A reader must not pair the new word with the old bits, nor the other way round. A full entry needs no bits.
    word_.store((old | kChanging) & ~kFull, std::memory_order_release);
    bits_.store(value.bits, std::memory_order_release);
    word_.store(word, std::memory_order_release);
  }
  // Any reactor. The cluster that holds all of `touched()`, a mask of sub-blocks, and, to write, is open. 0: there is
  // none, or read() tells. The mask is asked for only where the cluster is not full.
  template <typename Touched>
  [[gnu::always_inline]] ClusterNo in_place(bool to_write, Touched touched) const {
    const std::uint64_t word = word_.load(std::memory_order_acquire);
    const std::uint64_t closed = to_write ? kClosed : 0;
    if ((word & (kFull | closed)) == kFull) return static_cast<ClusterNo>(word & kClusterMask);
    if ((word & (kChanging | closed)) != 0) return 0;
    const std::uint64_t bits = bits_.load(std::memory_order_acquire);
    if (word_.load(std::memory_order_relaxed) != word) return 0;
    const std::uint64_t sub_blocks = touched();
    const std::uint64_t missing = sub_blocks & ~bits;
    if (missing == 0) return static_cast<ClusterNo>(word & kClusterMask);
    return missing == sub_blocks && !to_write ? static_cast<ClusterNo>((word >> kBaseShift) & kClusterMask) : 0;
  }
  // Any reactor. False: it is changing at this moment; ask the home reactor.
  bool read(MapEntry& value, bool& closed) const {
    const std::uint64_t word = word_.load(std::memory_order_acquire);
    if (word & kChanging) return false;
    closed = (word & kClosed) != 0;
    if (word & kFull) {
      value = decode(word, kAllBits);
      return true;
    }
    const std::uint64_t bits = bits_.load(std::memory_order_acquire);
    if (word_.load(std::memory_order_relaxed) != word) return false;
    value = decode(word, bits);
    return true;
  }

 private:
  friend class Publication;
  bool closed() const { return (word_.load(std::memory_order_relaxed) & kClosed) != 0; }
  void open() { word_.store(word_.load(std::memory_order_relaxed) & ~kClosed, std::memory_order_release); }
  void close() { word_.store(word_.load(std::memory_order_relaxed) | kClosed, std::memory_order_release); }

  static constexpr std::uint64_t kClusterMask = (1ULL << 30) - 1;
  static constexpr unsigned kBaseShift = 30;
  static constexpr std::uint64_t kChanging = 1ULL << 61;
  static constexpr std::uint64_t kClosed = 1ULL << 62;
  // Not while it changes. The sign, which is the cheapest bit to look at.
  static constexpr std::uint64_t kFull = 1ULL << 63;

  static std::uint64_t encode(const MapEntry& value) {
    return std::uint64_t{value.own} | (std::uint64_t{value.base} << kBaseShift) | (value.full() ? kFull : 0) |
           (value.own != 0 ? kClosed : 0);
  }
  static MapEntry decode(std::uint64_t word, std::uint64_t bits) {
    return {.own = static_cast<ClusterNo>(word & kClusterMask),
            .base = static_cast<ClusterNo>((word >> kBaseShift) & kClusterMask),
            .bits = bits};
  }

  std::atomic<std::uint64_t> word_{0};
  std::atomic<std::uint64_t> bits_{0};
};

// Aligned so that an entry lies in one cache line.
struct alignas(64) Leaf {
  Entry entries[kLeafEntries];
  // The page could not be read or made no sense: I/O through it fails, nothing is written to it. Its entries are empty.
  bool damaged = false;
};

// A slot: 0 for no leaf (zeros), kNotLoaded, or a Leaf*, with kClosedTag when nothing of the leaf may be written in place
// through this volume, whatever its entries say.
inline constexpr std::uintptr_t kClosedTag = 1;
inline constexpr std::uintptr_t kNotLoaded = 2;

struct LeafTable {
  explicit LeafTable(std::size_t leaf_count)
      : count(leaf_count), slots(std::make_unique<std::atomic<std::uintptr_t>[]>(leaf_count)) {}
  std::size_t count;
  std::unique_ptr<std::atomic<std::uintptr_t>[]> slots;
};

// An open volume as the data path sees it.
struct VolumeView {
  // Where all of `touched()`, a mask of sub-blocks of cluster `index`, lies and, to write, may be written in place. 0:
  // there is no such cluster, or another look is needed to tell.
  template <typename Touched>
  [[gnu::always_inline]] ClusterNo in_place(std::uint32_t index, bool to_write, Touched touched) const {
    if (to_write && frozen.load(std::memory_order_acquire)) return 0;
    const std::uintptr_t at =
        table.load(std::memory_order_acquire)->slots[index / kLeafEntries].load(std::memory_order_acquire);
    if (at == 0 || at == kNotLoaded || (to_write && (at & kClosedTag) != 0)) return 0;
    const auto* leaf = reinterpret_cast<const Leaf*>(at & ~kClosedTag);
    return leaf->entries[index % kLeafEntries].in_place(to_write, touched);
  }

  std::atomic<std::uint64_t> size_bytes{0};
  std::atomic<LeafTable*> table{nullptr};
  // Writes go to the home reactor, which holds them back: a snapshot is being taken.
  std::atomic<bool> frozen{false};
  std::unique_ptr<LeafTable> owned_table;
};

}  // namespace pollux::blob
