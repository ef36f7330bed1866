#pragma once
// VolumeChannel: the data path of one volume on one reactor.
//
// A request that lies in one place goes to the pool's device itself; any other is cut where the map says so and its
// pieces go there: one look-up a cluster, no lock, no allocation, no copy. What would change the map (a first write, an
// unmap) or needs a leaf from the device goes to the pool's home reactor and comes back as a completion. What it keeps
// with a request is in a frame of it.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "bdev/bdev.h"
#include "blob/store.h"
#include "volume/io_slots.h"

namespace pollux::volume {

class VolumeBdev;

// Written by one reactor, read by anybody.
class Counter {
 public:
  void add(std::uint64_t n) { value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  std::uint64_t get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

inline constexpr std::size_t kLatencyBuckets = 26;

struct ChannelCounters {
  struct Transfers {
    Counter ops, bytes;
    // Bucket i: below 2^i us. One request in kLatencySample is timed and counts for all of them.
    Counter latency[kLatencyBuckets];
  };
  Counter errors, flush_ops, unmap_ops;
  Transfers reads, writes;
};
inline constexpr std::uint64_t kLatencySample = 16;

class VolumeChannel : public bdev::Channel {
  // Frames of a request, which has one of them at a time. Of one that is cut into pieces:
  struct Progress {
    VolumeChannel* channel;
    std::uint64_t cursor;      // bytes handed out so far
    std::uint64_t started_ns;  // 0: not timed
    std::uint64_t iov_offset;  // where `cursor` is in the iovecs
    std::uint32_t iov_index;
    std::uint32_t outstanding;  // pieces under way, plus one while the request is being cut
    bdev::IoStatus status;
    bool synced;  // the flush that is asked for, by itself or with FUA, was started
  };
  // Of one that went straight to the device:
  struct Forwarded {
    VolumeChannel* channel;
    void (*complete)(bdev::IoRequest&);
    std::uint64_t offset_bytes;
    std::uint64_t started_ns;  // 0: not timed
    unsigned epoch;
  };

 public:
  static constexpr std::uint32_t kFrameBytes = std::max(sizeof(Progress), sizeof(Forwarded));

  VolumeChannel(std::shared_ptr<VolumeBdev> volume, blob::Store& store, blob::Volume& record, IoSlots& slots);
  ~VolumeChannel() override;

  void submit(bdev::IoRequest& request) override;

  // Goes on with a request that waited for a slot.
  static void drive(bdev::IoRequest& request);
  const ChannelCounters& counters() const { return counters_; }

 private:
  static Progress& progress(bdev::IoRequest& request) { return request.top_frame<Progress>(); }

  enum class Step : std::uint8_t { kNext, kWait, kNextTurn, kAway };
  struct Place {
    std::uint32_t index;
    std::uint32_t offset;
    std::uint32_t length;
  };
  enum class Lookup : std::uint8_t { kFound, kAskHome, kDamaged };
  struct Mapping {
    blob::MapEntry entry;
    bool closed = false;  // to writes in place
  };

  void go_straight(bdev::IoRequest& request, std::uint64_t started_ns);
  // kWriting: a write; else a read.
  template <bool kWriting>
  void go_straight_as(bdev::IoRequest& request, std::uint64_t started_ns);
  void submit_timed(bdev::IoRequest& request);
  // The straight way ends at the map.
  void turn_back(bdev::IoRequest& request, std::uint64_t started_ns, unsigned epoch);
  // The same for a write.
  void send_home(bdev::IoRequest& request, std::uint64_t started_ns, unsigned epoch);
  template <bool kWriting>
  static void straight_done(bdev::IoRequest& request);
  // One that is timed, failed, or was the last that a grace period waits for.
  void straight_done_watched(bdev::IoRequest& request, std::uint64_t started_ns, bool answer_due);
  Progress& begin_pieces(bdev::IoRequest& request, std::uint64_t started_ns);
  void submit_in_pieces(bdev::IoRequest& request, std::uint64_t started_ns);
  bdev::IoStatus validate(const bdev::IoRequest& request) const;
  void cut(bdev::IoRequest& request);
  Step step(bdev::IoRequest& request);
  struct Run {
    blob::ClusterNo from;
    std::uint64_t length;
  };
  Run run_at(const Place& place, const blob::MapEntry& entry) const;
  void keep_to_device_blocks(Place& place) const;
  bool part_of_block(const Place& place) const { return ((place.offset | place.length) & device_mask_) != 0; }
  Step read_part(bdev::IoRequest& request, const Place& place, blob::ClusterNo from, unsigned epoch);
  Step read_step(bdev::IoRequest& request, const Place& place, const blob::MapEntry& entry, unsigned epoch);
  Step write_step(bdev::IoRequest& request, const Place& place, const Mapping& mapping, bool frozen, unsigned epoch);
  Step zero_step(bdev::IoRequest& request, const Place& place, const blob::MapEntry& entry);
  Step extent_step(bdev::IoRequest& request, const Place& place, const blob::MapEntry& entry);
  Lookup look_up(std::uint32_t index, Mapping& mapping) const;
  std::uint64_t extend(const bdev::IoRequest& request, const Place& place, const Mapping& first, bool writing) const;
  Step to_device(bdev::IoRequest& request, blob::ClusterNo cluster, std::uint32_t offset, std::uint64_t length,
                 unsigned epoch);
  Step to_home(bdev::IoRequest& request, const Place& place, blob::HomeIo::Op op);
  bool slice(bdev::IoRequest& request, std::uint64_t length, IoSlot& slot, const iovec*& iov, std::uint16_t& count);
  void fill_zeros(bdev::IoRequest& request, std::uint64_t length);
  void start_flush(bdev::IoRequest& request);

  static void device_done(bdev::IoRequest& device);
  static void part_read(bdev::IoRequest& device);
  static void home_done(blob::HomeIo& io);
  void piece_done(IoSlot& slot, bdev::IoStatus status);
  void drop(bdev::IoRequest& request);
  void finish(bdev::IoRequest& request);
  void count(const bdev::IoRequest& request);
  void count_transfer(bool write, std::uint64_t bytes);
  void count_latency(bdev::IoOp op, std::uint64_t started_ns);

  std::shared_ptr<VolumeBdev> volume_;
  blob::Store& store_;
  blob::Volume& record_;
  blob::VolumeView& view_;
  IoSlots& slots_;
  const std::uint8_t stream_;
  blob::Lane& lane_;
  const bool at_home_;
  const bool read_only_;
  const std::uint32_t block_bytes_;
  // Of a device's block; and of what lies in blocks of both the volume and the device.
  const std::uint32_t device_mask_;
  const std::uint32_t whole_mask_;
  const std::uint32_t cluster_bytes_;
  const std::uint32_t cluster_mask_;
  const std::uint32_t cluster_shift_;
  const std::uint32_t sub_block_shift_;
  // How many requests may still come before one is timed.
  std::uint64_t untimed_left_ = 0;
  ChannelCounters counters_;
};

}  // namespace pollux::volume
