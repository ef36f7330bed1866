// Rings, descriptors and indirect tables from a guest that writes what it likes, in split and packed queues, with and
// without an in-flight region that it can write as well.
//
// An input: one byte of options, one of queue size, then steps. A step is one byte; what follows it overwrites guest
// memory at a place that the step names, or nothing, and then the queue has a turn. Beyond the sanitizers: every piece
// of every chain lies in the guest's memory, ids are below the queue's size, and a broken queue gives nothing more.

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "fuzz/input.h"
#include "virtio/inflight.h"
#include "virtio/virtqueue.h"

namespace {

using namespace pollux;
using fuzz::Input;
using fuzz::require;

constexpr std::uint64_t kGuestBase = 0x1000;
constexpr std::uint64_t kRegionBytes = 64 << 10;
constexpr std::uint64_t kUserBase = 0x7000'0000;
// Two regions that are neighbours to the guest and not in the front end, so that ranges cross.
constexpr unsigned kRegions = 2;
constexpr std::uint64_t kDescs = 0x0;
constexpr std::uint64_t kDriver = 0x1000;
constexpr std::uint64_t kDevice = 0x2000;
constexpr std::uint64_t kTables = 0x3000;
constexpr std::uint64_t kInflightBytes = 64 << 10;
constexpr std::uint32_t kMaxPieces = 64;
constexpr unsigned kMaxTurns = 32;

// Memory that front end and service share, kept from input to input.
class SharedFile {
 public:
  explicit SharedFile(std::uint64_t bytes) : bytes_(bytes), fd_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    require(fd_ && ::ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0, "a memory file");
    void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    require(at != MAP_FAILED, "a mapping");
    data_ = static_cast<std::byte*>(at);
  }
  std::byte* data() const { return data_; }
  std::uint64_t bytes() const { return bytes_; }
  const UniqueFd& fd() const { return fd_; }
  void clear() { std::memset(data_, 0, bytes_); }

 private:
  std::uint64_t bytes_;
  UniqueFd fd_;
  std::byte* data_;
};

struct World {
  World() {
    std::vector<std::shared_ptr<const virtio::Region>> regions;
    for (unsigned i = 0; i < kRegions; ++i) {
      files.push_back(std::make_unique<SharedFile>(kRegionBytes));
      regions.push_back(virtio::map_region({.guest_addr = kGuestBase + i * kRegionBytes,
                                            .size_bytes = kRegionBytes,
                                            .user_addr = kUserBase + 2 * i * kRegionBytes,
                                            .file_offset = 0},
                                           files.back()->fd())
                            .value());
      mapped.push_back(regions.back()->mapping->data());
    }
    memory = virtio::GuestMemory::make(std::move(regions)).value();
  }
  bool covers(const iovec& piece) const {
    const auto* begin = static_cast<const std::byte*>(piece.iov_base);
    for (const std::byte* start : mapped) {
      if (begin >= start && piece.iov_len <= kRegionBytes &&
          begin - start <= static_cast<std::ptrdiff_t>(kRegionBytes - piece.iov_len))
        return true;
    }
    return false;
  }
  std::vector<std::unique_ptr<SharedFile>> files;
  std::vector<std::byte*> mapped;
  std::shared_ptr<const virtio::GuestMemory> memory;
  SharedFile inflight{kInflightBytes};
};

// Overwrites part of what the guest shares, as the step says.
void scribble(World& world, Input& input, std::uint8_t step) {
  const std::size_t length = (step & 0x1f) * 2u;
  if (length == 0) return;
  static constexpr std::uint64_t kPlaces[] = {kDescs, kDriver, kDevice, kTables};
  const std::uint64_t place = input.byte() * std::uint64_t{8};
  std::byte* to =
      (step & 0x80) != 0 ? world.inflight.data() + place : world.files[0]->data() + kPlaces[step >> 5 & 3] + place;
  input.bytes(to, length);
}

class Driver {
 public:
  explicit Driver(World& world) : world_(world) {}

