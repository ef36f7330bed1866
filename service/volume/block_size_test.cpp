// Volumes whose blocks are smaller than those of the pool's device: a kernel device of 4096-byte blocks, which takes no
// request that is not made of them.

#include <atomic>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <deque>
#include <future>

#include "bdev/loop_device.h"
#include "bdev/physical_block.h"
#include "blob/sim_bdev.h"
#include "blob/store.h"
#include "volume/test_support.h"
#include "volume/volume_bdev.h"
#include "volume/volume_service.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;
using bdev::IoOp;
using bdev::IoRequest;
using bdev::IoStatus;
using reactor::call;

namespace {

constexpr std::uint64_t kVolumeBytes = 2 * kMiB;
constexpr std::uint32_t kClusterBytes = 64 * kKiB;
constexpr std::uint64_t kSectorsInBlock = 8;

struct Fixture {
  bdev::test::LoopDevice loop{128 * kMiB, 4096};
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(3);
  VolumeService service{*reactors};

  Fixture() {
    run(service.create_pool({.id = Uuid::random(),
                             .name = "pool",
                             .bdev = {.kind = bdev::Spec::Kind::kUring, .path = loop.path(), .size_bytes = 0},
                             .cluster_bytes = kClusterBytes}));
  }
  ~Fixture() { run(service.close()); }
  template <typename T>
  T run(reactor::Task<Result<T>> task) {
    return must(call(reactors->main(), std::move(task)));
  }
  ErrorCode refusal(reactor::Task<Result<VolumeInfo>> task) {
    const auto result = call(reactors->main(), std::move(task));
    if (result) throw std::runtime_error("it was not refused");
    return result.error().code;
  }
  VolumeSpec spec(std::string name, std::uint32_t block_bytes = 0) {
    return {.id = Uuid::random(), .name = std::move(name), .size_bytes = kVolumeBytes, .block_bytes = block_bytes};
  }
};

// A request on a channel of some reactor, from a thread that does not wait for it.
struct Pending : IoRequest {
  Pending(RemoteChannel& channel, IoOp which, std::uint64_t offset, std::vector<std::byte> data)
      : bytes(std::move(data)) {
    op = which;
    offset_bytes = offset;
    length_bytes = bytes.size();
    piece = {bytes.data(), bytes.size()};
    if (which == IoOp::kRead || which == IoOp::kWrite) {
      iov = &piece;
      iov_count = 1;
    }
    complete = [](IoRequest& request) { static_cast<Pending&>(request).done.set_value(request.status); };
    channel.reactor().post([this, &channel] { channel.channel().submit(*this); });
  }
  IoStatus wait() { return done.get_future().get(); }

  std::vector<std::byte> bytes;
  iovec piece{};
  std::promise<IoStatus> done;
};

std::vector<std::byte> filled(std::uint64_t length, unsigned byte) {
  return std::vector<std::byte>(length, static_cast<std::byte>(byte));
}

}  // namespace

BOOST_FIXTURE_TEST_SUITE(block_size, Fixture)

BOOST_AUTO_TEST_CASE(a_volume_has_the_blocks_that_were_asked_for_and_its_copies_have_the_same) {
  const auto small = spec("small"), large = spec("large", 4096);
  BOOST_TEST(run(service.create_volume("pool", small)).block_bytes == 512U);
  BOOST_TEST(run(service.create_volume("pool", large)).block_bytes == 4096U);
  BOOST_TEST((refusal(service.create_volume("pool", spec("odd", 1024))) == ErrorCode::kInvalid));
  // A repeated request; one that asks for something else.
  auto again = small;
  BOOST_TEST(run(service.create_volume("pool", again)).block_bytes == 512U);
  again.block_bytes = 512;
  BOOST_TEST(run(service.create_volume("pool", again)).block_bytes == 512U);
  again.block_bytes = 4096;
  BOOST_TEST((refusal(service.create_volume("pool", again)) == ErrorCode::kExists));

  for (const auto& [volume, bytes] : {std::pair(small, 512U), std::pair(large, 4096U)}) {
    const Uuid snapshot = Uuid::random();
    BOOST_TEST(run(service.create_snapshot(volume.id, snapshot, "snapshot of " + volume.name)).block_bytes == bytes);
    auto clone = spec("clone of " + volume.name);
    BOOST_TEST(run(service.clone(snapshot, clone)).block_bytes == bytes);
    auto other = spec("other clone of " + volume.name, 512 + 4096 - bytes);
    BOOST_TEST((refusal(service.clone(snapshot, other)) == ErrorCode::kInvalid));
    for (const Uuid& id : {volume.id, snapshot, clone.id}) {
      auto device = run(service.open(id));
      BOOST_TEST(device->block_bytes() == bytes);
      BOOST_TEST(bdev::physical_block_bytes(*device) == 4096U);
    }
  }
  // It is part of what lasts.
  run(service.export_pool("pool"));
  run(service.import_pool({.kind = bdev::Spec::Kind::kUring, .path = loop.path(), .size_bytes = 0}));
  BOOST_TEST(run(service.describe_volume(small.id)).block_bytes == 512U);
  BOOST_TEST(run(service.describe_volume(large.id)).block_bytes == 4096U);
}

