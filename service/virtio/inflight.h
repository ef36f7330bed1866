#pragma once
// InflightRegion: memory that outlives this process, in which it notes which requests it has taken and not yet
// answered, so that its successor can do them again in the order in which they came (vhost-user GET_INFLIGHT_FD,
// SET_INFLIGHT_FD).
//
// The front end only keeps the file. Its layout is that of the vhost-user specification, "Inflight I/O tracking": one
// part a queue, each rounded up to 64 bytes. A hostile front end can write here as well, so everything read back is
// checked.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "virtio/guest_memory.h"
#include "virtio/ring_access.h"

namespace pollux::virtio {

inline constexpr std::uint16_t kInflightVersion = 1;

struct InflightSplitDesc {
  std::uint8_t inflight;
  std::uint8_t padding[5];
  // The head answered before this one.
  std::uint16_t next;
  // Order of arrival.
  std::uint64_t counter;
};
static_assert(sizeof(InflightSplitDesc) == 16);

struct InflightSplitHeader {
  std::uint64_t features;
  std::uint16_t version;
  std::uint16_t desc_num;
  // The head answered last.
  std::uint16_t last_batch_head;
  // used->idx after the last batch that was recorded here to its end.
  std::uint16_t used_idx;
};
static_assert(sizeof(InflightSplitHeader) == 16);

struct InflightPackedDesc {
  std::uint8_t inflight;
  std::uint8_t padding;
  std::uint16_t next;
  std::uint16_t last;
  std::uint16_t num;
  std::uint64_t counter;
  std::uint16_t id;
  std::uint16_t flags;
  std::uint32_t len;
  std::uint64_t addr;
};
static_assert(sizeof(InflightPackedDesc) == 32);

// Where the next answer goes. Written in one store, so that no death leaves an index with the other's wrap counter.
struct alignas(8) InflightPackedPosition {
  std::uint16_t used_idx;
  std::uint16_t old_used_idx;
  std::uint8_t used_wrap_counter;
  std::uint8_t old_used_wrap_counter;
  std::uint8_t padding[2];
};
static_assert(sizeof(InflightPackedPosition) == 8);

struct InflightPackedHeader {
  std::uint64_t features;
  std::uint16_t version;
  std::uint16_t desc_num;
  std::uint16_t free_head;
  std::uint16_t old_free_head;
  InflightPackedPosition position;
  std::uint8_t padding[8];
};
static_assert(sizeof(InflightPackedHeader) == 32);
static_assert(offsetof(InflightPackedHeader, position) == 16);

class InflightRegion {
 public:
  // Bytes that one queue takes.
  static std::uint64_t queue_bytes(std::uint16_t queue_size, bool packed);

  InflightRegion(std::unique_ptr<SharedMapping> mapping, std::uint16_t queues, std::uint16_t queue_size, bool packed)
      : mapping_(std::move(mapping)), queues_(queues), queue_size_(queue_size), packed_(packed) {}

  bool packed() const { return packed_; }
  std::uint16_t queue_size() const { return queue_size_; }
  std::uint16_t queues() const { return queues_; }
  // Precondition: index < queues(), and queues() * queue_bytes() fit the mapping, which the maker of the region has
  // checked.
  std::byte* queue(std::uint16_t index) const { return mapping_->data() + queue_bytes(queue_size_, packed_) * index; }

 private:
  std::unique_ptr<SharedMapping> mapping_;
  std::uint16_t queues_;
  std::uint16_t queue_size_;
  bool packed_;
};

// The split ring's part of it. Used by SplitQueue alone.
class InflightSplit {
 public:
  // Nothing is tracked until this is given memory.
  void attach(std::byte* memory, std::uint16_t size);
  bool active() const { return header_ != nullptr; }

  struct Recovered {
    // The region has followed this ring: the position is used_idx plus what is in flight; SET_VRING_BASE is ignored.
    // False for a region that is new, or that followed a ring which was begun anew since.
    bool known = false;
    // Taken and not answered, oldest first.
    std::vector<std::uint16_t> heads;
  };
  // After attach(): settles what the last batch of a dead process left half done, given both indices as the ring in the
  // guest's memory has them.
  Recovered recover(std::uint16_t used_idx, std::uint16_t avail_idx);

  // When the request arrived that is in flight with this head: a number that no other request has, of this ring or of
  // one before it on this host.
  std::uint64_t arrival(std::uint16_t head) const { return load_once(&descs_[head].counter); }
  // Those with a lower one were taken by a process that died.
  std::uint64_t first_arrival() const { return first_arrival_; }