  void turn(virtio::Virtqueue& queue, bool answer) {
    const unsigned ready = queue.look();
    require(ready <= virtio::Virtqueue::kMaxBatch, "a turn is bounded");
    require(!queue.broken() || ready == 0, "a broken queue has nothing");
    for (unsigned i = 0; i < ready; ++i) {
      virtio::Chain chain;
      virtio::IovecList pieces{items_.data(), kMaxPieces, 0};
      if (!queue.pop(chain, pieces)) {
        require(queue.broken(), "nothing popped means a broken queue");
        break;
      }
      check(queue, chain, pieces);
      // As a device does that sees an id twice: what it holds could not be told apart.
      if (held_[chain.id]) {
        queue.break_queue("twice");
        break;
      }
      held_[chain.id] = true;
      waiting_.push_back(chain);
    }
    while (answer && !waiting_.empty()) {
      const virtio::Chain chain = waiting_.back();
      waiting_.pop_back();
      held_[chain.id] = false;
      queue.push(chain.id, chain.entries, static_cast<std::uint32_t>(chain.writable_bytes));
    }
    queue.publish();
  }

 private:
  void check(const virtio::Virtqueue& queue, const virtio::Chain& chain, const virtio::IovecList& pieces) {
    require(chain.id < queue.size(), "an id is below the queue's size");
    require(chain.entries >= 1 && chain.entries <= queue.size(), "a chain fits the ring");
    require(pieces.count <= kMaxPieces, "the list is kept to");
    require(chain.faulty || chain.readable + chain.writable == pieces.count, "every piece is one or the other");
    for (std::uint32_t i = 0; i < pieces.count; ++i) {
      if (pieces.items[i].iov_base == nullptr) {
        require(chain.faulty, "only a faulty chain has pieces that are nowhere");
        continue;
      }
      require(world_.covers(pieces.items[i]), "a piece lies in the guest's memory");
    }
  }

  World& world_;
  std::array<iovec, kMaxPieces> items_{};
  std::array<bool, virtio::kMaxQueueSize> held_{};
  std::vector<virtio::Chain> waiting_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static World& world = *new World;
  for (auto& file : world.files) file->clear();
  world.inflight.clear();
  Input input(data, size);
  const std::uint8_t options = input.byte();
  const auto queue_size = static_cast<std::uint16_t>(1 + input.byte() % 64);
  const bool packed = (options & 1) != 0;
  // First what an earlier process left there, then the queue that begins on it.
  for (unsigned i = 0; i < (options >> 5); ++i) scribble(world, input, input.byte());
  virtio::QueueSetup setup{
      .size = queue_size,
      .packed = packed,
      .event_idx = (options & 2) != 0,
      .indirect = (options & 4) != 0,
      .desc_user_addr = kUserBase + kDescs,
      .driver_user_addr = kUserBase + kDriver,
      .device_user_addr = kUserBase + kDevice,
      .base = packed ? 0x80008000u : 0u,
      .memory = world.memory,
  };
  if ((options & 8) != 0) {
    auto mapping = virtio::SharedMapping::map(world.inflight.fd().get(), 0, kInflightBytes);
    setup.inflight = std::make_shared<virtio::InflightRegion>(std::move(mapping.value()), 1, queue_size, packed);
  }
  if ((options & 16) != 0) {
    auto bitmap = virtio::SharedMapping::map(world.inflight.fd().get(), kInflightBytes / 2, 1);
    setup.log = std::make_shared<virtio::DirtyLog>(std::move(bitmap.value()));
    setup.device_log_addr = kGuestBase + kDevice;
  }
  auto queue = virtio::Virtqueue::create(std::move(setup));
  if (!queue) return 0;
  Driver driver(world);
  for (unsigned turn = 0; turn < kMaxTurns && (turn == 0 || !input.empty()); ++turn) {
    const std::uint8_t step = input.byte();
    scribble(world, input, step);
    if ((step & 0x9f) == 0x80) (*queue)->enable_kicks();
    if ((step & 0x9f) == 0x00) (*queue)->disable_kicks();
    driver.turn(**queue, (input.byte() & 1) != 0);
  }
  (*queue)->base();
  return 0;
}
