// Verified I/O inside a guest, deep enough that a service which stops always has requests in flight: 16 a disk, direct,
// through Linux's native asynchronous I/O.
//
//   pollux-guest-load DEVICE...
//
// Every block of a device's first megabytes carries a pattern of (device, block, generation), made anew by each write
// and checked by each read; a block has at most one request at a time. "@@PROGRESS n" says that every device has
// answered some more requests; a line on standard input ends the load, all that was written is then read once more, and
// "@@LOAD-OK" follows. Any failed request or wrong byte is "@@FAIL" and status 1.

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr std::size_t kBlockBytes = 4096;
constexpr std::size_t kBlocks = 2048;
constexpr std::size_t kDepth = 16;
// How many answers of each device make a line, and how often one may come at most: a console is slow.
constexpr std::uint64_t kAnswersPerLine = 200;
constexpr auto kLineInterval = std::chrono::milliseconds(100);

[[noreturn]] void fail(const std::string& what) {
  std::printf("@@FAIL %s\n", what.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

struct Block {
  std::uint32_t generation = 0;
  bool busy = false;
};

struct Device {
  std::string name;
  int fd = -1;
  std::vector<Block> blocks{kBlocks};
  std::uint64_t answers = 0;
  std::uint64_t told = 0;
};

struct Slot {
  iocb control{};
  Device* device = nullptr;
  std::size_t block = 0;
  std::uint32_t generation = 0;
  std::uint64_t* data = nullptr;
};

std::uint64_t pattern(const Device& device, std::size_t block, std::uint32_t generation) {
  std::uint64_t x = std::hash<std::string>{}(device.name) ^ block << 32 ^ generation;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  return x ^ x >> 27;
}

class Load {
 public:
  explicit Load(const std::vector<std::string>& names) : devices_(names.size()), slots_(names.size() * kDepth) {
    if (::syscall(SYS_io_setup, slots_.size(), &context_) != 0) fail("io_setup");
    for (std::size_t i = 0; i < devices_.size(); ++i) {
      devices_[i].name = names[i];
      devices_[i].fd = ::open(names[i].c_str(), O_RDWR | O_DIRECT);
      if (devices_[i].fd < 0) fail("open " + names[i]);
    }
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      slots_[i].device = &devices_[i / kDepth];
      slots_[i].data = static_cast<std::uint64_t*>(std::aligned_alloc(kBlockBytes, kBlockBytes));
    }
  }

  void run() {
    for (Slot& slot : slots_) issue(slot);
    std::uint64_t line = 0;
    auto last = Clock::now();
    while (!told_to_stop()) {
      for (Slot* slot : collect()) issue(*slot);
      bool all = true;
      for (const Device& device : devices_) all = all && device.answers - device.told >= kAnswersPerLine;
      if (!all || Clock::now() - last < kLineInterval) continue;
      for (Device& device : devices_) device.told = device.answers;
      last = Clock::now();
      std::printf("@@PROGRESS %llu\n", static_cast<unsigned long long>(++line));
      std::fflush(stdout);
    }
    while (in_flight_ != 0) collect();
  }

  void read_back() {
    std::vector<std::size_t> next(devices_.size(), 0);
    const auto go_on = [&](Slot& slot) {
      std::size_t& at = next[static_cast<std::size_t>(slot.device - devices_.data())];
      while (at < kBlocks && slot.device->blocks[at].generation == 0) ++at;
      if (at < kBlocks) submit(slot, at++, false);
    };
    for (Slot& slot : slots_) go_on(slot);
    while (in_flight_ != 0) {
      for (Slot* slot : collect()) go_on(*slot);
    }
    for (const Device& device : devices_)
      std::printf("@@ANSWERS %s %llu\n", device.name.c_str(), static_cast<unsigned long long>(device.answers));
  }

 private:
  using Clock = std::chrono::steady_clock;

  static bool told_to_stop() {
    pollfd entry{STDIN_FILENO, POLLIN, 0};
    return ::poll(&entry, 1, 0) > 0;
  }

  void issue(Slot& slot) {
    std::size_t block = random_() % kBlocks;
    while (slot.device->blocks[block].busy) block = (block + 1) % kBlocks;
    const bool write = slot.device->blocks[block].generation == 0 || random_() % 2 == 0;
    submit(slot, block, write);
  }

  void submit(Slot& slot, std::size_t block, bool write) {
    Block& what = slot.device->blocks[block];
    what.busy = true;
    slot.block = block;
    slot.generation = what.generation + (write ? 1 : 0);
    const std::uint64_t base = pattern(*slot.device, block, slot.generation);
    for (std::size_t i = 0; i < kBlockBytes / 8; ++i) slot.data[i] = write ? base + i : 0;
    slot.control = {};
    slot.control.aio_data = reinterpret_cast<std::uint64_t>(&slot);
    slot.control.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    slot.control.aio_fildes = static_cast<std::uint32_t>(slot.device->fd);
    slot.control.aio_buf = reinterpret_cast<std::uint64_t>(slot.data);
    slot.control.aio_nbytes = kBlockBytes;
    slot.control.aio_offset = static_cast<std::int64_t>(block * kBlockBytes);
    iocb* one = &slot.control;
    if (::syscall(SYS_io_submit, context_, 1, &one) != 1) fail("io_submit to " + slot.device->name);
    ++in_flight_;
  }

  std::vector<Slot*> collect() {
    io_event events[64];
    const long count = ::syscall(SYS_io_getevents, context_, 1, 64, events, nullptr);
    if (count < 0 && errno != EINTR) fail("io_getevents");
    std::vector<Slot*> done;
    for (long i = 0; i < count; ++i) {
      Slot& slot = *reinterpret_cast<Slot*>(events[i].data);
      finish(slot, events[i].res);
      done.push_back(&slot);
    }
    return done;
  }

  void finish(Slot& slot, std::int64_t result) {
    --in_flight_;
    ++slot.device->answers;
    const bool write = slot.control.aio_lio_opcode == IOCB_CMD_PWRITE;
    const std::string what =
        (write ? "write to " : "read of ") + slot.device->name + " block " + std::to_string(slot.block);
    if (result != static_cast<std::int64_t>(kBlockBytes)) fail(what + ": " + std::strerror(static_cast<int>(-result)));
    Block& block = slot.device->blocks[slot.block];
    block.busy = false;
    if (write) {
      block.generation = slot.generation;
      return;
    }
    const std::uint64_t base = pattern(*slot.device, slot.block, slot.generation);
    for (std::size_t i = 0; i < kBlockBytes / 8; ++i) {
      if (slot.data[i] != base + i) fail(what + ": wrong data, generation " + std::to_string(slot.generation));
    }
  }

  aio_context_t context_ = 0;
  std::vector<Device> devices_;
  std::vector<Slot> slots_;
  std::size_t in_flight_ = 0;
  std::minstd_rand random_{1};
};

}  // namespace

int main(int argc, char** argv) {
  Load load(std::vector<std::string>(argv + 1, argv + argc));
  std::printf("@@LOAD\n");
  std::fflush(stdout);
  load.run();
  load.read_back();
  std::printf("@@LOAD-OK\n");
}
