// All data of a pool passes one place (blob/cluster_io.h): with a layer there that writes every byte XORed with one that
// depends on its place on the device, whatever is done to volumes reads back right, and the device holds nothing of it
// in plain.

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <deque>

#include "bdev/layer.h"
#include "blob/sim_bdev.h"
#include "blob/store.h"
#include "volume/test_support.h"
#include "volume/volume_bdev.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;
using bdev::IoOp;
using bdev::IoRequest;
using bdev::IoStatus;
using reactor::call;

namespace {

constexpr std::uint32_t kClusterBytes = 64 * kKiB;
constexpr std::uint64_t kVolumeBytes = 3 * kMiB;
constexpr std::uint64_t kDiskBytes = 96 * kMiB;
// Marks every word of what is written; no metadata has it.
constexpr std::uint64_t kMark = 0x9dc3'a551'e72b'0000;
constexpr std::uint64_t kMarkMask = 0xffff'ffff'ffff'0000;

void mix(std::uint64_t offset_bytes, std::byte* bytes, std::size_t length) {
  for (std::size_t i = 0; i < length; ++i) {
    const std::uint64_t at = (offset_bytes + i) * 0x9e37'79b9'7f4a'7c15ULL;
    bytes[i] ^= static_cast<std::byte>((at >> 56) | 1);
  }
}

struct Passed {
  std::array<std::atomic<std::uint64_t>, 6> ops{};
  std::uint64_t of(IoOp op) const { return ops[static_cast<std::size_t>(op)]; }
};

class XorChannel final : public bdev::Channel {
  struct Reading {
    void (*complete)(IoRequest&);
  };

 public:
  static constexpr std::uint32_t kFrameBytes = sizeof(Reading);

  XorChannel(std::unique_ptr<bdev::Channel> below, Passed& passed) : below_(std::move(below)), passed_(passed) {}

  void submit(IoRequest& request) override {
    ++passed_.ops[static_cast<std::size_t>(request.op)];
    if (request.op == IoOp::kWrite) return write(request);
    if (request.op == IoOp::kRead) {
      request.push_frame(Reading{request.complete});
      request.complete = &XorChannel::read;
    }
    below_->submit(request);
  }

 private:
  // The caller's memory stays as it is.
  struct Writing : IoRequest {
    std::vector<std::byte> bytes;
    iovec piece{};
    IoRequest* from = nullptr;
  };

  void write(IoRequest& request) {
    auto* mixed = new Writing;
    mixed->op = request.op;
    mixed->flags = request.flags;
    mixed->offset_bytes = request.offset_bytes;
    mixed->length_bytes = request.length_bytes;
    for (std::uint16_t i = 0; i < request.iov_count; ++i) {
      const auto* from = static_cast<const std::byte*>(request.iov[i].iov_base);
      mixed->bytes.insert(mixed->bytes.end(), from, from + request.iov[i].iov_len);
    }
    mixed->bytes.resize(request.length_bytes);
    mix(request.offset_bytes, mixed->bytes.data(), mixed->bytes.size());
    mixed->piece = {mixed->bytes.data(), mixed->bytes.size()};
    mixed->iov = &mixed->piece;
    mixed->iov_count = 1;
    mixed->from = &request;
    mixed->complete = [](IoRequest& done) {
      const std::unique_ptr<Writing> writing(static_cast<Writing*>(&done));
      writing->from->status = done.status;
      writing->from->complete(*writing->from);
    };
    below_->submit(*mixed);
  }

  static void read(IoRequest& request) {
    const Reading was = request.pop_frame<Reading>();
    std::uint64_t at = request.offset_bytes;
    std::uint64_t left = request.status == IoStatus::kOk ? request.length_bytes : 0;
    for (std::uint16_t i = 0; left != 0; ++i) {
      const std::uint64_t now = std::min<std::uint64_t>(left, request.iov[i].iov_len);
      mix(at, static_cast<std::byte*>(request.iov[i].iov_base), now);
      at += now;
      left -= now;
    }
    request.complete = was.complete;
    request.complete(request);
  }

