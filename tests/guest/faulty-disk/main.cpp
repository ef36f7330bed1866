// A disk with a volatile cache that fails when it is told to, as a file system (FUSE) of two files:
//
//   pollux-faulty-disk FOLDER BYTES
//
// FOLDER/disk is the disk. What was written and not flushed (fsync) is what a power cut, or a flush that fails, loses.
// A line that is written to FOLDER/control changes how it works from then on:
//
//   fail read|write|flush ERRNO COUNT BEGIN END
//                the next COUNT such requests that touch bytes BEGIN to END fail and do nothing; a flush touches all,
//                and one that fails loses all of the cache
//   cut SEED     the power goes: of each sector in the cache the old or the new contents stay, all are the old ones if
//                SEED is 0; every request fails from now on
//   work         everything works again
//
// FOLDER/control reads as the number of requests that have failed. Memory holds the contents; one thread does it all.

#define FUSE_USE_VERSION 31
#include <fcntl.h>
#include <fuse.h>
#include <linux/falloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr std::uint64_t kSectorBytes = 512;
const std::string kDisk = "/disk";
const std::string kControl = "/control";

class Disk {
 public:
  explicit Disk(std::uint64_t bytes) : bytes_(bytes), contents_(map(bytes)), durable_(map(bytes)) {}

  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t failed() const { return failed_; }

  int read(char* to, std::uint64_t length, std::uint64_t offset) {
    if (const int error = injected("read", offset, length)) return error;
    const std::uint64_t there = offset < bytes_ ? std::min(length, bytes_ - offset) : 0;
    std::memcpy(to, contents_ + offset, there);
    return static_cast<int>(there);
  }

  int write(const char* from, std::uint64_t length, std::uint64_t offset) {
    if (offset > bytes_ || length > bytes_ - offset) return -EFBIG;
    if (const int error = injected("write", offset, length)) return error;
    std::memcpy(contents_ + offset, from, length);
    make_dirty(offset, length);
    return static_cast<int>(length);
  }

  int zero(std::uint64_t offset, std::uint64_t length) {
    if (offset > bytes_ || length > bytes_ - offset) return -EFBIG;
    if (const int error = injected("write", offset, length)) return error;
    // What reads as zeros stays without memory.
    for (std::uint64_t at = offset; at < offset + length;) {
      const std::uint64_t part = std::min(kSectorBytes - at % kSectorBytes, offset + length - at);
      if (std::any_of(contents_ + at, contents_ + at + part, [](char byte) { return byte != 0; })) {
        std::memset(contents_ + at, 0, part);
        make_dirty(at, part);
      }
      at += part;
    }
    return 0;
  }

  int flush() {
    if (const int error = injected("flush", 0, bytes_)) {
      lose([] { return true; });
      return error;
    }
    for (const std::uint64_t sector : dirty_) copy(durable_, contents_, sector);
    dirty_.clear();
    return 0;
  }

  int command(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "fail") {
      Fault fault;
      if (!(words >> fault.operation >> fault.error >> fault.count >> fault.begin >> fault.end)) return -EINVAL;
      faults_.push_back(fault);
    } else if (verb == "cut") {
      std::uint64_t seed = 0;
      if (!(words >> seed)) return -EINVAL;
      std::mt19937_64 random(seed);
      lose([&] { return seed == 0 || random() % 2 == 0; });
      dead_ = true;
    } else if (verb == "work") {
      faults_.clear();
      dead_ = false;
    } else {
      return -EINVAL;
    }
    return 0;
  }

 private:
  struct Fault {
    std::string operation;
    int error = 0;
    std::uint64_t count = 0;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };

  static char* map(std::uint64_t bytes) {
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::perror("mmap");
      std::exit(1);
    }
    return static_cast<char*>(memory);
  }

  static void copy(char* to, const char* from, std::uint64_t sector) {
    std::memcpy(to + sector * kSectorBytes, from + sector * kSectorBytes, kSectorBytes);
  }

  void make_dirty(std::uint64_t offset, std::uint64_t length) {
    for (std::uint64_t at = offset / kSectorBytes; at * kSectorBytes < offset + length; ++at) dirty_.insert(at);
  }

  template <typename Lost>
  void lose(Lost lost) {
    for (const std::uint64_t sector : dirty_) {
      if (lost()) {
        copy(contents_, durable_, sector);
      } else {
        copy(durable_, contents_, sector);
      }
    }
    dirty_.clear();
  }

  // 0, or the error with which the request ends.
  int injected(const std::string& operation, std::uint64_t offset, std::uint64_t length) {
    int error = dead_ ? EIO : 0;
    for (Fault& fault : faults_) {
      if (error != 0 || fault.count == 0 || fault.operation != operation) continue;
      if (offset >= fault.end || offset + length <= fault.begin) continue;
      --fault.count;
      error = fault.error;
    }
    failed_ += error != 0 ? 1 : 0;
    return -error;
  }

  const std::uint64_t bytes_;
  char* const contents_;
  char* const durable_;
  std::set<std::uint64_t> dirty_;
  std::vector<Fault> faults_;
  std::uint64_t failed_ = 0;
  bool dead_ = false;
};

