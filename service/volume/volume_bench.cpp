// pollux-volume-bench: random 4 KiB I/O at queue depth 32 on one reactor, in this process, on memory: the raw device, a
// written volume, first writes into a thin volume and into a clone, and reads below many snapshots. The cases of a
// round follow each other at once, and what is printed is the median of the rounds' ratios to the case it is compared
// with.
//
//   pollux-volume-bench [ROUNDS]

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "base/clock.h"
#include "base/log.h"
#include "volume/test_support.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;

namespace {

constexpr std::uint64_t kVolumeBytes = 512 * kMiB;
constexpr std::uint32_t kIoBytes = 4096;
constexpr unsigned kDepth = 32;

// Every block of the device once, in random order, kDepth at a time, from the reactor's own thread.
class Run {
 public:
  Run(bdev::Channel& channel, bdev::IoOp op, std::uint64_t requests, std::uint64_t seed)
      : channel_(channel), requests_(requests), order_(kVolumeBytes / kIoBytes), buffer_(kIoBytes) {
    for (std::size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<std::uint32_t>(i);
    std::shuffle(order_.begin(), order_.end(), std::mt19937_64(seed));
    for (Slot& slot : slots_) {
      slot.run = this;
      slot.vector = {buffer_.data(), kIoBytes};
      slot.op = op;
      slot.length_bytes = kIoBytes;
      slot.iov = &slot.vector;
      slot.iov_count = 1;
      slot.complete = [](bdev::IoRequest& request) {
        auto& mine = static_cast<Slot&>(request);
        mine.run->ended(mine);
      };
    }
  }
  reactor::Task<Result<double>> go(reactor::Reactor& reactor) {
    co_await reactor.enter();
    const std::uint64_t begin_ns = monotonic_ns();
    // Devices that answer at once would nest one request in the other without bound: ready slots go out in a loop.
    for (Slot& slot : slots_) ready_.push_back(&slot);
    pump();
    co_await done_;
    if (failed_ != 0) co_return fail(ErrorCode::kIoError, std::to_string(failed_) + " requests failed");
    co_return static_cast<double>(requests_) * 1e9 / static_cast<double>(monotonic_ns() - begin_ns);
  }

 private:
  struct Slot : bdev::IoRequest {
    Run* run = nullptr;
    iovec vector{};
  };
  void ended(Slot& slot) {
    failed_ += slot.status != bdev::IoStatus::kOk;
    ++completed_;
    ready_.push_back(&slot);
    pump();
  }
  void pump() {
    if (pumping_) return;
    pumping_ = true;
    while (!ready_.empty() && issued_ < requests_) {
      Slot& slot = *ready_.back();
      ready_.pop_back();
      slot.offset_bytes = std::uint64_t{order_[issued_++ % order_.size()]} * kIoBytes;
      channel_.submit(slot);
    }
    pumping_ = false;
    if (completed_ == requests_) done_.set(true);
  }

  bdev::Channel& channel_;
  const std::uint64_t requests_;
  std::vector<std::uint32_t> order_;
  std::vector<std::byte> buffer_;
  Slot slots_[kDepth];
  std::vector<Slot*> ready_;
  std::uint64_t issued_ = 0, completed_ = 0, failed_ = 0;
  bool pumping_ = false;
  reactor::Completion<bool> done_;
};

struct Bench {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(1);
  reactor::Reactor& reactor = reactors->main();
  VolumeService service{*reactors};
  std::uint64_t seed = 1;