  const std::unique_ptr<bdev::Channel> below_;
  Passed& passed_;
};

class XorLayer final : public bdev::Layer {
 public:
  XorLayer(std::shared_ptr<bdev::Bdev> below, Passed& passed)
      : bdev::Layer(std::move(below), XorChannel::kFrameBytes), passed_(passed) {}
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    auto channel = co_await below().open_channel(reactor);
    if (!channel) co_return fail(std::move(channel.error()));
    co_return std::make_unique<XorChannel>(std::move(*channel), passed_);
  }

 private:
  Passed& passed_;
};

std::vector<std::byte> marked(std::uint64_t length, std::uint64_t number) {
  std::vector<std::byte> bytes(length);
  const std::uint64_t word = kMark | (number & ~kMarkMask);
  for (std::size_t at = 0; at < length; at += sizeof(word)) std::memcpy(bytes.data() + at, &word, sizeof(word));
  return bytes;
}

std::uint64_t plain_words(const std::vector<std::byte>& image) {
  std::uint64_t found = 0;
  for (std::size_t at = 0; at < image.size(); at += sizeof(std::uint64_t)) {
    std::uint64_t word;
    std::memcpy(&word, image.data() + at, sizeof(word));
    found += (word & kMarkMask) == kMark;
  }
  return found;
}

struct Pool {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(3);
  reactor::Reactor& home = reactors->main();
  std::shared_ptr<blob::SimDisk> disk;
  Passed passed;
  std::unique_ptr<blob::Store> store;
  struct Open {
    std::shared_ptr<VolumeBdev> device;
    std::deque<RemoteChannel> channels;  // one a reactor
  };
  std::map<Uuid, Open> opened;
  std::map<Uuid, std::vector<std::byte>> model;

  explicit Pool(std::uint32_t device_block_bytes)
      : disk(std::make_shared<blob::SimDisk>(kDiskBytes, device_block_bytes)) {
    blob::FormatOptions options{.id = Uuid::random(), .name = "sim", .cluster_bytes = kClusterBytes, .created_ms = 1};
    must(call(home, blob::Store::format(make_sim_bdev(disk, 1), home, std::move(options))));
    load(/*layered=*/true);
  }
  ~Pool() { close(); }

