#pragma once
// A front end with one request queue, of either transport and ring format, for tests that look at single requests.

#include <boost/test/unit_test.hpp>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "initiator/service_fixture.h"

namespace pollux::initiator {

struct RingVariant {
  const char* name;
  bool scsi;
  RingOptions ring;
};
inline std::ostream& operator<<(std::ostream& out, const RingVariant& variant) {
  return out << variant.name;
}

inline const RingVariant kRingVariants[] = {
    {"blk, split", false, {}},
    {"blk, split, event index", false, {.event_idx = true}},
    {"blk, packed", false, {.packed = true}},
    {"blk, packed, event index", false, {.packed = true, .event_idx = true}},
    {"scsi, split", true, {}},
    {"scsi, split, event index", true, {.event_idx = true}},
    {"scsi, packed", true, {.packed = true}},
    {"scsi, packed, event index", true, {.packed = true, .event_idx = true}},
};

// A front end with one request queue on a disk of its own.
struct OneQueueGuest {
  OneQueueGuest(ServiceFixture& fixture, const RingVariant& variant, std::shared_ptr<bdev::Bdev> bdev, RingOptions ring) {
    FrontEndOptions options;
    if (variant.scsi) {
      options.socket_path = fixture.scsi("g", 1);
      options.queues = 3;
      fixture.add("g", 0, std::move(bdev));
      disk = std::make_unique<ScsiDisk>(0, 0, 512);
    } else {
      options.socket_path = fixture.blk("g", std::move(bdev), 1);
      options.queues = 1;
      disk = std::make_unique<BlkDisk>();
    }
    options.ring = ring;
    options.inflight = true;
    // The tables of indirect descriptors take most of it.
    options.ram_bytes = 64 << 20;
    front_end = std::make_unique<FrontEnd>(options);
    front_end->start();
    queue = disk->first_queue();
    if (variant.scsi) take_attentions(static_cast<const ScsiDisk&>(*disk));
  }
  // A new nexus has unit attentions to tell (SAM-5 5.14), which TEST UNIT READY hears without touching the medium.
  void take_attentions(const ScsiDisk& scsi) {
    IoSlot slot(front_end->ram(), 0);
    const std::uint8_t test_unit_ready[6] = {};
    const auto segments = scsi.command(front_end->ram(), slot, test_unit_ready, 0, 0);
    for (int i = 0; i < 8; ++i) {
      run_request(*front_end, queue, segments);
      if (scsi.verdict(slot).empty()) return;
    }
    throw std::runtime_error("the target does not become ready");
  }
  DriverRing& ring() { return front_end->ring(queue); }
  // Adds a read of 512 bytes; false when the ring is full.
  bool add_read(std::uint64_t offset_bytes) {
    slots.push_back(std::make_unique<IoSlot>(front_end->ram(), 512));
    const auto segments = disk->build(front_end->ram(), *slots.back(), Op::kRead, offset_bytes, 512, 0);
    return ring().add(segments, slots.size() - 1);
  }
  void show() {
    if (ring().show()) front_end->kick(queue);
  }
  // Takes what is there and checks it; how many.
  std::size_t take_all() {
    std::size_t count = 0;
    while (auto done = ring().take()) {
      BOOST_TEST(disk->verdict(*slots.at(done->cookie)) == "");
      ++count;
    }
    return count;
  }

  std::unique_ptr<FrontEnd> front_end;
  std::unique_ptr<Disk> disk;
  std::uint16_t queue = 0;
  std::vector<std::unique_ptr<IoSlot>> slots;
};

}  // namespace pollux::initiator