  void take(std::uint16_t head) {
    store_counter(head);
    store_release(&descs_[head].inflight, std::uint8_t{1});
  }
  // The answer is in the used ring but used->idx does not show it yet.
  void stage(std::uint16_t head) {
    store_relaxed(&descs_[head].next, last_head_);
    store_release(&header_->last_batch_head, head);
    last_head_ = head;
    staged_.push_back(head);
  }
  // used->idx shows the batch.
  void commit(std::uint16_t used_idx) {
    for (const std::uint16_t head : staged_) store_release(&descs_[head].inflight, std::uint8_t{0});
    staged_.clear();
    store_release(&header_->used_idx, used_idx);
  }

 private:
  void store_counter(std::uint16_t head) { store_relaxed(&descs_[head].counter, counter_++); }
  void begin_anew(std::uint16_t used_idx);

  InflightSplitHeader* header_ = nullptr;
  InflightSplitDesc* descs_ = nullptr;
  std::uint16_t size_ = 0;
  std::uint16_t last_head_ = 0;
  std::uint64_t counter_ = 0;
  std::uint64_t first_arrival_ = 0;
  // Reserved for a full ring at attach().
  std::vector<std::uint16_t> staged_;
};

// The packed ring's part. Answers are written over descriptors that are still in flight, so it keeps copies of them.
// Which entries are free follows from those that are in flight, so free_head and old_free_head are not needed and stay
// 0. `inflight` of a request's first entry is 1 from when it was taken, 2 once its answer is staged, 0 when it was
// shown. Used by PackedQueue alone.
class InflightPacked {
 public:
  void attach(std::byte* memory, std::uint16_t size);
  bool active() const { return header_ != nullptr; }

  struct Recovered {
    // False for a region that no ring has used yet: positions are then those of SET_VRING_BASE.
    bool known = false;
    std::uint16_t used_idx = 0;
    bool used_wrap = true;
    // Ring entries from there on, taken and not answered, and the requests they belong to, oldest first.
    std::uint16_t entries = 0;
    std::vector<std::uint16_t> heads;
  };
  // After attach(). The position is where the ring starts if the region is new.
  Recovered recover(const protocol::PackedDesc* ring, std::uint16_t used_idx, bool used_wrap);
  // Copies of a request's descriptors; empty when the region holds nonsense.
  std::vector<protocol::PackedDesc> descriptors(std::uint16_t head) const;

  // Taking one request: begin(), note() for each of its descriptors, take() when it is whole. note() is false when no
  // entry is free.
  void begin();
  bool note(const protocol::PackedDesc& desc);
  void take(std::uint16_t id, std::uint16_t entries);
  // As InflightSplit's, of the request with this id.
  std::uint64_t arrival(std::uint16_t id) const {
    return head_of_[id] < size_ ? load_once(&descs_[head_of_[id]].counter) : 0;
  }
  std::uint64_t first_arrival() const { return first_arrival_; }
  // A replayed request keeps its entry.
  void retake(std::uint16_t id, std::uint16_t head) { head_of_[id] = head; }
  // Answering: stage() each, prepare() before the batch is shown, commit() after.
  void stage(std::uint16_t id);
  void prepare(std::uint16_t used_idx, bool used_wrap);
  void commit();

 private:
  void store_position(std::uint16_t used_idx, bool used_wrap, std::uint16_t old_used_idx, bool old_used_wrap);

  InflightPackedHeader* header_ = nullptr;
  InflightPackedDesc* descs_ = nullptr;
  std::uint16_t size_ = 0;
  // As of the last batch that was prepared, and committed.
  std::uint16_t used_idx_ = 0, old_used_idx_ = 0;
  bool used_wrap_ = true, old_used_wrap_ = true;
  std::uint64_t counter_ = 0;
  std::uint64_t first_arrival_ = 0;
  // Ours alone, so that what a front end writes into the region cannot lead us astray: the free entries, the entries of
  // the request being taken, each id's first entry, and each entry's successor within its request.
  std::vector<std::uint16_t> free_;
  std::vector<std::uint16_t> taking_;
  std::vector<std::uint16_t> head_of_;
  std::vector<std::uint16_t> next_of_;
  std::vector<std::uint16_t> staged_;
};

}  // namespace pollux::virtio
