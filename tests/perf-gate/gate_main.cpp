// pollux-perf-gate: the data path in one process and one thread, from a guest's ring to a device and back, for
// callgrind to count its instructions. Collection is on only while the queue is polled: what the driver's side and the
// preparation cost is not counted. Requests are of 512 bytes, so that copying data does not hide the rest, and half of
// the batches are full ones: the cost of a batch counts too. First writes are of 4 KiB, since smaller ones are padded,
// and two of three take a cluster.
//
// Each case leaves a dump named after it. Prints one line a case: NAME REQUESTS.

#include <valgrind/callgrind.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <stdexcept>

#include "bdev/ram.h"
#include "initiator/disk.h"
#include "initiator/null_disk.h"
#include "scsi/target.h"
#include "vhost/blk_device.h"
#include "vhost/scsi_request_queue.h"
#include "virtio/guest_memory.h"
#include "volume/volume_service.h"

namespace {

using namespace pollux;

constexpr std::uint64_t kDiskBytes = 16 << 20;
constexpr std::uint32_t kIoBytes = 512;
constexpr std::uint64_t kThinBytes = 64 << 20;
constexpr std::uint32_t kFirstWriteBytes = 4096;
constexpr std::uint32_t kFillBytes = 128 << 10;
constexpr unsigned kDepth = 32;
constexpr unsigned kBatches = 64;
constexpr std::uint16_t kRingSize = 128;
constexpr std::chrono::milliseconds kOpenPatience{20'000};

template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

// A guest's ring, and the same ring as the service sees it.
class Wire {
 public:
  using MakeQueue = std::function<std::unique_ptr<vhost::VhostQueue>(std::unique_ptr<virtio::Virtqueue>)>;

  Wire(const MakeQueue& make_queue, bool scsi, std::uint64_t disk_bytes, reactor::Reactor& reactor)
      : disk_bytes_(disk_bytes),
        ram_((kDepth * 16384 + (1 << 20)) / 4096 * 4096),
        ring_(initiator::DriverRing::make(ram_, {.size = kRingSize})) {
    const auto& part = ram_.parts()[0];
    auto region = must(virtio::map_region({.guest_addr = part.region.guest_addr,
                                           .size_bytes = part.region.size_bytes,
                                           .user_addr = part.region.user_addr,
                                           .file_offset = part.region.mmap_offset},
                                          UniqueFd(::dup(part.fd))));
    const protocol::VringAddr at = ring_->addresses(0);
    virtio::QueueSetup setup{.size = kRingSize,
                             .desc_user_addr = at.desc_user_addr,
                             .driver_user_addr = at.avail_user_addr,
                             .device_user_addr = at.used_user_addr,
                             .memory = must(virtio::GuestMemory::make({region}))};
    if (scsi) {
      disk_ = std::make_unique<initiator::ScsiDisk>(0, 0, kIoBytes);
    } else {
      disk_ = std::make_unique<initiator::BlkDisk>();
    }
    queue_ = make_queue(must(virtio::Virtqueue::create(std::move(setup))));
    must(queue_->start(reactor, stock_, tenant_));
    for (unsigned i = 0; i < kDepth; ++i) {
      slots_.push_back(std::make_unique<initiator::IoSlot>(ram_, kFirstWriteBytes));
    }
  }

  // Shows `count` requests to the queue at once and takes their answers. They are there after one poll, unless another
  // program had the processor meanwhile and the queue's time of the turn is over.
  void batch(initiator::Op op, std::uint64_t first, std::uint64_t stride, std::uint32_t bytes, unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      const std::uint64_t offset = (first + i * stride) * bytes % disk_bytes_;
      if (!ring_->add(disk_->build(ram_, *slots_[i], op, offset, bytes, 0), i))
        throw std::runtime_error("the ring is full");
    }
    ring_->show();
    unsigned polls = 0;
    const auto poll = [&] {
      if (++polls > kDepth) throw std::runtime_error("a request was not answered within as many polls");
      // As the poller does before it polls its queues.
      stock_.begin_turn(__rdtsc());
      queue_->poll();
    };
    poll();
    for (unsigned taken = 0; taken < count; ++taken) {
      auto done = ring_->take();
      for (; !done; done = ring_->take()) poll();
      const std::string verdict = disk_->verdict(*slots_[done->cookie]);
      // The first requests of a new nexus hear of unit attentions instead.
      if (!verdict.empty() && warm_) throw std::runtime_error(verdict);
    }
  }

  void warm_up() {
    for (unsigned i = 0; i < 2; ++i) batch(initiator::Op::kRead, 0, 1, kIoBytes, kDepth);
    warm_ = true;
  }

  void stop() {
    queue_->stop([] {});
    queue_->poll();
  }

 private:
  const std::uint64_t disk_bytes_;
  initiator::GuestRam ram_;
  std::unique_ptr<initiator::DriverRing> ring_;
  vhost::ReactorStock stock_{must(vhost::Signaller::make())};
  vhost::Tenant tenant_{stock_};
  std::unique_ptr<initiator::Disk> disk_;
  std::unique_ptr<vhost::VhostQueue> queue_;
  std::vector<std::unique_ptr<initiator::IoSlot>> slots_;
  bool warm_ = false;
};

constexpr std::uint64_t kStride = 7919;

void count(Wire& wire, const std::string& name, initiator::Op op) {
  CALLGRIND_ZERO_STATS;
  unsigned requests = 0;
  for (unsigned i = 0; i < kBatches; ++i) {
    const unsigned size = i % 2 == 0 ? kDepth : 1;
    wire.batch(op, i * 31, kStride, kIoBytes, size);
    requests += size;
  }
  CALLGRIND_DUMP_STATS_AT(name.c_str());
  std::printf("%s %u\n", name.c_str(), requests);
}

// Each to a place of its own.
void count_first_writes(Wire& wire, const std::string& name) {
  CALLGRIND_ZERO_STATS;
  unsigned requests = 0;
  for (unsigned i = 0; i < kBatches; ++i) {
    const unsigned size = i % 2 == 0 ? kDepth : 1;
    wire.batch(initiator::Op::kWrite, requests * kStride, kStride, kFirstWriteBytes, size);
    requests += size;
  }
  CALLGRIND_DUMP_STATS_AT(name.c_str());
  std::printf("%s %u\n", name.c_str(), requests);
}

struct Case {
  std::string name;
  std::shared_ptr<bdev::Bdev> disk;
  bool writes = true;
  bool first_writes = false;
};

// On the reactor.
void count_requests(const Case& of, const std::string& transport, Wire& wire) {
  const std::string name = of.name + "/" + transport;
  wire.warm_up();
  if (of.first_writes) {
    count_first_writes(wire, name + "/first-write");
    return wire.stop();
  }
  count(wire, name + "/read", initiator::Op::kRead);
  if (of.writes) count(wire, name + "/write", initiator::Op::kWrite);
  wire.stop();
}

Uuid uuid(std::uint8_t number) {
  Uuid made;
  made.bytes.fill(number);
  return made;
}

// Writes kFillBytes at every `stride`, so that what is counted later are writes to places that were written before.
reactor::Task<Status> fill(bdev::Bdev& disk, reactor::Reactor& reactor, std::uint64_t stride) {
  co_await reactor.enter();
  auto channel = co_await disk.open_channel(reactor);
  if (!channel) co_return fail(std::move(channel.error()));
  const std::vector<std::byte> data(kFillBytes);
  for (std::uint64_t offset = 0; offset < disk.size_bytes(); offset += stride) {
    const auto status = co_await bdev::write(**channel, offset, data.data(), data.size());
    if (auto good = bdev::to_status(status, "filling the volume"); !good) co_return good;
  }
  co_return Status{};
}

std::vector<Case> make_volumes(volume::VolumeService& volumes, reactor::Reactor& reactor) {
  const auto wait = [&](auto task) { return must(reactor::call(reactor, std::move(task))); };
  volume::PoolSpec pool{.id = uuid(1), .name = "pool"};
  pool.bdev = {.kind = bdev::Spec::Kind::kRam, .size_bytes = 32 * kDiskBytes};
  wait(volumes.create_pool(std::move(pool)));
  const auto written = [&](std::uint8_t id, std::string name) {
    volume::VolumeSpec spec{.id = uuid(id), .name = std::move(name), .size_bytes = kDiskBytes};
    wait(volumes.create_volume("pool", std::move(spec)));
    auto made = wait(volumes.open(uuid(id)));
    wait(fill(*made, reactor, kFillBytes));
    return made;
  };
  auto volume = written(2, "volume");
  // Half of every cluster was written since: the requests go to the snapshot's clusters and to the volume's own.
  auto with_snapshot = written(3, "with snapshot");
  wait(volumes.create_snapshot(uuid(3), uuid(4), "snapshot"));
  wait(fill(*with_snapshot, reactor, 2 * kFillBytes));
  const auto make = [&](std::uint8_t id, std::string name) {
    return volume::VolumeSpec{.id = uuid(id), .name = std::move(name), .size_bytes = kThinBytes};
  };
  wait(volumes.create_volume("pool", make(7, "thin")));
  wait(volumes.create_volume("pool", make(8, "origin")));
  wait(fill(*wait(volumes.open(uuid(8))), reactor, kFillBytes));
  wait(volumes.create_snapshot(uuid(8), uuid(9), "of the origin"));
  wait(volumes.clone(uuid(9), make(10, "clone")));
  return {{"volume", std::move(volume)},
          {"snapshot", std::move(with_snapshot), /*writes=*/false},
          {.name = "thin", .disk = wait(volumes.open(uuid(7))), .first_writes = true},
          {.name = "clone", .disk = wait(volumes.open(uuid(10))), .first_writes = true}};
}

void count_blk(const Case& of, vhost::Placement& placement, reactor::Reactor& reactor) {
  auto channels = must(vhost::DiskChannels::open(of.disk, placement, kOpenPatience));
  auto device = must(vhost::BlkDevice::make({of.disk, uuid(5)}, 1, std::move(channels)));
  vhost::run_on(reactor, [&] {
    const auto make = [&](auto ring) {
      return device->make_queue(0, std::move(ring), {}, 1ULL << protocol::kBlkFeatureFlush, reactor);
    };
    Wire wire(make, false, of.disk->size_bytes(), reactor);
    count_requests(of, "blk", wire);
  });
}

void count_scsi(const Case& of, scsi::LogicalUnits& units, reactor::Reactor& reactor) {
  auto unit = must(units.get({.bdev = of.disk, .uuid = uuid(6)}));
  auto nexus = must(unit->join({.initiator = "gate", .relative_target_port = 1}));
  auto channel = must(reactor::call(reactor, bdev::open_channel(of.disk, reactor)));
  vhost::run_on(reactor, [&] {
    vhost::ReactorTargets own;
    own.reactor = &reactor;
    own.targets[0] = std::make_unique<scsi::TargetChannel>();
    own.targets[0]->add(0, nexus->make_channel(reactor, std::move(channel)));
    const auto make = [&](auto ring) {
      return std::make_unique<vhost::ScsiRequestQueue>(std::move(ring), vhost::QueueFds{}, own);
    };
    Wire wire(make, true, of.disk->size_bytes(), reactor);
    count_requests(of, "scsi", wire);
  });
}

void run() {
  auto reactors = must(reactor::ReactorGroup::start({{.id = 0}}));
  auto& reactor = reactors->main();
  auto placement = must(vhost::Placement::make(*reactors));
  volume::VolumeService volumes(*reactors);
  scsi::LogicalUnits units;
  {
    std::vector<Case> cases = make_volumes(volumes, reactor);
    cases.push_back({"null", initiator::make_null_disk(kDiskBytes)});
    cases.push_back({"raw", must(bdev::make_ram_bdev("raw", kDiskBytes))});
    for (const Case& of : cases) {
      count_blk(of, *placement, reactor);
      // The first write of a place is once; the transport is counted with the others.
      if (!of.first_writes) count_scsi(of, units, reactor);
    }
  }
  must(reactor::call(reactor, volumes.close()));
}

}  // namespace

int main() {
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pollux-perf-gate: %s\n", error.what());
    return 1;
  }
  return 0;
}
