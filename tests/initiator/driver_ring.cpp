#include "initiator/driver_ring.h"

#include <atomic>
#include <stdexcept>
#include <utility>

namespace pollux::initiator {
namespace {

template <typename T>
T load(const T* p) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
template <typename T>
void store(T* p, T value) {
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
}
void fence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

// VIRTIO 1.2 2.7.
class SplitRing final : public DriverRing {
 public:
  SplitRing(GuestRam& ram, const RingOptions& options) : DriverRing(ram, options) {
    const std::size_t size = options.size;
    desc_ = ram.allocate(16 * size, 16);
    driver_ = ram.allocate(6 + 2 * size, 64);
    device_ = ram.allocate(6 + 8 * size, 64);
    if (options.indirect) tables_ = ram.allocate(size * kTableEntries * 16, 64);
    cookies_.resize(size);
    for (std::uint16_t i = options.size; i-- > 0;) free_.push_back(i);
  }

  bool add(std::span<const Segment> segments, std::uint64_t cookie) override {
    const bool table = options_.indirect && segments.size() > 1;
    const std::size_t needed = table ? 1 : segments.size();
    if (segments.empty() || free_.size() < needed || (table && segments.size() > kTableEntries)) return false;
    std::uint16_t head = free_.back();
    if (table) {
      free_.pop_back();
      auto* entries = reinterpret_cast<SplitDesc*>(tables_ + head * kTableEntries * 16);
      for (std::size_t i = 0; i < segments.size(); ++i) {
        const bool last = i + 1 == segments.size();
        entries[i] = {segments[i].guest_addr, segments[i].length, flags(segments[i], last),
                      static_cast<std::uint16_t>(last ? 0 : i + 1)};
      }
      descs()[head] = {ram_.guest_addr(entries), static_cast<std::uint32_t>(16 * segments.size()), kDescIndirect, 0};
    } else {
      std::uint16_t index = head;
      for (std::size_t i = 0; i < segments.size(); ++i) {
        free_.pop_back();
        const bool last = i + 1 == segments.size();
        const std::uint16_t next = last ? 0 : free_.back();
        descs()[index] = {segments[i].guest_addr, segments[i].length, flags(segments[i], last), next};
        index = next;
      }
    }
    cookies_[head] = cookie;
    avail()[2 + avail_idx_ % options_.size] = head;
    ++avail_idx_;
    ++in_flight_;
    return true;
  }

  bool show() override {
    const std::uint16_t old = load(&avail()[1]);
    if (old == avail_idx_) return false;
    store(&avail()[1], avail_idx_);
    fence();
    if (!options_.event_idx) return !(load(&used()[0]) & 1);
    const std::uint16_t event = load(&used()[2 + 4 * options_.size]);
    return static_cast<std::uint16_t>(avail_idx_ - event - 1) < static_cast<std::uint16_t>(avail_idx_ - old);
  }

  std::optional<Completion> take() override {
    if (load(&used()[1]) == used_idx_) return std::nullopt;
    const auto* elem = reinterpret_cast<const std::uint32_t*>(&used()[2]) + 2 * (used_idx_ % options_.size);
    const std::uint32_t id = load(&elem[0]);
    const std::uint32_t written = load(&elem[1]);
    if (id >= options_.size || in_flight_ == 0)
      throw std::runtime_error("the device answered a request that was never made");
    ++used_idx_;
    --in_flight_;
    std::uint16_t index = static_cast<std::uint16_t>(id);
    while (true) {
      const SplitDesc desc = descs()[index];
      free_.push_back(index);
      if (!(desc.flags & kDescNext)) break;
      index = desc.next;
    }
    return Completion{cookies_[id], written};
  }

  bool want_call() override {
    if (options_.event_idx) {
      store(&avail()[2 + options_.size], used_idx_);
    } else {
      store(&avail()[0], std::uint16_t{0});
    }
    fence();
    return load(&used()[1]) == used_idx_;
  }
  void no_calls() override {
    if (!options_.event_idx) store(&avail()[0], std::uint16_t{1});
  }
  std::uint32_t base() const override { return load(&used()[1]); }

 private:
  static std::uint16_t flags(const Segment& segment, bool last) {
    return static_cast<std::uint16_t>((segment.device_writes ? kDescWrite : 0) | (last ? 0 : kDescNext));
  }
  SplitDesc* descs() const { return reinterpret_cast<SplitDesc*>(desc_); }
  std::uint16_t* avail() const { return reinterpret_cast<std::uint16_t*>(driver_); }
  std::uint16_t* used() const { return reinterpret_cast<std::uint16_t*>(device_); }

  std::vector<std::uint16_t> free_;
  std::vector<std::uint64_t> cookies_;
  std::uint16_t avail_idx_ = 0;
  std::uint16_t used_idx_ = 0;
};

// VIRTIO 1.2 2.8.
class PackedRing final : public DriverRing {
 public:
  PackedRing(GuestRam& ram, const RingOptions& options) : DriverRing(ram, options), requests_(options.size) {
    desc_ = ram.allocate(16 * std::size_t{options.size}, 16);
    driver_ = ram.allocate(4, 64);
    device_ = ram.allocate(4, 64);
    if (options.indirect) tables_ = ram.allocate(options.size * kTableEntries * 16, 64);
    for (std::uint16_t i = options.size; i-- > 0;) free_ids_.push_back(i);
    room_ = options.size;
  }

