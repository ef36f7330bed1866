// Whole vhost-user sessions of a front end that knows the protocol and does not keep to it, against the service with
// a blk device and a scsi controller.
//
// An input is one byte that picks the device and then steps, each: one byte that says what, and what belongs to it.
//   0  the usual beginning: owner, features (one byte picks), memory, rings; then what follows meets running queues
//   1  a message: request, flags, which descriptors come with it, payload length, payload
//   2  overwrites guest memory: two bytes of place, one of length, the bytes
//   3  kicks a queue
//   4  cuts the guest's memory off, or grows it back: one byte
//   5  bytes that need not be a message: length, bytes
//   6  GET_VRING_BASE, which waits for what the queue has in flight
// At the end the front end goes, and the service must have ended the session.

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "bdev/ram.h"
#include "fuzz/input.h"
#include "protocol/vhost_user.h"
#include "reactor/reactor.h"
#include "vhost/vhost_service.h"

namespace {

using namespace pollux;
using namespace pollux::protocol;
using fuzz::Input;
using fuzz::require;

constexpr std::uint64_t kGuestBytes = 256 << 10;
constexpr std::uint64_t kUserBase = 0x10000;
constexpr std::uint16_t kQueueSize = 16;
constexpr unsigned kQueues = 4;
constexpr unsigned kMaxSteps = 64;
// Rings of queue q; data lie behind all of them.
constexpr std::uint64_t ring_base(unsigned queue) {
  return queue * 0x3000ull;
}

struct World {
  World() {
    require(log::init("critical", "").has_value(), "a log");
    char name[] = "/tmp/pollux-fuzz-XXXXXX";
    require(::mkdtemp(name) != nullptr, "a directory");
    directory = name;
    reactors = reactor::ReactorGroup::start({{.id = 0}, {.id = 1}}).value();
    service = vhost::VhostService::start(*reactors, {.socket_dir = directory}).value();
    auto disk = bdev::make_ram_bdev("fuzz", 1 << 20).value();
    sockets[0] = service->create_blk("a", 2, {disk, {}, false}).value();
    sockets[1] = service->ensure_scsi_controller("b", 2).value();
    Uuid uuid;
    uuid.bytes.fill(1);
    require(service->add_scsi_target("b", {0, 0}, {disk, uuid, false}).has_value(), "a target");
    memory = ::memfd_create("fuzz", MFD_CLOEXEC);
    grow();
    auto* at = ::mmap(nullptr, kGuestBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    require(at != MAP_FAILED, "a mapping");
    guest = static_cast<std::byte*>(at);
    for (int& event : events) event = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  }
  ~World() {
    service.reset();
    reactors.reset();
    std::error_code ignored;
    std::filesystem::remove_all(directory, ignored);
  }
  void grow() { require(::ftruncate(memory, kGuestBytes) == 0, "guest memory"); }

  std::string directory;
  std::unique_ptr<reactor::ReactorGroup> reactors;
  std::unique_ptr<vhost::VhostService> service;
  std::array<std::string, 2> sockets;
  int memory = -1;
  std::byte* guest = nullptr;
  std::array<int, kQueues> events{};
};

class Peer {
 public:
  Peer(World& world, bool scsi) : world_(world), fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string& path = world.sockets[scsi ? 1 : 0];
    std::memcpy(address.sun_path, path.data(), path.size());
    require(::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0, "the socket is served");
  }
  // Returns when the service has closed its end, which it does when nothing of the session is left.
  ~Peer() {
    ::shutdown(fd_, SHUT_WR);
    std::array<std::byte, 4096> answers;
    while (::recv(fd_, answers.data(), answers.size(), 0) > 0) {
    }
    ::close(fd_);
  }

