#include "virtio/inflight.h"

#include <algorithm>
#include <bit>
#include <ctime>

#include "base/units.h"

namespace pollux::virtio {

using namespace protocol;

namespace {

// Above every number that has been given on this host: no ring takes a request a nanosecond.
std::uint64_t next_arrival() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace

std::uint64_t InflightRegion::queue_bytes(std::uint16_t queue_size, bool packed) {
  const std::uint64_t bytes =
      packed ? sizeof(InflightPackedHeader) + sizeof(InflightPackedDesc) * std::uint64_t{queue_size}
             : sizeof(InflightSplitHeader) + sizeof(InflightSplitDesc) * std::uint64_t{queue_size};
  return align_up<std::uint64_t>(bytes, 64);
}

void InflightSplit::attach(std::byte* memory, std::uint16_t size) {
  header_ = reinterpret_cast<InflightSplitHeader*>(memory);
  descs_ = reinterpret_cast<InflightSplitDesc*>(memory + sizeof(InflightSplitHeader));
  size_ = size;
  staged_.reserve(size);
  counter_ = first_arrival_ = next_arrival();
}

void InflightSplit::begin_anew(std::uint16_t used_idx) {
  for (std::uint16_t i = 0; i < size_; ++i) store_relaxed(&descs_[i].inflight, std::uint8_t{0});
  store_relaxed(&header_->desc_num, size_);
  store_relaxed(&header_->last_batch_head, std::uint16_t{0});
  store_relaxed(&header_->used_idx, used_idx);
  store_release(&header_->version, kInflightVersion);
}

InflightSplit::Recovered InflightSplit::recover(std::uint16_t used_idx, std::uint16_t avail_idx) {
  // A new region is all zeros.
  const bool ours = load_acquire(&header_->version) == kInflightVersion && load_once(&header_->desc_num) == size_;
  // What the dead process had shown without noting so here. No batch is larger than the ring: a used_idx elsewhere is
  // that of a ring which the driver has begun anew, of which this region knows nothing.
  const std::uint16_t batch = used_idx - load_once(&header_->used_idx);
  if (!ours || batch > size_) {
    begin_anew(used_idx);
    return {};
  }
  // Those heads are answered.
  std::uint16_t head = load_once(&header_->last_batch_head);
  for (std::uint16_t i = 0; i < batch && head < size_; ++i) {
    store_relaxed(&descs_[head].inflight, std::uint8_t{0});
    head = load_once(&descs_[head].next);
  }
  store_release(&header_->used_idx, used_idx);

  std::vector<std::pair<std::uint64_t, std::uint16_t>> pending;
  for (std::uint16_t i = 0; i < size_; ++i) {
    if (load_once(&descs_[i].inflight) == 1) pending.emplace_back(load_once(&descs_[i].counter), i);
  }
  // More than the driver has ever made available and not got back: those were requests of another ring.
  if (pending.size() > static_cast<std::uint16_t>(avail_idx - used_idx)) {
    begin_anew(used_idx);
    return {};
  }
  std::sort(pending.begin(), pending.end());
  Recovered result{.known = true, .heads = {}};
  for (const auto& [counter, pending_head] : pending) {
    result.heads.push_back(pending_head);
    // Those of a host from which the guest has come may be higher.
    counter_ = first_arrival_ = std::max(counter_, counter + 1);
  }
  return result;
}

namespace {

constexpr std::uint8_t kIdle = 0;
constexpr std::uint8_t kTaken = 1;
constexpr std::uint8_t kStaged = 2;
constexpr std::uint16_t kNone = 0xffff;

std::uint64_t* position_word(InflightPackedHeader* header) {
  return reinterpret_cast<std::uint64_t*>(&header->position);
}

}  // namespace

void InflightPacked::attach(std::byte* memory, std::uint16_t size) {
  header_ = reinterpret_cast<InflightPackedHeader*>(memory);
  descs_ = reinterpret_cast<InflightPackedDesc*>(memory + sizeof(InflightPackedHeader));
  size_ = size;
  free_.reserve(size);
  taking_.reserve(size);
  staged_.reserve(size);
  head_of_.assign(size, kNone);
  next_of_.assign(size, kNone);
  counter_ = first_arrival_ = next_arrival();
}

InflightPacked::Recovered InflightPacked::recover(const PackedDesc* ring, std::uint16_t used_idx, bool used_wrap) {
  Recovered result;
  if (load_acquire(&header_->version) != kInflightVersion || load_once(&header_->desc_num) != size_) {
    for (std::uint16_t i = 0; i < size_; ++i) store_relaxed(&descs_[i].inflight, kIdle);
    store_relaxed(&header_->desc_num, size_);
    store_position(used_idx, used_wrap, used_idx, used_wrap);
    store_release(&header_->version, kInflightVersion);
    for (std::uint16_t i = size_; i-- > 0;) free_.push_back(i);
    return result;
  }
  result.known = true;
  const auto position = std::bit_cast<InflightPackedPosition>(load_once(position_word(header_)));
  const std::uint16_t new_idx = position.used_idx;
  const bool new_wrap = position.used_wrap_counter != 0;
  const std::uint16_t old_idx = position.old_used_idx;
  const bool old_wrap = position.old_used_wrap_counter != 0;
  result.used_idx = old_idx;
  result.used_wrap = old_wrap;
  bool shown = false;
  if ((new_idx != old_idx || new_wrap != old_wrap) && old_idx < size_) {
    // The dead process was about to show a batch, or had shown it: the entry at the old position tells which. USED
    // alone does: a driver that saw the answers may have made the entry available again, which turns AVAIL.
    shown = ((load_acquire(&ring[old_idx].flags) & kDescUsed) != 0) == old_wrap;
  }
  if (shown) {
    result.used_idx = new_idx;
    result.used_wrap = new_wrap;
  }

  std::vector<std::pair<std::uint64_t, std::uint16_t>> pending;
  std::vector<bool> occupied(size_, false);
  for (std::uint16_t head = 0; head < size_; ++head) {
    const std::uint8_t state = load_once(&descs_[head].inflight);
    if (state == kIdle) continue;
    if (shown && state == kStaged) {
      store_relaxed(&descs_[head].inflight, kIdle);
      continue;
    }
    store_relaxed(&descs_[head].inflight, kTaken);
    pending.emplace_back(load_once(&descs_[head].counter), head);
  }
  std::sort(pending.begin(), pending.end());
  std::uint32_t entries = 0;
  for (const auto& [counter, head] : pending) {
    const std::uint16_t num = load_once(&descs_[head].num);
    std::uint16_t entry = head;
    std::uint16_t good = 0;
    std::vector<std::uint16_t> chain;
    while (good < num && entry < size_ && !occupied[entry]) {
      occupied[entry] = true;
      chain.push_back(entry);
      ++good;
      entry = load_once(&descs_[entry].next);
    }
    if (num == 0 || good != num || entries + num > size_) {
      // Nobody but the front end can have written this.
      store_relaxed(&descs_[head].inflight, kIdle);
      for (const std::uint16_t used : chain) occupied[used] = false;
      continue;
    }
    for (std::size_t i = 0; i + 1 < chain.size(); ++i) next_of_[chain[i]] = chain[i + 1];
    next_of_[chain.back()] = kNone;
    entries += num;
    counter_ = first_arrival_ = std::max(counter_, counter + 1);
    result.heads.push_back(head);
  }
  result.entries = static_cast<std::uint16_t>(entries);
  for (std::uint16_t i = size_; i-- > 0;) {
    if (!occupied[i]) free_.push_back(i);
  }
  store_position(result.used_idx, result.used_wrap, result.used_idx, result.used_wrap);
  return result;
}

std::vector<PackedDesc> InflightPacked::descriptors(std::uint16_t head) const {
  std::vector<PackedDesc> copies;
  for (std::uint16_t entry = head; entry < size_ && copies.size() < size_; entry = next_of_[entry]) {
    const InflightPackedDesc& desc = descs_[entry];
    copies.push_back({load_once(&desc.addr), load_once(&desc.len), load_once(&desc.id), load_once(&desc.flags)});
  }
  return copies;
}

void InflightPacked::begin() {
  // A chain that was given up half way gives its entries back.
  while (!taking_.empty()) {
    free_.push_back(taking_.back());
    taking_.pop_back();
  }
}

bool InflightPacked::note(const PackedDesc& desc) {
  if (free_.empty()) return false;
  const std::uint16_t entry = free_.back();
  free_.pop_back();
  InflightPackedDesc& copy = descs_[entry];
  store_relaxed(&copy.addr, desc.addr);
  store_relaxed(&copy.len, desc.len);
  store_relaxed(&copy.flags, desc.flags);
  store_relaxed(&copy.id, desc.id);
  next_of_[entry] = kNone;
  if (!taking_.empty()) {
    next_of_[taking_.back()] = entry;
    store_relaxed(&descs_[taking_.back()].next, entry);
  }
  taking_.push_back(entry);
  return true;
}

void InflightPacked::take(std::uint16_t id, std::uint16_t entries) {
  const std::uint16_t head = taking_.front();
  store_relaxed(&descs_[head].last, taking_.back());
  store_relaxed(&descs_[head].num, entries);
  store_relaxed(&descs_[head].counter, counter_++);
  store_release(&descs_[head].inflight, kTaken);
  head_of_[id] = head;
  taking_.clear();
}

void InflightPacked::stage(std::uint16_t id) {
  const std::uint16_t head = head_of_[id];
  if (head >= size_) return;
  store_release(&descs_[head].inflight, kStaged);
  staged_.push_back(head);
  head_of_[id] = kNone;
}

void InflightPacked::store_position(std::uint16_t used_idx, bool used_wrap, std::uint16_t old_used_idx,
                                    bool old_used_wrap) {
  used_idx_ = used_idx;
  used_wrap_ = used_wrap;
  old_used_idx_ = old_used_idx;
  old_used_wrap_ = old_used_wrap;
  const InflightPackedPosition position{
      used_idx, old_used_idx, std::uint8_t{used_wrap}, std::uint8_t{old_used_wrap}, {}};
  store_release(position_word(header_), std::bit_cast<std::uint64_t>(position));
}

void InflightPacked::prepare(std::uint16_t used_idx, bool used_wrap) {
  store_position(used_idx, used_wrap, old_used_idx_, old_used_wrap_);
}

void InflightPacked::commit() {
  for (const std::uint16_t head : staged_) {
    store_release(&descs_[head].inflight, kIdle);
    for (std::uint16_t entry = head; entry < size_;) {
      const std::uint16_t next = next_of_[entry];
      next_of_[entry] = kNone;
      free_.push_back(entry);
      entry = next;
    }
  }
  staged_.clear();
  store_position(used_idx_, used_wrap_, used_idx_, used_wrap_);
}

}  // namespace pollux::virtio