  void load(bool layered) {
    blob::OpenOptions options{.discard_pace = {.delay_us = 0, .rest = 0}};
    if (layered) {
      options.data_layer = [this](std::shared_ptr<bdev::Bdev> device) -> std::shared_ptr<bdev::Bdev> {
        return std::make_shared<XorLayer>(std::move(device), passed);
      };
    }
    store = must(call(home, blob::Store::open(make_sim_bdev(disk, 2), home, options)));
  }
  void close() {
    opened.clear();
    must(call(home, store->close()));
    store.reset();
  }
  Uuid create() {
    const Uuid id = Uuid::random();
    blob::CreateOptions options{.id = id, .name = id.to_string(), .size_bytes = kVolumeBytes, .created_ms = 1};
    options.block_bytes = kSectorBytes;
    must(call(home, store->create(std::move(options))));
    model[id].resize(kVolumeBytes);
    return id;
  }
  Uuid fork(const Uuid& source, bool snapshot) {
    const Uuid id = Uuid::random();
    blob::CreateOptions options{.id = id, .name = id.to_string(), .snapshot = snapshot, .created_ms = 1};
    must(call(home, store->fork(source, std::move(options))));
    model[id] = model[source];
    return id;
  }
  void remove(const Uuid& id) {
    opened.erase(id);
    model.erase(id);
    // The device gives its volume back by a message.
    while (true) {
      const auto removed = call(home, store->remove(id));
      if (removed) return;
      if (removed.error().code != ErrorCode::kBusy) throw std::runtime_error(removed.error().message);
    }
  }
  reactor::Task<Status> flatten_task(Uuid id) {
    co_await home.enter();
    const auto job = co_await store->flatten(id, Uuid::random());
    if (!job) co_return fail(job.error());
    while (true) {
      co_await home.sleep_us(100);
      for (const blob::Job& each : store->jobs()) {
        if (each.id != job->id || each.state == blob::JobState::kRunning) continue;
        co_return each.state == blob::JobState::kDone ? Status{} : fail(ErrorCode::kInternal, each.error);
      }
    }
  }
  void settle() {
    struct Idle {
      static reactor::Task<Status> wait(reactor::Reactor& home, blob::Store& store) {
        co_await home.enter();
        POLLUX_CO_TRY(co_await store.checkpoint());
        while (!store.idle()) co_await home.sleep_us(100);
        co_return Status{};
      }
    };
    must(call(home, Idle::wait(home, *store)));
  }
  RemoteChannel& at(const Uuid& id, unsigned reactor) {
    auto [found, fresh] = opened.try_emplace(id);
    if (fresh) {
      blob::Volume& record = *must(call(home, store->view(id)));
      found->second.device = std::make_shared<VolumeBdev>(*store, record);
      for (unsigned i = 0; i < 3; ++i) found->second.channels.emplace_back(*found->second.device, reactors->at(i));
    }
    return found->second.channels[reactor];
  }
  void write(const Uuid& id, unsigned reactor, std::uint64_t offset, std::vector<std::byte> bytes,
             std::uint8_t flags = 0) {
    BOOST_REQUIRE((at(id, reactor).write(offset, bytes, flags) == IoStatus::kOk));
    std::copy(bytes.begin(), bytes.end(), model[id].begin() + static_cast<long>(offset));
  }
  void zero(const Uuid& id, unsigned reactor, std::uint64_t offset, std::uint64_t length, bool unmap) {
    RemoteChannel& channel = at(id, reactor);
    BOOST_REQUIRE(((unmap ? channel.unmap(offset, length) : channel.write_zeroes(offset, length)) == IoStatus::kOk));
    std::fill_n(model[id].begin() + static_cast<long>(offset), length, std::byte{0});
  }
  bool reads_back(const Uuid& id, unsigned reactor) {
    std::vector<std::byte> back(kVolumeBytes);
    BOOST_REQUIRE((at(id, reactor).read(0, back) == IoStatus::kOk));
    return back == model[id];
  }
  void verify(const char* after) {
    for (unsigned reactor = 0; const auto& [id, bytes] : model) {
      BOOST_TEST(reads_back(id, reactor++ % 3), "a volume differs after " << after);
    }
    BOOST_TEST(plain_words(disk->image()) == 0U, "plain words on the device after " << after);
  }
};

const auto kBlocks = boost::unit_test::data::make({512U, 4096U});

}  // namespace

BOOST_AUTO_TEST_SUITE(data_layer)