BOOST_AUTO_TEST_CASE(requests_of_less_than_the_volumes_blocks_are_refused) {
  const auto large = spec("large", 4096);
  run(service.create_volume("pool", large));
  auto device = run(service.open(large.id));
  RemoteChannel channel(*device, reactors->at(1));
  BOOST_TEST((channel.write(512, filled(4096, 1)) == IoStatus::kInvalid));
  BOOST_TEST((channel.write(0, filled(512, 1)) == IoStatus::kInvalid));
  BOOST_TEST((channel.write(0, filled(4096, 1)) == IoStatus::kOk));
}

// Whatever the cluster is: never written, partly or fully mapped, shared.
BOOST_AUTO_TEST_CASE(random_operations_in_sectors_match_the_model_on_every_reactor) {
  std::mt19937_64 random(test_seed());
  const auto below = [&](std::uint64_t n) { return random() % n; };
  const auto one = spec("one");
  run(service.create_volume("pool", one));
  auto device = run(service.open(one.id));
  std::deque<RemoteChannel> channels;
  for (unsigned i = 0; i < 3; ++i) channels.emplace_back(*device, reactors->at(i));
  std::vector<std::byte> model(kVolumeBytes);
  std::vector<Uuid> snapshots;
  for (int i = 0; i < 1500; ++i) {
    RemoteChannel& channel = channels[below(3)];
    const std::uint64_t offset = below(kVolumeBytes / 512) * 512;
    const std::uint64_t longest = below(8) == 0 ? 400 : 24;
    const std::uint64_t length = std::min((1 + below(longest)) * 512, kVolumeBytes - offset);
    const auto begin = model.begin() + static_cast<long>(offset);
    const std::uint64_t what = below(100);
    if (what < 45) {
      const auto bytes = pattern(length, random());
      BOOST_REQUIRE((channel.write(offset, bytes, below(16) == 0 ? IoRequest::kFua : 0) == IoStatus::kOk));
      std::copy(bytes.begin(), bytes.end(), begin);
    } else if (what < 80) {
      std::vector<std::byte> back(length);
      BOOST_REQUIRE((channel.read(offset, back) == IoStatus::kOk));
      BOOST_REQUIRE_MESSAGE(std::equal(back.begin(), back.end(), begin), "read differs, operation " << i);
    } else if (what < 97) {
      BOOST_REQUIRE(((what % 2 ? channel.unmap(offset, length) : channel.write_zeroes(offset, length)) ==
                     IoStatus::kOk));
      std::fill_n(begin, length, std::byte{0});
    } else if (snapshots.size() < 4) {
      snapshots.push_back(Uuid::random());
      run(service.create_snapshot(one.id, snapshots.back(), "s" + std::to_string(i)));
    } else {
      run(service.delete_volume(snapshots.back()));
      snapshots.pop_back();
    }
  }
  std::vector<std::byte> back(kVolumeBytes);
  BOOST_REQUIRE((channels[0].read(0, back) == IoStatus::kOk));
  BOOST_TEST((back == model));
}

