#pragma once
// For tests: reactors, and a volume's I/O from a thread that may block.

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/units.h"
#include "bdev/bdev.h"
#include "reactor/reactor.h"
#include "reactor/test_seed.h"
#include "volume/volume_service.h"

namespace pollux::volume::test {

inline std::unique_ptr<reactor::ReactorGroup> start_reactors(unsigned count) {
  std::vector<reactor::Reactor::Options> options;
  for (unsigned i = 0; i < count; ++i) options.push_back({.id = i});
  auto group = reactor::ReactorGroup::start(options);
  if (!group) throw std::runtime_error(group.error().message);
  return std::move(*group);
}

template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(std::string(to_string(result.error().code)) + ": " + result.error().message);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

// A channel of a device on one reactor, driven from outside.
class RemoteChannel {
 public:
  RemoteChannel(bdev::Bdev& device, reactor::Reactor& reactor) : reactor_(reactor) {
    channel_ = must(reactor::call(reactor_, open(device)));
  }
  ~RemoteChannel() { must(reactor::call(reactor_, drop())); }

  bdev::IoStatus write(std::uint64_t offset, const std::vector<std::byte>& bytes, std::uint8_t flags = 0) {
    return must(reactor::call(reactor_, write_task(offset, bytes, flags)));
  }
  bdev::IoStatus read(std::uint64_t offset, std::vector<std::byte>& bytes) {
    return must(reactor::call(reactor_, read_task(offset, bytes)));
  }
  bdev::IoStatus flush() { return must(reactor::call(reactor_, flush_task())); }
  bdev::IoStatus unmap(std::uint64_t offset, std::uint64_t length) {
    return must(reactor::call(reactor_, unmap_task(offset, length)));
  }
  bdev::IoStatus write_zeroes(std::uint64_t offset, std::uint64_t length) {
    return must(reactor::call(reactor_, zeroes_task(offset, length)));
  }
  bdev::Extent extent(std::uint64_t offset, std::uint64_t length) {
    return must(reactor::call(reactor_, bdev::extent(*channel_, offset, length)));
  }
  bdev::Channel& channel() { return *channel_; }
  reactor::Reactor& reactor() { return reactor_; }

 private:
  reactor::Task<Result<std::unique_ptr<bdev::Channel>>> open(bdev::Bdev& device) {
    co_await reactor_.enter();
    co_return co_await device.open_channel(reactor_);
  }
  reactor::Task<Status> drop() {
    co_await reactor_.enter();
    channel_.reset();
    co_return Status{};
  }
  reactor::Task<Result<bdev::IoStatus>> write_task(std::uint64_t offset, const std::vector<std::byte>& bytes,
                                                   std::uint8_t flags) {
    co_return co_await bdev::write(*channel_, offset, bytes.data(), bytes.size(), flags);
  }
  reactor::Task<Result<bdev::IoStatus>> read_task(std::uint64_t offset, std::vector<std::byte>& bytes) {
    co_return co_await bdev::read(*channel_, offset, bytes.data(), bytes.size());
  }
  reactor::Task<Result<bdev::IoStatus>> flush_task() { co_return co_await bdev::flush(*channel_); }
  reactor::Task<Result<bdev::IoStatus>> unmap_task(std::uint64_t offset, std::uint64_t length) {
    co_return co_await bdev::unmap(*channel_, offset, length);
  }
  reactor::Task<Result<bdev::IoStatus>> zeroes_task(std::uint64_t offset, std::uint64_t length) {
    co_return co_await bdev::write_zeroes(*channel_, offset, length);
  }

  reactor::Reactor& reactor_;
  std::unique_ptr<bdev::Channel> channel_;
};

// Bytes that tell who wrote them.
inline std::vector<std::byte> pattern(std::size_t length, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(length);
  for (std::size_t at = 0; at < length; at += sizeof(std::uint64_t)) {
    const std::uint64_t next = random();
    std::memcpy(bytes.data() + at, &next, std::min(sizeof(next), length - at));
  }
  return bytes;
}

using reactor::test_seed;

}  // namespace pollux::volume::test
