#pragma once
// LoopDevice, for tests: a block device of the kernel's, with blocks of any size, out of a file that goes with it.
// Needs root.

#include <fcntl.h>
#include <linux/loop.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>

namespace pollux::bdev::test {

class LoopDevice {
 public:
  LoopDevice(std::uint64_t bytes, std::uint32_t block_bytes) {
    char file[] = "/var/tmp/pollux-loop-XXXXXX";
    const int backing = mkstemp(file);
    if (backing < 0) throw failure("no backing file");
    unlink(file);
    const bool sized = ftruncate(backing, static_cast<off_t>(bytes)) == 0;
    const int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    loop_config config{};
    config.fd = static_cast<unsigned>(backing);
    config.block_size = block_bytes;
    // Another process may take the number that is free now.
    while (sized && control >= 0 && fd_ < 0) {
      const int number = ioctl(control, LOOP_CTL_GET_FREE);
      if (number < 0) break;
      name_ = "loop" + std::to_string(number);
      fd_ = open(path().c_str(), O_RDWR | O_CLOEXEC);
      if (fd_ < 0) break;
      if (ioctl(fd_, LOOP_CONFIGURE, &config) == 0) break;
      close(fd_);
      fd_ = -1;
      if (errno != EBUSY) break;
    }
    const Error error = failure("no loop device");
    if (control >= 0) close(control);
    close(backing);
    if (fd_ < 0) throw error;
  }
  ~LoopDevice() {
    ioctl(fd_, LOOP_CLR_FD);
    close(fd_);
  }
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;

  std::string path() const { return "/dev/" + name_; }
  // How often its cache was flushed (Documentation/block/stat.rst).
  std::uint64_t flushes() const {
    std::ifstream stat("/sys/block/" + name_ + "/stat");
    std::uint64_t value = 0;
    for (int field = 0; field < 16; ++field) stat >> value;
    return value;
  }

 private:
  using Error = std::runtime_error;
  static Error failure(const std::string& what) { return Error(what + ": " + std::strerror(errno)); }

  std::string name_;
  int fd_ = -1;
};

}  // namespace pollux::bdev::test
