#pragma once
// DriverRing: the driver's side of a virtqueue, split or packed, in guest memory. One thread.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "initiator/guest_ram.h"

namespace pollux::initiator {

// A piece of a request by guest address; readable pieces come first.
struct Segment {
  std::uint64_t guest_addr;
  std::uint32_t length;
  bool device_writes;
};

struct Completion {
  std::uint64_t cookie;
  std::uint32_t written;
};

struct RingOptions {
  std::uint16_t size = 128;
  bool packed = false;
  bool event_idx = false;
  // Puts chains of more than one piece into indirect tables.
  bool indirect = false;
};

class DriverRing {
 public:
  static std::unique_ptr<DriverRing> make(GuestRam& ram, const RingOptions& options);
  virtual ~DriverRing() = default;

  // False when there is no room. Not seen by the device before show().
  virtual bool add(std::span<const Segment> segments, std::uint64_t cookie) = 0;
  // True: the device wants a kick.
  virtual bool show() = 0;
  virtual std::optional<Completion> take() = 0;
  // Asks for an interrupt at the next completion; false when one is there already.
  virtual bool want_call() = 0;
  virtual void no_calls() = 0;
  // What SET_VRING_BASE gets when a device starts on this ring, or starts again after it died without a word.
  virtual std::uint32_t base() const = 0;

  // Where its parts are, as SET_VRING_ADDR names them.
  VringAddr addresses(std::uint32_t index) const;
  std::uint16_t size() const { return options_.size; }
  std::size_t in_flight() const { return in_flight_; }

 protected:
  DriverRing(GuestRam& ram, const RingOptions& options) : ram_(ram), options_(options) {}

  GuestRam& ram_;
  RingOptions options_;
  std::byte* desc_ = nullptr;
  std::byte* driver_ = nullptr;
  std::byte* device_ = nullptr;
  // One table a ring entry, each of kTableEntries.
  static constexpr std::size_t kTableEntries = 136;
  std::byte* tables_ = nullptr;
  std::size_t in_flight_ = 0;
};

}  // namespace pollux::initiator
