// The data path against a model: several reactors, several volumes, snapshots and clones taken under I/O.

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <deque>
#include <filesystem>
#include <future>
#include <map>

#include "bdev/crowd.h"
#include "volume/test_support.h"
#include "volume/volume_service.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;
using reactor::call;

namespace {

struct Fixture {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(3);
  VolumeService service{*reactors};

  template <typename T>
  T run(reactor::Task<Result<T>> task) {
    return must(call(reactors->main(), std::move(task)));
  }
  void make_pool(std::uint64_t bytes, std::uint32_t cluster_bytes) {
    run(service.create_pool({.id = Uuid::random(),
                             .name = "pool",
                             .bdev = {.kind = bdev::Spec::Kind::kRam, .path = {}, .size_bytes = bytes},
                             .cluster_bytes = cluster_bytes}));
  }
  Uuid make_volume(std::string name, std::uint64_t bytes) {
    const Uuid id = Uuid::random();
    run(service.create_volume("pool", {.id = id, .name = std::move(name), .size_bytes = bytes}));
    return id;
  }
  ~Fixture() { run(service.close()); }
};

reactor::Task<Result<std::size_t>> crowd(reactor::Reactor& reactor, bdev::Channel& many, bdev::Channel& one,
                                         bdev::test::Crowd& crowd) {
  co_await reactor.enter();
  co_return co_await crowd.run(many, one);
}

// An open volume with a channel on two reactors, and what it should hold.
struct Open {
  std::shared_ptr<bdev::Bdev> device;
  std::deque<RemoteChannel> channels;
  std::vector<std::byte> model;
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(volume_io, Fixture)

BOOST_AUTO_TEST_CASE(what_was_never_written_reads_as_zeros) {
  make_pool(128 * kMiB, 0);
  const Uuid id = make_volume("one", 64 * kMiB);
  auto device = run(service.open(id));
  RemoteChannel channel(*device, reactors->at(1));
  BOOST_REQUIRE((channel.write(kMiB + 512, pattern(512, 1)) == bdev::IoStatus::kOk));
  std::vector<std::byte> back(2 * kMiB, std::byte{0xee});
  BOOST_REQUIRE((channel.read(0, back) == bdev::IoStatus::kOk));
  std::vector<std::byte> expected(2 * kMiB);
  const auto written = pattern(512, 1);
  std::copy(written.begin(), written.end(), expected.begin() + kMiB + 512);
  BOOST_TEST((back == expected));
}

// Each of these goes to the home reactor, and 512 may be on their way there.
BOOST_AUTO_TEST_CASE(a_request_does_not_wait_for_all_that_another_volume_has_waiting) {
  make_pool(512 * kMiB, 64 * kKiB);
  auto many = run(service.open(make_volume("many", 400 * kMiB)));
  auto one = run(service.open(make_volume("one", kMiB)));
  RemoteChannel to_many(*many, reactors->at(1)), to_one(*one, reactors->at(1));
  bdev::test::Crowd requests(bdev::IoOp::kWrite, 4000, 64 * kKiB);
  const auto before = run(crowd(reactors->at(1), to_many.channel(), to_one.channel(), requests));
  BOOST_TEST(before < 1200u);
}

// Writes of less than a sub-block to places never written, which are few at a time in a pool. All are there before the
// first has ended, as the device answers in a later turn of the reactor.
BOOST_AUTO_TEST_CASE(a_small_first_write_has_its_turn_among_the_many_of_another_volume) {
  const std::string path = "/dev/shm/pollux-" + Uuid::random().to_string();
  run(service.create_pool({.id = Uuid::random(),
                           .name = "pool",
                           .bdev = {.kind = bdev::Spec::Kind::kUring, .path = path, .size_bytes = kGiB},
                           .cluster_bytes = kMiB}));
  std::filesystem::remove(path);
  auto many = run(service.open(make_volume("many", 500 * kMiB)));
  auto one = run(service.open(make_volume("one", kMiB)));
  RemoteChannel to_many(*many, reactors->main()), to_one(*one, reactors->main());
  bdev::test::Crowd requests(bdev::IoOp::kWrite, 450, kMiB);
  const auto before = run(crowd(reactors->main(), to_many.channel(), to_one.channel(), requests));
  BOOST_TEST_MESSAGE(before << " were answered before it");
  BOOST_TEST(before < 100u);
}

BOOST_AUTO_TEST_CASE(bad_requests_are_refused) {
  make_pool(128 * kMiB, 0);
  const Uuid id = make_volume("one", 8 * kMiB);
  auto device = run(service.open(id));
  RemoteChannel channel(*device, reactors->at(1));
  std::vector<std::byte> bytes(512);
  BOOST_TEST((channel.read(8 * kMiB, bytes) == bdev::IoStatus::kInvalid));
  BOOST_TEST((channel.read(UINT64_MAX - 511, bytes) == bdev::IoStatus::kInvalid));
  BOOST_TEST((channel.read(100, bytes) == bdev::IoStatus::kInvalid));
  BOOST_TEST((channel.unmap(0, 9 * kMiB) == bdev::IoStatus::kInvalid));
  const Uuid snapshot = Uuid::random();
  run(service.create_snapshot(id, snapshot, "snap"));
  auto frozen = run(service.open(snapshot));
  RemoteChannel reader(*frozen, reactors->at(2));
  BOOST_TEST(frozen->read_only());
  BOOST_TEST((reader.write(0, bytes) == bdev::IoStatus::kReadOnly));
  BOOST_TEST((reader.read(0, bytes) == bdev::IoStatus::kOk));
}

// All extents of a volume as (length, mapped), neighbours of one kind joined.
std::vector<std::pair<std::uint64_t, bool>> extents(RemoteChannel& channel, std::uint64_t size) {
  std::vector<std::pair<std::uint64_t, bool>> found;
  for (std::uint64_t at = 0; at < size;) {
    const auto [length, mapped] = channel.extent(at, size - at);
    if (length == 0 || length > size - at) throw std::runtime_error("an extent of no use");
    if (!found.empty() && found.back().second == mapped) {
      found.back().first += length;
    } else {
      found.emplace_back(length, mapped);
    }
    at += length;
  }
  return found;
}

BOOST_AUTO_TEST_CASE(extents_tell_data_from_what_reads_as_zeros) {
  using Extents = std::vector<std::pair<std::uint64_t, bool>>;
  make_pool(256 * kMiB, 64 * kKiB);
  const std::uint64_t size = 3 * kGiB;
  const Uuid id = make_volume("one", size);
  auto device = run(service.open(id));
  BOOST_TEST(device->reports_extents());
  RemoteChannel channel(*device, reactors->at(1));
  BOOST_TEST((extents(channel, size) == Extents{{size, false}}));

  // A sub-block of a cluster is the least that is mapped.
  BOOST_REQUIRE((channel.write(kMiB + 4 * kKiB, pattern(4 * kKiB, 1)) == bdev::IoStatus::kOk));
  BOOST_REQUIRE((channel.write(2 * kGiB, pattern(kMiB, 2)) == bdev::IoStatus::kOk));
  const Extents written = {{kMiB + 4 * kKiB, false},
                           {4 * kKiB, true},
                           {kGiB * 2 - kMiB - 8 * kKiB, false},
                           {kMiB, true},
                           {size - 2 * kGiB - kMiB, false}};
  BOOST_TEST((extents(channel, size) == written));

  // A clone has its parent's extents and its own; the snapshot keeps what it has.
  const Uuid snapshot = Uuid::random();
  run(service.create_snapshot(id, snapshot, "snap"));
  BOOST_REQUIRE((channel.unmap(2 * kGiB, kMiB) == bdev::IoStatus::kOk));
  BOOST_TEST(
      (extents(channel, size) == Extents{{kMiB + 4 * kKiB, false}, {4 * kKiB, true}, {size - kMiB - 8 * kKiB, false}}));
  auto frozen = run(service.open(snapshot));
  RemoteChannel reader(*frozen, reactors->at(2));
  BOOST_TEST((extents(reader, size) == written));
}

BOOST_AUTO_TEST_CASE(many_iovecs_of_odd_lengths_across_clusters) {
  make_pool(128 * kMiB, 64 * kKiB);
  const Uuid id = make_volume("one", 8 * kMiB);
  auto device = run(service.open(id));
  RemoteChannel channel(*device, reactors->at(1));
  const auto data = pattern(512 * 512, 5);
  struct Request : bdev::IoRequest {
    std::promise<bdev::IoStatus> done;
  };
  const auto submit = [&](bdev::IoOp op, std::byte* bytes, std::uint64_t offset) {
    // 255 pieces of 1000 bytes and the rest.
    std::vector<iovec> iov;
    std::size_t at = 0;
    for (int i = 0; i < 255; ++i, at += 1000) iov.push_back({bytes + at, 1000});
    iov.push_back({bytes + at, data.size() - at});
    Request request;
    request.op = op;
    request.iov = iov.data();
    request.iov_count = static_cast<std::uint16_t>(iov.size());
    request.offset_bytes = offset;
    request.length_bytes = data.size();
    request.complete = [](bdev::IoRequest& r) { static_cast<Request&>(r).done.set_value(r.status); };
    auto future = request.done.get_future();
    channel.reactor().post([&] { channel.channel().submit(request); });
    return future.get();
  };
  auto source = data;
  BOOST_REQUIRE((submit(bdev::IoOp::kWrite, source.data(), 61 * kKiB) == bdev::IoStatus::kOk));
  std::vector<std::byte> back(data.size());
  BOOST_REQUIRE((submit(bdev::IoOp::kRead, back.data(), 61 * kKiB) == bdev::IoStatus::kOk));
  BOOST_TEST((back == data));
  BOOST_REQUIRE((submit(bdev::IoOp::kWrite, source.data(), 61 * kKiB + 512) == bdev::IoStatus::kOk));
  BOOST_REQUIRE((channel.read(61 * kKiB + 512, back) == bdev::IoStatus::kOk));
  BOOST_TEST((back == data));
}

BOOST_AUTO_TEST_CASE(random_operations_match_the_model_on_every_reactor) {
  const std::uint64_t seed = test_seed();
  const char* wanted = std::getenv("POLLUX_TEST_OPERATIONS");
  const int operations = wanted ? std::atoi(wanted) : 3000;
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  make_pool(512 * kMiB, 64 * kKiB);
  constexpr std::uint64_t kBytes = 2 * kMiB;

  std::map<Uuid, Open> volumes;
  std::map<Uuid, std::vector<std::byte>> snapshots;
  int names = 0;
  const auto add = [&](const Uuid& id, std::vector<std::byte> model) {
    Open& open = volumes[id];
    open.device = run(service.open(id));
    open.channels.emplace_back(*open.device, reactors->at(below(2)));
    open.channels.emplace_back(*open.device, reactors->at(2));
    open.model = std::move(model);
  };
  add(make_volume("v0", kBytes), std::vector<std::byte>(kBytes));
  const auto pick = [&](auto& from) { return std::next(from.begin(), static_cast<long>(below(from.size()))); };

  for (int i = 0; i < operations; ++i) {
    Open& open = pick(volumes)->second;
    RemoteChannel& channel = open.channels[below(2)];
    const std::uint64_t unit = below(3) == 0 ? 512 : 4096;
    const std::uint64_t longest = below(10) == 0 ? kBytes / unit : 16;
    const std::uint64_t offset = below(kBytes / unit) * unit;
    const std::uint64_t length = std::min((1 + below(longest)) * unit, kBytes - offset);
    const auto begin = open.model.begin() + static_cast<long>(offset);
    const std::uint64_t what = below(100);
    if (what < 45) {
      const auto bytes = pattern(length, random());
      BOOST_REQUIRE((channel.write(offset, bytes) == bdev::IoStatus::kOk));
      std::copy(bytes.begin(), bytes.end(), begin);
    } else if (what < 75) {
      std::vector<std::byte> back(length);
      BOOST_REQUIRE((channel.read(offset, back) == bdev::IoStatus::kOk));
      BOOST_REQUIRE_MESSAGE(std::equal(back.begin(), back.end(), begin), "read differs, operation " << i);
    } else if (what < 83) {
      BOOST_REQUIRE((channel.unmap(offset, length) == bdev::IoStatus::kOk));
      std::fill_n(begin, length, std::byte{0});
    } else if (what < 88) {
      BOOST_REQUIRE((channel.write_zeroes(offset, length) == bdev::IoStatus::kOk));
      std::fill_n(begin, length, std::byte{0});
    } else if (what < 91) {
      BOOST_REQUIRE((channel.flush() == bdev::IoStatus::kOk));
    } else if (what < 94 && snapshots.size() < 6) {
      const auto source = pick(volumes);
      const Uuid id = Uuid::random();
      run(service.create_snapshot(source->first, id, "s" + std::to_string(++names)));
      snapshots[id] = source->second.model;
    } else if (what < 96 && !snapshots.empty() && volumes.size() < 5) {
      const auto source = pick(snapshots);
      const Uuid id = Uuid::random();
      run(service.clone(source->first, {.id = id, .name = "c" + std::to_string(++names), .size_bytes = kBytes}));
      add(id, source->second);
    } else if (what < 98 && !snapshots.empty()) {
      const auto gone = pick(snapshots);
      auto device = run(service.open(gone->first));
      {
        RemoteChannel reader(*device, reactors->at(1));
        std::vector<std::byte> back(kBytes);
        BOOST_REQUIRE((reader.read(0, back) == bdev::IoStatus::kOk));
        BOOST_REQUIRE_MESSAGE((back == gone->second), "snapshot differs, operation " << i);
      }
      device.reset();
      run(service.delete_volume(gone->first));
      snapshots.erase(gone);
    } else if (what == 99 && volumes.size() > 1) {
      const auto gone = pick(volumes);
      const Uuid id = gone->first;
      volumes.erase(gone);
      run(service.delete_volume(id));
    }
  }
  for (auto& [id, open] : volumes) {
    std::vector<std::byte> back(kBytes);
    BOOST_REQUIRE((open.channels[0].read(0, back) == bdev::IoStatus::kOk));
    BOOST_TEST((back == open.model));
  }
}

namespace {

// Owns a region of the volume and checks every read of it; runs on its channel's reactor.
struct Worker {
  bdev::Channel& channel;
  reactor::Reactor& reactor;
  std::uint64_t begin;
  std::uint64_t bytes;
  std::mt19937_64 random;
  std::vector<std::byte> model;
  std::atomic<bool>& stop;
  std::uint64_t operations = 0;

