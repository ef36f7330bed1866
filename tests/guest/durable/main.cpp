// Durable requests inside a guest: what was answered is on the disk, whatever happens to it then.
//
//   pollux-guest-durable DEVICE...
//
// Some threads a device write and zero (BLKZEROOUT) random ranges of their own part of it, directly, and read it. Each
// sector read is compared with what was answered last. Where the disk has a cache, writes carry FUA and zeros are
// followed by a flush; of a disk that is write-through the kernel asks for neither. Zeros whose flush comes after the cut
// may be lost although it succeeds, so there they count when they are read after it.
//
// "@@PROGRESS n" says that every thread has changed something and has then read its whole part since the line before; a
// line on standard input ends it with "@@LOAD-OK". Any failed request or wrong sector is "@@FAIL" and status 1.

#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr std::uint64_t kSectorBytes = 512;
// Several clusters of a pool, so that zeros take clusters out of a map as well as parts of them.
constexpr std::uint64_t kPartBytes = 1 << 20;
constexpr std::uint64_t kLargestBytes = 512 << 10;
constexpr unsigned kThreads = 3;
constexpr unsigned kChangesPerRound = 12;

[[noreturn]] void fail(const std::string& what) {
  std::printf("@@FAIL %s\n", what.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

class Part {
 public:
  Part(std::string device, std::uint64_t begin, unsigned seed)
      : device_(std::move(device)),
        begin_(begin),
        random_(seed),
        buffer_(static_cast<std::uint64_t*>(std::aligned_alloc(4096, kPartBytes))) {
    fd_ = ::open(device_.c_str(), O_RDWR | O_DIRECT);
    if (fd_ < 0) fail("open " + device_ + ": " + std::strerror(errno));
    std::ifstream cache("/sys/block/" + device_.substr(device_.rfind('/') + 1) + "/queue/write_cache");
    std::getline(cache, cache_);
    if (cache_.empty()) fail("what cache has " + device_ + "?");
  }

  void run(const std::atomic<bool>& ending) {
    zero(0, kPartBytes);
    while (!ending) {
      for (unsigned i = 0; i < kChangesPerRound; ++i) change();
      check();
      ++rounds_;
    }
  }

  std::uint64_t rounds() const { return rounds_; }

 private:
  static constexpr std::uint64_t kSectors = kPartBytes / kSectorBytes;

  std::uint64_t random(std::uint64_t below) { return random_() % below; }

  void change() {
    // Whole and part clusters, whole and part pages.
    static constexpr std::uint64_t kGranules[] = {512, 4096, 65536, 262144};
    const std::uint64_t granule = kGranules[random(4)];
    const std::uint64_t offset = random(kPartBytes / granule) * granule;
    const std::uint64_t most = std::min(kPartBytes - offset, std::max(granule, std::min(16 * granule, kLargestBytes)));
    const std::uint64_t length = (1 + random(most / granule)) * granule;
    if (random(2) == 0) {
      zero(offset, length);
    } else {
      write(offset, length);
    }
  }

  void zero(std::uint64_t offset, std::uint64_t length) {
    std::uint64_t range[2] = {begin_ + offset, length};
    do {
      if (::ioctl(fd_, BLKZEROOUT, range) != 0) fail(at("zeroing", offset) + std::strerror(errno));
      if (::fdatasync(fd_) != 0) fail(at("flush after zeroing", offset) + std::strerror(errno));
    } while (cache_ == "write back" && !reads_as_zeros(offset, length));
    for (std::uint64_t i = 0; i < length / kSectorBytes; ++i) generations_[offset / kSectorBytes + i] = 0;
  }

  bool reads_as_zeros(std::uint64_t offset, std::uint64_t length) {
    const ssize_t count = ::pread(fd_, buffer_.get(), length, static_cast<off_t>(begin_ + offset));
    if (count != static_cast<ssize_t>(length)) fail(at("read after zeroing", offset) + std::strerror(errno));
    return std::all_of(buffer_.get(), buffer_.get() + length / 8, [](std::uint64_t word) { return word == 0; });
  }

  void write(std::uint64_t offset, std::uint64_t length) {
    ++generation_;
    for (std::uint64_t i = 0; i < length / 8; ++i) buffer_.get()[i] = word(offset / 8 + i, generation_);
    const iovec whole{buffer_.get(), length};
    const ssize_t count = ::pwritev2(fd_, &whole, 1, static_cast<off_t>(begin_ + offset), RWF_DSYNC);
    if (count != static_cast<ssize_t>(length)) fail(at("write", offset) + std::strerror(errno));
    for (std::uint64_t i = 0; i < length / kSectorBytes; ++i) generations_[offset / kSectorBytes + i] = generation_;
  }

  void check() {
    const ssize_t count = ::pread(fd_, buffer_.get(), kPartBytes, static_cast<off_t>(begin_));
    if (count != static_cast<ssize_t>(kPartBytes)) fail(at("read", 0) + std::strerror(errno));
    for (std::uint64_t i = 0; i < kPartBytes / 8; ++i) {
      const std::uint64_t generation = generations_[i * 8 / kSectorBytes];
      const std::uint64_t expected = generation == 0 ? 0 : word(i, generation);
      if (buffer_.get()[i] == expected) continue;
      fail(at("wrong data", i * 8) + (generation == 0 ? "zeros" : "generation " + std::to_string(generation)) +
           " expected, found " + (buffer_.get()[i] == 0 ? "zeros" : "others"));
    }
  }

  std::uint64_t word(std::uint64_t number, std::uint64_t generation) const {
    return (begin_ / 8 + number + 1) * 0x9e3779b97f4a7c15 ^ generation << 1 ^ 1;
  }

  std::string at(const std::string& what, std::uint64_t offset) const {
    return what + " at " + std::to_string(begin_ + offset) + " of " + device_ + ": ";
  }

  struct Free {
    void operator()(std::uint64_t* memory) const { std::free(memory); }
  };

  const std::string device_;
  const std::uint64_t begin_;
  int fd_ = -1;
  std::string cache_;
  std::minstd_rand random_;
  std::unique_ptr<std::uint64_t, Free> buffer_;
  std::vector<std::uint64_t> generations_ = std::vector<std::uint64_t>(kSectors);
  std::uint64_t generation_ = 0;
  std::atomic<std::uint64_t> rounds_{0};
};

bool told_to_stop() {
  pollfd entry{STDIN_FILENO, POLLIN, 0};
  return ::poll(&entry, 1, 0) > 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::unique_ptr<Part>> parts;
  for (int device = 1; device < argc; ++device) {
    for (unsigned i = 0; i < kThreads; ++i) {
      const auto seed = static_cast<unsigned>(parts.size()) + 1;
      parts.push_back(std::make_unique<Part>(argv[device], i * kPartBytes, seed));
    }
  }
  std::atomic<bool> ending = false;
  std::vector<std::thread> threads;
  for (auto& part : parts) threads.emplace_back([&part, &ending] { part->run(ending); });
  std::vector<std::uint64_t> told(parts.size());
  for (unsigned line = 1; !told_to_stop();) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    bool all = true;
    for (std::size_t i = 0; i < parts.size(); ++i) all = all && parts[i]->rounds() > told[i];
    if (!all) continue;
    for (std::size_t i = 0; i < parts.size(); ++i) told[i] = parts[i]->rounds();
    std::printf("@@PROGRESS %u\n", line++);
    std::fflush(stdout);
  }
  ending = true;
  for (std::thread& thread : threads) thread.join();
  std::printf("@@LOAD-OK\n");
}
