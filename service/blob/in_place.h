#pragma once
// InPlace: in which condition a cluster of a volume's own is with respect to writes in place, as one table: condition by
// event. The Publication, which owns that decision, makes all of its moves by it.
//
// In one condition alone, kOpen, the data path of every reactor writes to the cluster without asking. In all others its
// writes come to the home reactor. A move may depend on one fact of the metadata, whether the volume is `alone` with
// the cluster (Sharing::kAlone): a cluster that is not is never opened.
//
// Two conditions stand above all clusters of a leaf or of a volume, and are kept in the volume's view: a leaf that
// several volumes have, and a volume of which a snapshot is being taken, see map.h.

#include <array>
#include <cstddef>
#include <cstdint>

namespace pollux::blob {

enum class InPlace : std::uint8_t {
  kOpen,             // the data path writes in place
  kClosed,           // the metadata has to be looked at: another map may name the cluster, or did
  kHeld,             // an operation at home replaces the cluster, or changes a part of a block of it
  kUncommitted,      // a kill of the process would forget the map entry, and with it what is written in place meanwhile
  kHeldUncommitted,  // both
};
inline constexpr std::size_t kInPlaceConditions = 5;

enum class InPlaceEvent : std::uint8_t {
  kLoaded,     // its leaf came into memory
  kCopied,     // its leaf was copied, and another names the cluster too
  kKept,       // its entry changed, by a record that a kill of the process does not forget
  kQueued,     // its entry changed, by one that a kill forgets until it is committed
  kCommitted,  // of such records the last is on the device
  kLost,       // of such records the last will not be on the device
  kHold,       // an operation begins that has the cluster for itself
  kRelease,    // it ends
  kLooked,     // a write in place came home, and the metadata allows it
};
inline constexpr std::size_t kInPlaceEvents = 9;

struct InPlaceMove {
  InPlace if_alone;
  InPlace otherwise;
  // The event does not come in this condition.
  bool impossible = false;

  constexpr bool depends() const { return if_alone != otherwise; }
  constexpr InPlace next(bool alone) const { return alone ? if_alone : otherwise; }
};

namespace in_place {

constexpr InPlaceMove to(InPlace condition) {
  return {condition, condition};
}
constexpr InPlaceMove open_if_alone() {
  return {InPlace::kOpen, InPlace::kClosed};
}
constexpr InPlaceMove never(InPlace stays) {
  return {stays, stays, true};
}

using Row = std::array<InPlaceMove, kInPlaceEvents>;
using enum InPlace;

// Columns as InPlaceEvent has them: loaded, copied, kept, queued, committed, lost, hold, release, looked.
inline constexpr std::array<Row, kInPlaceConditions> kMoves = {{
    // kOpen. A leaf that is loaded has all entries closed.
    {never(kOpen), to(kClosed), open_if_alone(), to(kUncommitted), never(kOpen), never(kOpen), to(kHeld),
     never(kOpen), to(kOpen)},
    // kClosed
    {open_if_alone(), to(kClosed), open_if_alone(), to(kUncommitted), never(kClosed), never(kClosed), to(kHeld),
     never(kClosed), open_if_alone()},
    // kHeld. Other writes wait in line behind the operation.
    {never(kHeld), to(kHeld), to(kHeld), to(kHeldUncommitted), never(kHeld), never(kHeld), never(kHeld),
     open_if_alone(), never(kHeld)},
    // kUncommitted. A later record that a kill does not forget leaves the earlier ones as they are.
    {never(kUncommitted), to(kUncommitted), to(kUncommitted), to(kUncommitted), open_if_alone(), to(kClosed),
     to(kHeldUncommitted), never(kUncommitted), to(kUncommitted)},
    // kHeldUncommitted
    {never(kHeldUncommitted), to(kHeldUncommitted), to(kHeldUncommitted), to(kHeldUncommitted), to(kHeld), to(kHeld),
     never(kHeldUncommitted), to(kUncommitted), never(kHeldUncommitted)},
}};

}  // namespace in_place

constexpr const InPlaceMove& in_place_move(InPlace from, InPlaceEvent event) {
  return in_place::kMoves[static_cast<std::size_t>(from)][static_cast<std::size_t>(event)];
}

}  // namespace pollux::blob