Disk* disk = nullptr;

int get_attributes(const char* path, struct stat* attributes, fuse_file_info*) {
  *attributes = {};
  if (path == std::string("/")) {
    attributes->st_mode = S_IFDIR | 0700;
    attributes->st_nlink = 2;
  } else if (path == kDisk || path == kControl) {
    attributes->st_mode = S_IFREG | 0600;
    attributes->st_nlink = 1;
    attributes->st_size = path == kDisk ? static_cast<off_t>(disk->bytes()) : 0;
  } else {
    return -ENOENT;
  }
  return 0;
}

int open_file(const char* path, fuse_file_info* file) {
  // The disk's data is direct because it is opened with O_DIRECT: only then does RWF_DSYNC end in a flush.
  file->direct_io = path == kControl ? 1 : 0;
  return path == kDisk || path == kControl ? 0 : -ENOENT;
}

int read_file(const char* path, char* to, std::size_t length, off_t offset, fuse_file_info*) {
  if (path == kDisk) return disk->read(to, length, static_cast<std::uint64_t>(offset));
  const std::string text = std::to_string(disk->failed());
  if (static_cast<std::size_t>(offset) >= text.size()) return 0;
  return static_cast<int>(text.copy(to, length, static_cast<std::size_t>(offset)));
}

int write_file(const char* path, const char* from, std::size_t length, off_t offset, fuse_file_info*) {
  if (path == kDisk) return disk->write(from, length, static_cast<std::uint64_t>(offset));
  const int error = disk->command(std::string(from, length));
  return error != 0 ? error : static_cast<int>(length);
}

int sync_file(const char* path, int, fuse_file_info*) {
  return path == kDisk ? disk->flush() : 0;
}

int allocate(const char* path, int mode, off_t offset, off_t length, fuse_file_info*) {
  if (path != kDisk) return -EOPNOTSUPP;
  if ((mode & (FALLOC_FL_ZERO_RANGE | FALLOC_FL_PUNCH_HOLE)) == 0) return 0;
  return disk->zero(static_cast<std::uint64_t>(offset), static_cast<std::uint64_t>(length));
}

// Opening a file to write shortens it first.
int truncate_file(const char* path, off_t, fuse_file_info*) {
  return path == kControl ? 0 : -EPERM;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: pollux-faulty-disk FOLDER BYTES\n");
    return 2;
  }
  Disk made(std::strtoull(argv[2], nullptr, 10));
  disk = &made;
  fuse_operations operations{};
  operations.getattr = get_attributes;
  operations.open = open_file;
  operations.read = read_file;
  operations.write = write_file;
  operations.fsync = sync_file;
  operations.fallocate = allocate;
  operations.truncate = truncate_file;
  std::string options[] = {argv[0], "-f", "-s", "-o", "fsname=pollux-faulty-disk", argv[1]};
  std::vector<char*> given;
  for (std::string& option : options) given.push_back(option.data());
  return fuse_main(static_cast<int>(given.size()), given.data(), &operations, nullptr);
}