BOOST_AUTO_TEST_CASE(memory_of_any_shape_is_read_and_written_across_blocks) {
  const auto one = spec("one");
  run(service.create_volume("pool", one));
  auto device = run(service.open(one.id));
  RemoteChannel channel(*device, reactors->at(1));
  const auto data = pattern(40 * 512, 5);
  for (const bool mapped : {false, true}) {
    if (mapped) BOOST_REQUIRE((channel.write(0, filled(kVolumeBytes, 0xee)) == IoStatus::kOk));
    for (const IoOp op : {IoOp::kWrite, IoOp::kRead}) {
      std::vector<std::byte> bytes = op == IoOp::kWrite ? data : std::vector<std::byte>(data.size());
      std::vector<iovec> iov;
      for (std::size_t at = 0; at < bytes.size(); at += 100) {
        iov.push_back({bytes.data() + at, std::min<std::size_t>(100, bytes.size() - at)});
      }
      struct Request : IoRequest {
        std::promise<IoStatus> done;
      } request;
      request.op = op;
      request.iov = iov.data();
      request.iov_count = static_cast<std::uint16_t>(iov.size());
      request.offset_bytes = kClusterBytes - 9 * 512;
      request.length_bytes = bytes.size();
      request.complete = [](IoRequest& r) { static_cast<Request&>(r).done.set_value(r.status); };
      auto future = request.done.get_future();
      channel.reactor().post([&] { channel.channel().submit(request); });
      BOOST_REQUIRE((future.get() == IoStatus::kOk));
      BOOST_TEST((bytes == data));
    }
  }
}

// Each of eight workers has a sector of every block, and more requests under way than there is memory for parts.
BOOST_AUTO_TEST_CASE(writes_to_different_sectors_of_a_block_from_all_reactors_all_survive) {
  constexpr std::uint64_t kBlocks = 40;
  const auto one = spec("one");
  run(service.create_volume("pool", one));
  auto device = run(service.open(one.id));
  std::deque<RemoteChannel> channels;
  for (unsigned i = 0; i < 3; ++i) channels.emplace_back(*device, reactors->at(i));
  for (unsigned round = 1; round <= 12; ++round) {
    const auto stamp = [&](std::uint64_t block, std::uint64_t sector) {
      return static_cast<unsigned>(round * 17 + block * 5 + sector);
    };
    for (const IoOp op : {IoOp::kWrite, IoOp::kRead}) {
      std::deque<Pending> pending;
      for (std::uint64_t block = 0; block < kBlocks; ++block) {
        for (std::uint64_t sector = 0; sector < kSectorsInBlock; ++sector) {
          const unsigned byte = op == IoOp::kWrite ? stamp(block, sector) : 0;
          pending.emplace_back(channels[sector % 3], op, block * 4096 + sector * 512, filled(512, byte));
        }
      }
      for (Pending& each : pending) BOOST_REQUIRE((each.wait() == IoStatus::kOk));
      if (op == IoOp::kWrite) continue;
      for (std::size_t i = 0; i < pending.size(); ++i) {
        const unsigned wanted = stamp(i / kSectorsInBlock, i % kSectorsInBlock);
        BOOST_TEST((pending[i].bytes == filled(512, wanted)), "sector " << i << " in round " << round);
      }
    }
  }
}

// The rest of a block that is read to change a sector must not be written over what came meanwhile.
BOOST_AUTO_TEST_CASE(a_write_of_a_whole_block_beside_one_of_a_sector_in_it_is_not_undone) {
  const auto one = spec("one");
  run(service.create_volume("pool", one));
  auto device = run(service.open(one.id));
  RemoteChannel whole(*device, reactors->at(1)), part(*device, reactors->at(2)), reader(*device, reactors->at(0));
  BOOST_REQUIRE((whole.write(0, filled(kVolumeBytes, 0xee)) == IoStatus::kOk));
  constexpr std::uint64_t kBlocks = 8;
  for (unsigned round = 0; round < 300; ++round) {
    const unsigned byte = round % 100;
    std::deque<Pending> pending;
    for (std::uint64_t block = 0; block < kBlocks; ++block) {
      const std::uint64_t sector = (round + block) % kSectorsInBlock;
      const IoOp op = round % 3 == 0 ? IoOp::kWriteZeroes : IoOp::kWrite;
      pending.emplace_back(part, op, block * 4096 + sector * 512, filled(512, 0xff));
      pending.emplace_back(whole, IoOp::kWrite, block * 4096, filled(4096, byte));
    }
    for (Pending& each : pending) BOOST_REQUIRE((each.wait() == IoStatus::kOk));
    for (std::uint64_t block = 0; block < kBlocks; ++block) {
      std::vector<std::byte> back(4096);
      BOOST_REQUIRE((reader.read(block * 4096, back) == IoStatus::kOk));
      for (std::uint64_t sector = 0; sector < kSectorsInBlock; ++sector) {
        if (sector == (round + block) % kSectorsInBlock) continue;
        const std::vector<std::byte> found(back.begin() + static_cast<long>(sector * 512),
                                           back.begin() + static_cast<long>(sector * 512 + 512));
        BOOST_REQUIRE_MESSAGE(found == filled(512, byte),
                              "block " << block << ", sector " << sector << ", round " << round);
      }
    }
  }
}