  void send(std::uint32_t request, const void* payload, std::size_t bytes, std::vector<int> fds = {},
            std::uint32_t flags = 1) {
    std::vector<std::byte> whole(sizeof(VhostUserHeader) + bytes);
    const VhostUserHeader header{request, flags, static_cast<std::uint32_t>(bytes)};
    std::memcpy(whole.data(), &header, sizeof(header));
    if (bytes != 0) std::memcpy(whole.data() + sizeof(header), payload, bytes);
    send_bytes(whole, fds);
  }
  template <typename T>
  void send(VhostUserRequest request, const T& payload, std::vector<int> fds = {}) {
    send(static_cast<std::uint32_t>(request), &payload, sizeof(payload), std::move(fds));
  }
  void send_bytes(std::vector<std::byte>& bytes, const std::vector<int>& fds) {
    if (bytes.empty()) return;
    iovec piece{bytes.data(), bytes.size()};
    alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof(int) * 16)] = {};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (!fds.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
      cmsghdr* rights = CMSG_FIRSTHDR(&message);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
      std::memcpy(CMSG_DATA(rights), fds.data(), sizeof(int) * fds.size());
    }
    // The service may have closed the connection already. Nobody reads its answers meanwhile, and they fit its buffer.
    [[maybe_unused]] const ssize_t sent = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
  }

  void begin(std::uint8_t choice) {
    std::uint64_t features = kFeatureVersion1 | kFeatureProtocolFeatures;
    if (choice & 1) features |= kFeatureRingPacked;
    if (choice & 2) features |= kFeatureEventIdx;
    if (choice & 4) features |= kFeatureIndirectDesc;
    if (choice & 8) features |= kFeatureLogAll;
    send(static_cast<std::uint32_t>(VhostUserRequest::kSetOwner), nullptr, 0);
    send(VhostUserRequest::kSetFeatures, features);
    send(VhostUserRequest::kSetProtocolFeatures,
         kProtocolMq | kProtocolConfig | kProtocolInflightShmfd | kProtocolBackendReq | kProtocolLogShmfd);
    if (choice & 8) {
      const std::uint64_t log[2] = {4096, 0};
      send(static_cast<std::uint32_t>(VhostUserRequest::kSetLogBase), log, sizeof(log), {world_.memory});
    }
    if (choice & 16) {
      // The in-flight region is guest memory as well: whatever is written there later is believed at the next start.
      send(VhostUserRequest::kSetInflightFd, Inflight{0x4000, kGuestBytes - 0x4000, 4, kQueueSize, 0}, {world_.memory});
    }
    struct {
      std::uint32_t count = 1, padding = 0;
      MemoryRegion region{0, kGuestBytes, kUserBase, 0};
    } table;
    send(VhostUserRequest::kSetMemTable, table, {world_.memory});
    const unsigned queues = (choice & 32) ? kQueues : 2;
    for (unsigned queue = 0; queue < queues; ++queue) {
      send(VhostUserRequest::kSetVringNum, VringState{queue, kQueueSize});
      send(VhostUserRequest::kSetVringBase, VringState{queue, (choice & 1) ? 0x80008000u : 0u});
      const std::uint64_t base = kUserBase + ring_base(queue);
      send(VhostUserRequest::kSetVringAddr, VringAddr{queue, 0, base, base + 0x2000, base + 0x1000, 0});
      send(VhostUserRequest::kSetVringKick, std::uint64_t{queue}, {world_.events[queue]});
      send(VhostUserRequest::kSetVringCall, std::uint64_t{queue}, {world_.events[queue]});
      send(VhostUserRequest::kSetVringEnable, VringState{queue, 1});
    }
  }

 private:
  World& world_;
  int fd_;
};

void raw_message(World& world, Peer& peer, Input& input) {
  const std::uint32_t request = input.byte() % 42;
  const std::uint8_t how = input.byte();
  std::vector<int> fds(how & 0x70 ? (how >> 4 & 7) : 0, (how & 0x80) ? world.memory : world.events[how % kQueues]);
  std::array<std::byte, 255> payload{};
  const std::size_t length = input.byte();
  input.bytes(payload.data(), length);
  peer.send(request, payload.data(), length, std::move(fds), 1 | ((how & 8) ? 8u : 0u) | ((how & 4) ? how & 3u : 0u));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static World world;
  world.grow();
  std::memset(world.guest, 0, kGuestBytes);
  Input input(data, size);
  Peer peer(world, input.byte() & 1);
  for (unsigned step = 0; step < kMaxSteps && !input.empty(); ++step) {
    switch (input.byte() % 7) {
      case 0:
        peer.begin(input.byte());
        break;
      case 1:
        raw_message(world, peer, input);
        break;
      case 2: {
        const std::uint64_t place = input.word() * std::uint64_t{4};
        std::array<std::byte, 255> bytes{};
        const std::size_t count = input.bytes(bytes.data(), input.byte());
        if (place + count <= kGuestBytes) std::memcpy(world.guest + place, bytes.data(), count);
        break;
      }
      case 3: {
        const std::uint64_t one = 1;
        [[maybe_unused]] const ssize_t written = ::write(world.events[input.byte() % kQueues], &one, sizeof(one));
        break;
      }
      case 4:
        // This process must not touch memory that is gone; only the service may.
        if (input.byte() & 1) {
          require(::ftruncate(world.memory, 0) == 0, "guest memory");
          return 0;
        }
        break;
      case 5: {
        std::vector<std::byte> bytes(input.byte());
        input.bytes(bytes.data(), bytes.size());
        peer.send_bytes(bytes, {});
        break;
      }
      default:
        peer.send(VhostUserRequest::kGetVringBase, VringState{input.byte() % 8u, 0});
        break;
    }
  }
  return 0;
}
