// pollux-device-gate: what requests to volumes ask of the pool's device, and how often the reactor waits for it.
//
// Prints one line a case: NAME REQUESTS OPERATIONS STABLE SLEEPS, the latter three of all requests of the case
// together; see counting_disk.h. Cases with a number are of so many requests at a time.

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bdev/ram.h"
#include "blob/store.h"
#include "perf-gate/counting_disk.h"
#include "volume/volume_bdev.h"

namespace {

using namespace pollux;
using reactor::Task;

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kPoolBytes = 256 * kMiB;
constexpr std::uint64_t kVolumeBytes = 32 * kMiB;
constexpr std::uint32_t kIoBytes = 4096;
constexpr std::uint32_t kClusterBytes = 64 << 10;
constexpr unsigned kRequests = 32;
// A full volume.
constexpr std::uint8_t kOrigin = 2;

template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

Uuid uuid(std::uint8_t number) {
  Uuid made;
  made.bytes.fill(number);
  return made;
}

class DeviceGate {
 public:
  explicit DeviceGate(reactor::Reactor& home)
      : home_(home),
        disk_(std::make_shared<gate::CountingDisk>(must(bdev::make_ram_bdev("ram", kPoolBytes)))),
        data_(16 * kIoBytes) {}

  Task<Status> run() {
    co_await home_.enter();
    blob::FormatOptions format{.id = uuid(1), .name = "pool", .cluster_bytes = kClusterBytes};
    POLLUX_CO_TRY(co_await blob::Store::format(disk_, home_, std::move(format)));
    // No commit because time has passed: the counts are the same in every run.
    blob::OpenOptions options{.queue = blob::JournalQueue::in_process(), .longest_queued_us = 3'600'000'000};
    auto opened = co_await blob::Store::open(disk_, home_, options);
    if (!opened) co_return fail(std::move(opened.error()));
    store_ = std::move(*opened);
    auto counted = co_await count_all();
    co_await settle();
    POLLUX_CO_TRY(co_await store_->close());
    co_return counted;
  }

 private:
  // An open volume, with its channel here.
  struct Open {
    std::shared_ptr<volume::VolumeBdev> device;
    std::unique_ptr<bdev::Channel> channel;
  };

  Task<Status> count_all() {
    {
      auto origin = co_await make(kOrigin, /*clone=*/false);
      if (!origin) co_return fail(std::move(origin.error()));
      POLLUX_CO_TRY(co_await fill(*origin->channel));
      POLLUX_CO_TRY(co_await count_written(*origin->channel));
    }
    for (const bool clone : {false, true}) {
      const std::string kind = clone ? "clone" : "thin";
      for (const unsigned at_a_time : {1U, kRequests}) {
        for (const bool fua : {false, true}) {
          const auto id = next_id_++;
          auto made = co_await make(id, clone);
          if (!made) co_return fail(std::move(made.error()));
          // The volume's first write of all also loads what is known of it.
          POLLUX_CO_TRY(co_await first_write(*made->channel));
          const std::string name = kind + (fua ? "/first-write-fua" : "/first-write");
          POLLUX_CO_TRY(co_await count(name, *made->channel, bdev::IoOp::kWrite, fua, at_a_time));
          if (fua || at_a_time != 1) continue;
          POLLUX_CO_TRY(co_await count(kind + "/flush-after", *made->channel, bdev::IoOp::kFlush, false, 1));
        }
      }
    }
    co_return Status{};
  }

  Task<Status> count_written(bdev::Channel& channel) {
    for (const unsigned at_a_time : {1U, kRequests}) {
      POLLUX_CO_TRY(co_await count("written/write", channel, bdev::IoOp::kWrite, false, at_a_time));
      POLLUX_CO_TRY(co_await count("written/write-fua", channel, bdev::IoOp::kWrite, true, at_a_time));
      POLLUX_CO_TRY(co_await count("written/flush", channel, bdev::IoOp::kFlush, false, at_a_time));
      POLLUX_CO_TRY(co_await count("written/read", channel, bdev::IoOp::kRead, false, at_a_time));
    }
    co_return Status{};
  }

  // Each request is for a cluster of its own.
  Task<Status> count(std::string name, bdev::Channel& channel, bdev::IoOp op, bool fua, unsigned at_a_time) {
    co_await settle();
    const gate::DiskCounts before = disk_->counts();
    const std::uint64_t sleeps = home_.counters().sleeps;
    for (unsigned done = 0; done < kRequests; done += at_a_time) {
      POLLUX_CO_TRY(co_await batch(channel, op, fua, 1 + done, at_a_time));
    }
    const std::uint64_t slept = home_.counters().sleeps - sleeps;
    const gate::DiskCounts after = disk_->counts();
    std::printf("%s/%u %u %llu %llu %llu\n", name.c_str(), at_a_time, kRequests,
                static_cast<unsigned long long>(after.operations - before.operations),
                static_cast<unsigned long long>(after.stable - before.stable), static_cast<unsigned long long>(slept));
    co_return Status{};
  }

  // Until nothing is under way: what earlier requests left to be done in the background is not counted.
  Task<void> settle() {
    std::uint64_t operations = 0;
    do {
      operations = disk_->counts().operations;
      co_await home_.sleep_us(20'000);
    } while (!store_->idle() || operations != disk_->counts().operations);
  }

  struct Waiting : bdev::IoRequest {
    iovec piece{};
    unsigned* left = nullptr;
    bdev::IoStatus* worst = nullptr;
    reactor::Completion<bool>* all = nullptr;
  };

  Task<Status> batch(bdev::Channel& channel, bdev::IoOp op, bool fua, std::uint64_t first, unsigned count) {
    std::vector<Waiting> requests(count);
    unsigned left = count;
    bdev::IoStatus worst = bdev::IoStatus::kOk;
    reactor::Completion<bool> all;
    for (unsigned i = 0; i < count; ++i) {
      Waiting& request = requests[i];
      request.op = op;
      request.flags = fua ? bdev::IoRequest::kFua : 0;
      if (op != bdev::IoOp::kFlush) {
        request.piece = {data_.data(), kIoBytes};
        request.iov = &request.piece;
        request.iov_count = 1;
        request.offset_bytes = (first + i) * kClusterBytes;
        request.length_bytes = kIoBytes;
      }
      request.left = &left;
      request.worst = &worst;
      request.all = &all;
      request.complete = [](bdev::IoRequest& done) {
        auto& waiting = static_cast<Waiting&>(done);
        if (waiting.status != bdev::IoStatus::kOk) *waiting.worst = waiting.status;
        if (--*waiting.left == 0) waiting.all->set(true);
      };
    }
    for (Waiting& request : requests) channel.submit(request);
    co_await all;
    co_return bdev::to_status(worst, "a request to a volume");
  }

  Task<Status> fill(bdev::Channel& channel) {
    for (std::uint64_t offset = 0; offset < kVolumeBytes; offset += kClusterBytes) {
      const auto status = co_await bdev::write(channel, offset, data_.data(), data_.size());
      POLLUX_CO_TRY(bdev::to_status(status, "filling the volume"));
    }
    co_return bdev::to_status(co_await bdev::flush(channel), "flushing the volume");
  }

  Task<Status> first_write(bdev::Channel& channel) {
    POLLUX_CO_TRY(bdev::to_status(co_await bdev::write(channel, 0, data_.data(), kIoBytes), "the first write"));
    co_return bdev::to_status(co_await bdev::flush(channel), "flushing the volume");
  }

  // A thin volume, or a clone of the origin.
  Task<Result<Open>> make(std::uint8_t id, bool clone) {
    blob::CreateOptions options{.id = uuid(id), .name = std::to_string(id), .size_bytes = kVolumeBytes};
    Result<blob::Volume*> made = fail(ErrorCode::kInternal, "not made");
    if (clone) {
      made = co_await store_->fork(uuid(kOrigin), std::move(options));
    } else {
      made = co_await store_->create(std::move(options));
    }
    if (!made) co_return fail(std::move(made.error()));
    co_return co_await open(uuid(id));
  }

  Task<Result<Open>> open(Uuid id) {
    auto seen = co_await store_->view(id);
    if (!seen) co_return fail(std::move(seen.error()));
    Open opened{.device = std::make_shared<volume::VolumeBdev>(*store_, **seen)};
    auto channel = co_await opened.device->open_channel(home_);
    if (!channel) co_return fail(std::move(channel.error()));
    opened.channel = std::move(*channel);
    co_return opened;
  }

  reactor::Reactor& home_;
  const std::shared_ptr<gate::CountingDisk> disk_;
  std::unique_ptr<blob::Store> store_;
  std::vector<std::byte> data_;
  std::uint8_t next_id_ = kOrigin + 1;
};

}  // namespace

int main() {
  try {
    auto reactors = must(reactor::ReactorGroup::start({{.id = 0}}));
    DeviceGate gate(reactors->main());
    must(reactor::call(reactors->main(), gate.run()));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pollux-device-gate: %s\n", error.what());
    return 1;
  }
  return 0;
}