// Sectors go on being written while snapshots are taken: each holds, of every sector, what was answered before it or
// what was written beside it, and the volume the last.
BOOST_AUTO_TEST_CASE(sectors_written_under_snapshots_are_not_lost) {
  const auto one = spec("one");
  run(service.create_volume("pool", one));
  auto device = run(service.open(one.id));
  std::deque<RemoteChannel> channels;
  for (unsigned i = 0; i < 3; ++i) channels.emplace_back(*device, reactors->at(i));
  std::atomic<bool> stop{false};
  std::vector<std::future<std::string>> workers;
  for (unsigned worker = 0; worker < 3; ++worker) {
    workers.push_back(std::async(std::launch::async, [&, worker]() -> std::string {
      std::mt19937_64 random(worker);
      std::vector<unsigned> written(64, 0);
      while (!stop) {
        const std::uint64_t block = random() % written.size();
        const std::uint64_t at = block * 4096 + worker * 1024;
        std::vector<std::byte> back(1024);
        if (channels[worker].read(at, back) != IoStatus::kOk) return "a read failed";
        if (back != filled(1024, written[block])) return "wrong data in block " + std::to_string(block);
        written[block] = 1 + static_cast<unsigned>(random() % 250);
        if (channels[worker].write(at, filled(1024, written[block])) != IoStatus::kOk) return "a write failed";
      }
      return "";
    }));
  }
  for (int round = 0; round < 15; ++round) {
    const Uuid snapshot = Uuid::random();
    run(service.create_snapshot(one.id, snapshot, "s" + std::to_string(round)));
    auto frozen = run(service.open(snapshot));
    RemoteChannel reader(*frozen, reactors->at(1));
    std::vector<std::byte> first(64 * 4096), second(64 * 4096);
    BOOST_TEST((reader.read(0, first) == IoStatus::kOk));
    BOOST_TEST((reader.read(0, second) == IoStatus::kOk));
    BOOST_TEST((first == second));
  }
  stop = true;
  for (auto& worker : workers) BOOST_TEST(worker.get() == "");
}

BOOST_AUTO_TEST_SUITE_END()

// A record from before there was a choice has no block size: such a volume keeps the device's.
BOOST_DATA_TEST_CASE(a_volume_without_a_block_size_of_its_own_has_that_of_the_device,
                     boost::unit_test::data::make({512U, 4096U}), device_block_bytes) {
  const auto reactors = start_reactors(1);
  reactor::Reactor& home = reactors->main();
  auto disk = std::make_shared<blob::SimDisk>(32 * kMiB, device_block_bytes);
  Uuid pool, old, copy;
  pool.bytes.fill(1);
  old.bytes.fill(2);
  copy.bytes.fill(3);
  blob::FormatOptions format{.id = pool, .name = "sim", .cluster_bytes = kClusterBytes, .created_ms = 1};
  must(call(home, blob::Store::format(make_sim_bdev(disk, 1), home, std::move(format))));
  const auto open = [&] { return must(call(home, blob::Store::open(make_sim_bdev(disk, 1), home))); };
  auto store = open();
  blob::CreateOptions options{.id = old, .name = "old", .size_bytes = kMiB, .created_ms = 1};
  must(call(home, store->create(std::move(options))));
  blob::CreateOptions fork{.id = copy, .name = "copy", .created_ms = 1};
  must(call(home, store->fork(old, std::move(fork))));
  for (const bool reopened : {false, true}) {
    if (reopened) {
      must(call(home, store->close()));
      store = open();
    }
    for (const Uuid& id : {old, copy}) {
      blob::Volume& record = *must(call(home, store->view(id)));
      BOOST_TEST(record.block_shift == 0);
      const auto device = std::make_shared<VolumeBdev>(*store, record);
      BOOST_TEST(device->block_bytes() == device_block_bytes);
    }
  }
  must(call(home, store->close()));
}