  template <typename T>
  T ask(reactor::Task<Result<T>> task) {
    return must(reactor::call(reactor, std::move(task)));
  }
  double measure(bdev::Bdev& device, bdev::IoOp op, std::uint64_t requests) {
    RemoteChannel channel(device, reactor);
    Run run(channel.channel(), op, requests, ++seed);
    return ask(run.go(reactor));
  }
  Uuid make(const std::string& name) {
    const Uuid id = Uuid::random();
    ask(service.create_volume("pool", {.id = id, .name = name, .size_bytes = kVolumeBytes}));
    return id;
  }
  void fill(const Uuid& id) {
    auto device = ask(service.open(id));
    RemoteChannel channel(*device, reactor);
    const auto bytes = pattern(kMiB, 1);
    for (std::uint64_t at = 0; at < kVolumeBytes; at += kMiB) must(bdev::to_status(channel.write(at, bytes), "fill"));
  }
  Uuid snapshot(const Uuid& id) {
    const Uuid snapshot = Uuid::random();
    ask(service.create_snapshot(id, snapshot, snapshot.to_string()));
    return snapshot;
  }
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Case {
  std::string name;
  std::function<double()> run;
  int baseline;  // index of the case it is compared with
  std::vector<double> iops, ratios;
};

}  // namespace

int main(int argc, char** argv) {
  must(log::init("error", ""));
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 7;
  Bench bench;
  const bdev::Spec memory{.kind = bdev::Spec::Kind::kRam, .path = {}, .size_bytes = 8 * kGiB};
  bench.ask(bench.service.create_pool({.id = Uuid::random(), .name = "pool", .bdev = memory}));
  bdev::Spec raw_spec = memory;
  raw_spec.size_bytes = kVolumeBytes;
  auto raw = must(bdev::open(raw_spec));
  constexpr std::uint64_t kRequests = kVolumeBytes / kIoBytes;
  bench.measure(*raw, bdev::IoOp::kWrite, kRequests);

  const Uuid written = bench.make("written");
  bench.fill(written);
  // Below so many snapshots, each taken after some writes, so that every one has clusters of its own.
  std::vector<std::pair<int, Uuid>> depths;
  for (const int depth : {1, 10, 50, 200}) {
    const Uuid id = bench.make("depth-" + std::to_string(depth));
    bench.fill(id);
    auto device = bench.ask(bench.service.open(id));
    for (int i = 0; i < depth; ++i) {
      bench.snapshot(id);
      bench.measure(*device, bdev::IoOp::kWrite, 64);
    }
    depths.emplace_back(depth, id);
  }
  const Uuid base = bench.make("base");
  bench.fill(base);
  const Uuid full = bench.snapshot(base);

  const auto on = [&](Uuid id, bdev::IoOp op) {
    return [&bench, id, op] {
      auto device = bench.ask(bench.service.open(id));
      return bench.measure(*device, op, kRequests);
    };
  };
  const auto first_writes = [&](bool clone) {
    return [&bench, clone, full] {
      const Uuid id = Uuid::random();
      const VolumeSpec spec{.id = id, .name = id.to_string(), .size_bytes = kVolumeBytes};
      bench.ask(clone ? bench.service.clone(full, spec) : bench.service.create_volume("pool", spec));
      double iops = 0;
      {
        auto device = bench.ask(bench.service.open(id));
        // An eighth of the blocks: most of them the first in their cluster or beside others in flight.
        iops = bench.measure(*device, bdev::IoOp::kWrite, kRequests / 8);
      }
      bench.ask(bench.service.delete_volume(id));
      while (!bench.ask(bench.service.list_jobs()).empty()) {
      }
      return iops;
    };
  };
  std::vector<Case> cases;
  cases.push_back(
      {"raw device, write", [&] { return bench.measure(*raw, bdev::IoOp::kWrite, kRequests); }, -1, {}, {}});
  cases.push_back({"written volume, write", on(written, bdev::IoOp::kWrite), 0, {}, {}});
  cases.push_back({"raw device, read", [&] { return bench.measure(*raw, bdev::IoOp::kRead, kRequests); }, -1, {}, {}});
  cases.push_back({"written volume, read", on(written, bdev::IoOp::kRead), 2, {}, {}});
  cases.push_back({"thin volume, first writes", first_writes(false), 1, {}, {}});
  cases.push_back({"clone of a full snapshot, first writes", first_writes(true), 1, {}, {}});
  for (const auto& [depth, id] : depths) {
    cases.push_back({"read below " + std::to_string(depth) + " snapshots", on(id, bdev::IoOp::kRead), 3, {}, {}});
  }
  for (int round = 0; round < rounds; ++round) {
    for (Case& each : cases) {
      each.iops.push_back(each.run());
      if (each.baseline >= 0) each.ratios.push_back(each.iops.back() / cases[each.baseline].iops.back());
    }
  }
  for (const Case& each : cases) {
    std::printf("%-40s %10.0f IOPS", each.name.c_str(), median(each.iops));
    if (each.baseline >= 0) std::printf("  %.3f of: %s", median(each.ratios), cases[each.baseline].name.c_str());
    std::printf("\n");
  }
  must(reactor::call(bench.reactor, bench.service.close()));
  return 0;
}
