#pragma once
// A file whose pages never come: one of a FUSE file system that answers everything but reads.

#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace pollux::initiator {

// What reads the file waits until this ends. Mounting it takes root's rights, and it is mounted for this thread alone.
class FuseFile {
 public:
  // `directory`: over which it is mounted; made when it is not there.
  FuseFile(std::string directory, std::uint64_t bytes) : directory_(std::move(directory)), bytes_(bytes) {
    device_ = ::open("/dev/fuse", O_RDWR | O_CLOEXEC);
    BOOST_REQUIRE_MESSAGE(device_ >= 0, "/dev/fuse: " << std::strerror(errno));
    ::mkdir(directory_.c_str(), 0700);
    BOOST_REQUIRE_MESSAGE(::unshare(CLONE_NEWNS) == 0 && ::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0,
                          "a mount namespace: " << std::strerror(errno));
    const std::string options = "fd=" + std::to_string(device_) + ",rootmode=40000,user_id=0,group_id=0";
    BOOST_REQUIRE_MESSAGE(::mount("pollux-test", directory_.c_str(), "fuse", 0, options.c_str()) == 0,
                          "mount: " << std::strerror(errno));
    thread_ = std::thread([this] { serve(); });
    fd_ = ::open((directory_ + "/memory").c_str(), O_RDWR | O_CLOEXEC);
    BOOST_REQUIRE_MESSAGE(fd_ >= 0, "open: " << std::strerror(errno));
  }
  ~FuseFile() {
    // Ends what still waits.
    ::umount2(directory_.c_str(), MNT_FORCE | MNT_DETACH);
    ::close(fd_);
    thread_.join();
    ::close(device_);
  }
  FuseFile(const FuseFile&) = delete;
  FuseFile& operator=(const FuseFile&) = delete;

  int fd() const { return fd_; }

 private:
  static constexpr std::uint64_t kFileNode = 2;

  fuse_attr attributes(std::uint64_t node) const {
    fuse_attr attr{};
    attr.ino = node;
    attr.mode = node == kFileNode ? S_IFREG | 0600 : S_IFDIR | 0700;
    attr.nlink = 1;
    attr.size = node == kFileNode ? bytes_ : 0;
    attr.blksize = 4096;
    return attr;
  }

  template <typename T>
  void answer(const fuse_in_header& to, const T& body) {
    std::vector<char> bytes(sizeof(fuse_out_header) + sizeof(T));
    const fuse_out_header header{static_cast<std::uint32_t>(bytes.size()), 0, to.unique};
    std::memcpy(bytes.data(), &header, sizeof(header));
    std::memcpy(bytes.data() + sizeof(header), &body, sizeof(T));
    static_cast<void>(!::write(device_, bytes.data(), bytes.size()));
  }
  void answer_error(const fuse_in_header& to, int error) {
    const fuse_out_header header{sizeof(header), -error, to.unique};
    static_cast<void>(!::write(device_, &header, sizeof(header)));
  }

  void serve() {
    std::vector<char> buffer(1 << 20);
    while (true) {
      const ssize_t got = ::read(device_, buffer.data(), buffer.size());
      if (got < 0 && (errno == EINTR || errno == ENOENT)) continue;
      // Unmounted.
      if (got < static_cast<ssize_t>(sizeof(fuse_in_header))) return;
      fuse_in_header request;
      std::memcpy(&request, buffer.data(), sizeof(request));
      handle(request);
    }
  }

  void handle(const fuse_in_header& request) {
    constexpr std::uint64_t kLongS = 3600;
    switch (request.opcode) {
      case FUSE_INIT: {
        fuse_init_out init{};
        init.major = FUSE_KERNEL_VERSION;
        init.minor = FUSE_KERNEL_MINOR_VERSION;
        init.max_write = 1 << 16;
        return answer(request, init);
      }
      case FUSE_LOOKUP: {
        fuse_entry_out entry{};
        entry.nodeid = kFileNode;
        entry.entry_valid = entry.attr_valid = kLongS;
        entry.attr = attributes(kFileNode);
        return answer(request, entry);
      }
      case FUSE_GETATTR: {
        fuse_attr_out attr{};
        attr.attr_valid = kLongS;
        attr.attr = attributes(request.nodeid);
        return answer(request, attr);
      }
      case FUSE_OPEN:
        return answer(request, fuse_open_out{});
      case FUSE_STATFS:
        return answer(request, fuse_statfs_out{});
      case FUSE_READ:
      case FUSE_FORGET:
      case FUSE_BATCH_FORGET:
      case FUSE_INTERRUPT:
        return;
      default:
        answer_error(request, ENOSYS);
    }
  }

  const std::string directory_;
  const std::uint64_t bytes_;
  int device_ = -1;
  int fd_ = -1;
  std::thread thread_;
};

}  // namespace pollux::initiator