BOOST_DATA_TEST_CASE(every_operation_passes_it_and_reads_back_right, kBlocks, device_block_bytes) {
  Pool pool(device_block_bytes);
  const Uuid one = pool.create();
  // On a reactor that is not the pool's home, and on the one that is.
  for (const unsigned reactor : {1U, 0U}) {
    const std::uint64_t begin = reactor * kMiB;
    // First writes: a whole cluster, whole sub-blocks, with padding at both ends, across clusters.
    pool.write(one, reactor, begin, marked(kClusterBytes, 1));
    pool.write(one, reactor, begin + 2 * kClusterBytes + 8192, marked(8192, 2));
    pool.write(one, reactor, begin + 4 * kClusterBytes + 1536, marked(1024, 3));
    pool.write(one, reactor, begin + 6 * kClusterBytes - 2560, marked(5120, 4));
    pool.verify("first writes");
    // In place: all of a cluster, a part of a block.
    pool.write(one, reactor, begin, marked(kClusterBytes, 5));
    pool.write(one, reactor, begin + 512, marked(512, 6));
    pool.verify("writes in place");
    // Zeros: parts of blocks and sub-blocks, whole sub-blocks, a whole cluster.
    pool.zero(one, reactor, begin + 2 * kClusterBytes + 8192 + 1024, 1024, false);
    pool.zero(one, reactor, begin + 4 * kClusterBytes + 1536, 512, true);
    pool.zero(one, reactor, begin + 4096, 8192, false);
    pool.zero(one, reactor, begin + 5 * kClusterBytes, kClusterBytes, true);
    pool.verify("zeroes");
    // As COMPARE AND WRITE: a read, then a write that is durable with its answer.
    std::vector<std::byte> compared(512);
    BOOST_REQUIRE((pool.at(one, reactor).read(begin + 512, compared) == IoStatus::kOk));
    BOOST_TEST((compared == marked(512, 6)));
    pool.write(one, reactor, begin + 512, marked(512, 7), IoRequest::kFua);
    pool.verify("compare and write");
  }

  const Uuid snapshot = pool.fork(one, true);
  const Uuid clone = pool.fork(snapshot, false);
  pool.verify("a snapshot and a clone");
  for (const Uuid& id : {one, clone}) {
    // Into what is shared: whole, a part with padding out of the base, zeros, and what replaces a half-written cluster.
    pool.write(id, 2, 0, marked(8192, 8));
    pool.write(id, 1, kMiB + 512, marked(512, 9));
    pool.zero(id, 2, kMiB + 3 * 4096 + 512, 2048, false);
    pool.write(id, 2, 2 * kClusterBytes, marked(kClusterBytes, 10));
    pool.write(id, 1, kMiB + 2 * kClusterBytes + 512, marked(512, 11));
    pool.verify("writes into shared clusters");
  }
  must(call(pool.home, pool.flatten_task(clone)));
  pool.verify("a flatten");

  // A base image: copied in, kept as a snapshot, cloned.
  const Uuid base = pool.create();
  for (std::uint64_t at = 0; at < kVolumeBytes; at += kMiB / 2) {
    if (at == kMiB) {
      pool.zero(base, 1, at, kMiB / 2, true);
    } else {
      pool.write(base, 1, at, marked(kMiB / 2, 20 + at / kMiB));
    }
  }
  const Uuid image = pool.fork(base, true);
  const Uuid server = pool.fork(image, false);
  pool.remove(base);
  pool.write(server, 2, kMiB / 2 + 512, marked(4096, 30));
  pool.verify("an import of a base image");

  // Freed clusters are discarded, and taken again.
  pool.remove(server);
  pool.remove(image);
  pool.settle();
  const Uuid again = pool.create();
  pool.write(again, 1, 0, marked(kVolumeBytes, 40));
  pool.verify("discards");
  for (const IoOp op : {IoOp::kRead, IoOp::kWrite, IoOp::kFlush, IoOp::kUnmap}) {
    BOOST_TEST(pool.passed.of(op) > 0U, bdev::to_string(op) << " passed the layer");
  }

  pool.close();
  pool.load(/*layered=*/true);
  pool.verify("a restart");
  // The data is the layer's to read, and metadata is not.
  pool.close();
  pool.load(/*layered=*/false);
  BOOST_TEST(!pool.reads_back(again, 1));
}

BOOST_DATA_TEST_CASE(random_operations_match_the_model_through_it, kBlocks, device_block_bytes) {
  std::mt19937_64 random(test_seed());
  const auto below = [&](std::uint64_t n) { return random() % n; };
  Pool pool(device_block_bytes);
  const Uuid one = pool.create();
  std::vector<Uuid> forks;
  for (int i = 0; i < 600; ++i) {
    const auto reactor = static_cast<unsigned>(below(3));
    const std::uint64_t offset = below(kVolumeBytes / 512) * 512;
    const std::uint64_t length = std::min((1 + below(below(8) == 0 ? 400 : 24)) * 512, kVolumeBytes - offset);
    const Uuid& id = forks.empty() || below(2) == 0 ? one : forks[below(forks.size())];
    const std::uint64_t what = below(100);
    if (what < 60) {
      pool.write(id, reactor, offset, marked(length, random()), below(16) == 0 ? IoRequest::kFua : 0);
    } else if (what < 90) {
      pool.zero(id, reactor, offset, length, what % 2 == 0);
    } else if (forks.size() < 3) {
      forks.push_back(pool.fork(one, false));
    } else {
      pool.remove(forks.back());
      forks.pop_back();
    }
  }
  pool.verify("random operations");
}

BOOST_AUTO_TEST_SUITE_END()