  bool add(std::span<const Segment> segments, std::uint64_t cookie) override {
    const bool table = options_.indirect && segments.size() > 1;
    const std::size_t needed = table ? 1 : segments.size();
    if (segments.empty() || room_ < needed || free_ids_.empty() || (table && segments.size() > kTableEntries))
      return false;
    const std::uint16_t id = free_ids_.back();
    free_ids_.pop_back();
    requests_[id] = {cookie, static_cast<std::uint16_t>(needed)};
    const std::uint16_t head = next_;
    const std::uint16_t head_bits = bits();
    std::uint16_t head_flags = 0;
    if (table) {
      auto* entries = reinterpret_cast<PackedDesc*>(tables_ + id * kTableEntries * 16);
      for (std::size_t i = 0; i < segments.size(); ++i) {
        entries[i] = {segments[i].guest_addr, segments[i].length, 0,
                      static_cast<std::uint16_t>(segments[i].device_writes ? kDescWrite : 0)};
      }
      descs()[next_].addr = ram_.guest_addr(entries);
      descs()[next_].len = static_cast<std::uint32_t>(16 * segments.size());
      descs()[next_].id = id;
      head_flags = kDescIndirect;
      advance();
    } else {
      for (std::size_t i = 0; i < segments.size(); ++i) {
        const bool last = i + 1 == segments.size();
        const auto flags =
            static_cast<std::uint16_t>((segments[i].device_writes ? kDescWrite : 0) | (last ? 0 : kDescNext));
        descs()[next_].addr = segments[i].guest_addr;
        descs()[next_].len = segments[i].length;
        descs()[next_].id = id;
        if (i == 0) {
          head_flags = flags;
        } else {
          store(&descs()[next_].flags, static_cast<std::uint16_t>(flags | bits()));
        }
        advance();
      }
    }
    // The head's flags make the whole chain visible, so they wait for show(), and earlier chains go first.
    pending_.push_back({head, static_cast<std::uint16_t>(head_flags | head_bits)});
    room_ -= needed;
    ++in_flight_;
    return true;
  }

  bool show() override {
    if (pending_.empty()) return false;
    for (const auto& [index, flags] : pending_) store(&descs()[index].flags, flags);
    pending_.clear();
    fence();
    return (load(&device_event()[1]) & 3) != 1;
  }

  std::optional<Completion> take() override {
    const std::uint16_t flags = load(&descs()[used_].flags);
    const bool avail = flags & kDescAvail;
    const bool used = flags & kDescUsed;
    if (avail != used || used != used_wrap_ || in_flight_ == 0) return std::nullopt;
    const std::uint16_t id = load(&descs()[used_].id);
    const std::uint32_t written = load(&descs()[used_].len);
    if (id >= options_.size || requests_[id].entries == 0)
      throw std::runtime_error("the device answered a request that was never made");
    const std::uint16_t entries = std::exchange(requests_[id].entries, std::uint16_t{0});
    used_ += entries;
    if (used_ >= options_.size) {
      used_ -= options_.size;
      used_wrap_ = !used_wrap_;
    }
    room_ += entries;
    --in_flight_;
    free_ids_.push_back(id);
    return Completion{requests_[id].cookie, written};
  }

  bool want_call() override {
    if (options_.event_idx) {
      store(&driver_event()[0], static_cast<std::uint16_t>(used_ | (used_wrap_ ? 0x8000 : 0)));
      store(&driver_event()[1], std::uint16_t{2});
    } else {
      store(&driver_event()[1], std::uint16_t{0});
    }
    fence();
    const std::uint16_t flags = load(&descs()[used_].flags);
    const bool avail = flags & kDescAvail;
    const bool used = flags & kDescUsed;
    return in_flight_ == 0 || avail != used || used != used_wrap_;
  }
  void no_calls() override { store(&driver_event()[1], std::uint16_t{1}); }
  std::uint32_t base() const override { return 0x80008000; }

 private:
  struct Request {
    std::uint64_t cookie = 0;
    std::uint16_t entries = 0;
  };
  std::uint16_t bits() const { return wrap_ ? kDescAvail : kDescUsed; }
  void advance() {
    if (++next_ == options_.size) {
      next_ = 0;
      wrap_ = !wrap_;
    }
  }
  PackedDesc* descs() const { return reinterpret_cast<PackedDesc*>(desc_); }
  std::uint16_t* driver_event() const { return reinterpret_cast<std::uint16_t*>(driver_); }
  std::uint16_t* device_event() const { return reinterpret_cast<std::uint16_t*>(device_); }

  std::vector<Request> requests_;
  std::vector<std::uint16_t> free_ids_;
  std::vector<std::pair<std::uint16_t, std::uint16_t>> pending_;
  std::size_t room_ = 0;
  std::uint16_t next_ = 0;
  bool wrap_ = true;
  std::uint16_t used_ = 0;
  bool used_wrap_ = true;
};

}  // namespace

std::unique_ptr<DriverRing> DriverRing::make(GuestRam& ram, const RingOptions& options) {
  if (options.packed) return std::make_unique<PackedRing>(ram, options);
  return std::make_unique<SplitRing>(ram, options);
}

VringAddr DriverRing::addresses(std::uint32_t index) const {
  return {.index = index,
          .flags = 0,
          .desc_user_addr = reinterpret_cast<std::uint64_t>(desc_),
          .used_user_addr = reinterpret_cast<std::uint64_t>(device_),
          .avail_user_addr = reinterpret_cast<std::uint64_t>(driver_),
          .log_guest_addr = ram_.guest_addr(device_)};
}

}  // namespace pollux::initiator
