#pragma once
// For tests: users of a device that write to it, flush it and read back what they wrote, each on blocks of its own.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bdev/bdev.h"
#include "reactor/reactor.h"

namespace pollux::bdev::test {

struct Load {
  // Every worker ends after the round that it is in.
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> rounds{0};

  // Waits for so many rounds of all workers together; false after a minute.
  bool reaches(std::uint64_t count) const {
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (rounds < count && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    return rounds >= count;
  }
};

inline constexpr unsigned kLoadWorkers = 4;
inline constexpr std::uint64_t kLoadBytes = kLoadWorkers * 8 * 4096;

// On the channel's reactor. Rounds until the load stops. kCorrupt: other bytes were read than had been written.
inline reactor::Task<Status> verify(reactor::Reactor& reactor, Channel& channel, Load& load, std::uint64_t from_bytes,
                                    std::uint64_t length_bytes) {
  constexpr std::size_t kBytes = 4096;
  co_await reactor.enter();
  std::vector<std::byte> out(kBytes);
  std::vector<std::byte> in(kBytes);
  std::uint64_t round = 0;
  do {
    for (std::uint64_t at = from_bytes; at < from_bytes + length_bytes; at += kBytes) {
      // A device that answers everything at once would leave the reactor no turn for anything else.
      co_await reactor.yield();
      std::memset(out.data(), static_cast<int>(round + at / kBytes), kBytes);
      POLLUX_CO_TRY(to_status(co_await write(channel, at, out.data(), kBytes), "write"));
      if (round % 8 == 0) POLLUX_CO_TRY(to_status(co_await flush(channel), "flush"));
      POLLUX_CO_TRY(to_status(co_await read(channel, at, in.data(), kBytes), "read"));
      if (in != out) co_return fail(ErrorCode::kCorrupt, "other bytes at " + std::to_string(at));
    }
    // So that the next round writes for the first time again, where the device knows such a thing.
    if (round % 4 == 3) POLLUX_CO_TRY(to_status(co_await unmap(channel, from_bytes, length_bytes), "unmap"));
    ++round;
    ++load.rounds;
  } while (!load.stop);
  co_return Status{};
}

inline Opening open_on(reactor::Reactor& reactor, Bdev& device) {
  co_await reactor.enter();
  co_return co_await device.open_channel(reactor);
}

inline reactor::Task<Status> close_on(reactor::Reactor& reactor, std::unique_ptr<Channel> channel) {
  co_await reactor.enter();
  channel.reset();
  co_return Status{};
}

// A channel of its own with kLoadWorkers workers on kLoadBytes, until the load stops, which it does at the latest when
// this ends.
class Users {
 public:
  Users(reactor::Reactor& reactor, Bdev& device, Load& load, std::uint64_t from_bytes)
      : load_(load), over_(std::async(std::launch::async, [&reactor, &device, &load, from_bytes] {
          return run(reactor, device, load, from_bytes);
        })) {}
  ~Users() { load_.stop = true; }
  Users(const Users&) = delete;
  Users& operator=(const Users&) = delete;

  // Waits for the end; the first error.
  Status get() { return over_.get(); }

 private:
  static Status run(reactor::Reactor& reactor, Bdev& device, Load& load, std::uint64_t from_bytes) {
    constexpr std::uint64_t kShare = kLoadBytes / kLoadWorkers;
    auto channel = reactor::call(reactor, open_on(reactor, device));
    if (!channel) return fail(std::move(channel.error()));
    std::vector<std::future<Status>> workers;
    for (unsigned i = 0; i < kLoadWorkers; ++i) {
      workers.push_back(std::async(std::launch::async, [&, i] {
        return reactor::call(reactor, verify(reactor, **channel, load, from_bytes + i * kShare, kShare));
      }));
    }
    Status all;
    for (auto& worker : workers) {
      if (auto one = worker.get(); !one && all) all = std::move(one);
    }
    auto closed = reactor::call(reactor, close_on(reactor, std::move(*channel)));
    return all ? closed : all;
  }

  Load& load_;
  std::future<Status> over_;
};

}  // namespace pollux::bdev::test