  reactor::Task<Result<std::string>> run() {
    co_await reactor.enter();
    while (!stop.load(std::memory_order_relaxed)) {
      ++operations;
      const std::uint64_t unit = random() % 4 == 0 ? 512 : 4096;
      const std::uint64_t offset = random() % (bytes / unit) * unit;
      const std::uint64_t length = std::min((1 + random() % 24) * unit, bytes - offset);
      const std::uint64_t what = random() % 16;
      if (what < 7) {
        const auto data = pattern(length, random());
        if (co_await bdev::write(channel, begin + offset, data.data(), length) != bdev::IoStatus::kOk) {
          co_return std::string("a write failed");
        }
        std::copy(data.begin(), data.end(), model.begin() + static_cast<long>(offset));
      } else if (what < 9) {
        if (co_await bdev::unmap(channel, begin + offset, length) != bdev::IoStatus::kOk) {
          co_return std::string("an unmap failed");
        }
        std::fill_n(model.begin() + static_cast<long>(offset), length, std::byte{0});
      } else if (what < 10) {
        if (co_await bdev::flush(channel) != bdev::IoStatus::kOk) co_return std::string("a flush failed");
      } else {
        std::vector<std::byte> back(length);
        if (co_await bdev::read(channel, begin + offset, back.data(), length) != bdev::IoStatus::kOk) {
          co_return std::string("a read failed");
        }
        if (!std::equal(back.begin(), back.end(), model.begin() + static_cast<long>(offset))) {
          co_return "wrong data at byte " + std::to_string(begin + offset);
        }
      }
      if (operations % 8 == 0) co_await reactor.yield();
    }
    co_return std::string();
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(io_from_all_reactors_stays_right_under_snapshots_clones_growth_and_deletes) {
  const std::uint64_t seed = test_seed();
  const char* wanted = std::getenv("POLLUX_TEST_OPERATIONS");
  const int rounds = wanted ? std::atoi(wanted) / 100 : 12;
  make_pool(512 * kMiB, 64 * kKiB);
  constexpr std::uint64_t kRegion = 512 * kKiB + 4096;  // regions meet within a cluster
  constexpr unsigned kWorkers = 9;
  const Uuid id = make_volume("busy", 8 * kMiB);
  auto device = run(service.open(id));
  std::deque<RemoteChannel> channels;
  for (unsigned i = 0; i < 3; ++i) channels.emplace_back(*device, reactors->at(i));
  std::atomic<bool> stop{false};
  std::deque<Worker> workers;
  std::vector<std::future<std::string>> results;
  // The workers end, and are waited for, however this test ends.
  struct Stopper {
    std::atomic<bool>& stop;
    ~Stopper() { stop = true; }
  } stopper{stop};
  for (unsigned i = 0; i < kWorkers; ++i) {
    RemoteChannel& channel = channels[i % 3];
    workers.push_back({channel.channel(), channel.reactor(), i * kRegion, kRegion, std::mt19937_64(seed + i),
                       std::vector<std::byte>(kRegion), stop});
    results.push_back(std::async(std::launch::async,
                                 [&worker = workers.back()] { return must(call(worker.reactor, worker.run())); }));
  }

  const auto contents = [&](const Uuid& which) {
    auto opened = run(service.open(which));
    RemoteChannel reader(*opened, reactors->at(1));
    std::vector<std::byte> bytes(8 * kMiB);
    BOOST_REQUIRE((reader.read(0, bytes) == bdev::IoStatus::kOk));
    return bytes;
  };
  std::map<Uuid, std::vector<std::byte>> snapshots;
  for (int round = 0; round < rounds; ++round) {
    const Uuid snapshot = Uuid::random();
    run(service.create_snapshot(id, snapshot, "s" + std::to_string(round)));
    snapshots[snapshot] = contents(snapshot);
    const Uuid clone = Uuid::random();
    run(service.clone(snapshot, {.id = clone, .name = "c" + std::to_string(round)}));
    BOOST_TEST((contents(clone) == snapshots[snapshot]));
    run(service.delete_volume(clone));
    run(service.extend_volume(id, 8 * kMiB + static_cast<std::uint64_t>(round + 1) * 16 * kMiB));
    if (snapshots.size() > 4) {
      const auto gone = snapshots.begin();
      BOOST_TEST((contents(gone->first) == gone->second));
      run(service.delete_volume(gone->first));
      snapshots.erase(gone);
    }
  }
  stop = true;
  std::uint64_t operations = 0;
  for (unsigned i = 0; i < kWorkers; ++i) {
    BOOST_TEST(results[i].get() == "");
    operations += workers[i].operations;
  }
  for (const auto& [snapshot, bytes] : snapshots) BOOST_TEST((contents(snapshot) == bytes));
  const auto now = contents(id);
  for (const Worker& worker : workers) {
    BOOST_TEST(std::equal(worker.model.begin(), worker.model.end(), now.begin() + static_cast<long>(worker.begin)));
  }
  BOOST_TEST_MESSAGE(operations << " operations");
  BOOST_TEST(operations > 100U);
}

BOOST_AUTO_TEST_SUITE_END()
