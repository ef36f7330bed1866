#pragma once
// ClusterTable: what is known about some clusters of volumes. Fixed memory, made at start. Home reactor only.

#include <bit>
#include <cstdint>
#include <vector>

#include "blob/home_io.h"

namespace pollux::blob {

// One into which writes are on their way that will change the map: what serialises them.
struct OpenCluster {
  VolumeNo volume = 0;
  std::uint32_t index = 0;
  // Where the writes go. `fresh`: allocated for them and not in the map yet.
  ClusterNo own = 0;
  ClusterNo base = 0;
  bool fresh = false;
  // One operation has the cluster for itself.
  bool exclusive = false;
  // From the data path as well: Publication::hold().
  bool held = false;
  std::uint32_t in_flight = 0;
  std::uint64_t busy = 0;  // sub-blocks being written
  HomeIoList waiting;
  OpenCluster* next = nullptr;
};

// Node: has volume, index and next.
template <typename Node>
class ClusterTable {
 public:
  explicit ClusterTable(std::size_t capacity)
      : nodes_(capacity),
        buckets_(std::bit_ceil(capacity * 2), nullptr),
        shift_(64 - std::countr_zero(buckets_.size())) {
    for (auto& node : nodes_) {
      node.next = free_;
      free_ = &node;
    }
  }
  Node* find(VolumeNo volume, std::uint32_t index) {
    if (size_ == 0) return nullptr;
    Node* node = buckets_[bucket(volume, index)];
    while (node != nullptr && (node->volume != volume || node->index != index)) node = node->next;
    return node;
  }
  std::size_t size() const { return size_; }
  // Precondition: fewer than the capacity are there, and not this one.
  Node& insert(VolumeNo volume, std::uint32_t index) {
    Node* node = free_;
    free_ = node->next;
    Node*& head = buckets_[bucket(volume, index)];
    *node = Node{.volume = volume, .index = index, .next = head};
    head = node;
    ++size_;
    return *node;
  }
  void erase(Node& node) {
    --size_;
    Node** link = &buckets_[bucket(node.volume, node.index)];
    while (*link != &node) link = &(*link)->next;
    *link = node.next;
    node.next = free_;
    free_ = &node;
  }

 private:
  std::size_t bucket(VolumeNo volume, std::uint32_t index) const {
    const std::uint64_t key = (std::uint64_t{volume} << 32) | index;
    return static_cast<std::size_t>((key * 0x9e37'79b9'7f4a'7c15ULL) >> shift_);
  }

  std::vector<Node> nodes_;
  // A power of two; the upper bits of the product choose one.
  std::vector<Node*> buckets_;
  int shift_;
  Node* free_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace pollux::blob
