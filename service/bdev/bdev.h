#pragma once
// Block devices: what the blob store stands on and what the front ends serve. A volume is one too.
//
// A Bdev is shared by all threads and immutable but for its size. I/O goes through a Channel, which belongs to one
// reactor: submit there, complete there. An IoRequest is the caller's memory (preallocated by ring slot in the front
// ends) and is the device's from submit() until its complete() is called, exactly once.
//
// Contract of every device
//  - complete() may be called from within submit(); callers must not hold anything across it that completion would
//  change.
//  - Offsets and lengths are multiples of block_bytes(), else kInvalid. A range past the end is kInvalid.
//  - Memory of any alignment is accepted (a device that needs alignment bounces).
//  - What a write, an unmap or a write_zeroes did is durable after a later flush has completed, or on its own when kFua
//    is set. Before that each logical block is old or new, never a mixture.
//  - Requests in flight at one time have no order among them.
//  - unmap may leave the old data, zeros or anything else (volumes: always zeros); write_zeroes always reads back as
//    zeros.
//
// Devices stand on each other: a stack of layers, each of which knows only the one below. A layer that hands a caller's
// request itself to the one below keeps what it needs for that (the caller's complete() first of all) in a frame of the
// request. It pushes the frame when it takes the request over, sets a complete() of its own, and when that is called,
// for whatever reason the request ended, it pops the frame, puts everything back as it was and completes to the layer
// above. So frames come and go as those of calls do, and no layer knows where the others have theirs. What a stack
// needs at most is frame_bytes() of its top; check_stack() refuses a stack for which a request has no room.

#include <sys/uio.h>

#include <atomic>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/result.h"
#include "reactor/task.h"

namespace pollux::reactor {
class Reactor;
}

namespace pollux::bdev {

// kExtent moves nothing; it asks a device that reports_extents() how far from offset_bytes, and not beyond
// length_bytes, all blocks are like the first. It sets length_bytes to the answer and kMapped in flags when they hold
// data; blocks that do not read as zeros. An answer may stop short of where the extent ends, and what it says may
// change at once.
enum class IoOp : std::uint8_t { kRead, kWrite, kFlush, kUnmap, kWriteZeroes, kExtent };

enum class IoStatus : std::uint8_t {
  kOk,
  kIoError,      // the device failed
  kMediumError,  // data is there but its checksum or address is not right
  kNoSpace,      // the pool is full; nothing was written
  kInvalid,      // range or alignment; nothing was done
  kReadOnly,     // a write on a read-only device
  kAborted,      // given up before it reached the device
  kPathLost,     // no way to the device, but it may come back; a read, or a write that was made or not
};
const char* to_string(IoStatus status);
const char* to_string(IoOp op);

struct IoRequest {
  // What changes something (write, unmap, write_zeroes) is durable when it completes; no meaning for the others.
  static constexpr std::uint8_t kFua = 1;
  // write_zeroes only: the device may free the range instead of writing.
  static constexpr std::uint8_t kMayUnmap = 2;
  // kExtent only, set by the device.
  static constexpr std::uint8_t kMapped = 4;
  // A part of what a guest asked for with one request, and not its first: limits count its bytes alone.
  static constexpr std::uint8_t kContinues = 8;
  // kFlush only: not the flush by which a volume's guest learns that writes were lost. It fails as long as the guest's
  // next one would, and leaves that failure to it.
  static constexpr std::uint8_t kAside = 16;

  // Of something that changes what the device holds, and has to be durable with its answer.
  bool durable_change() const {
    return (flags & kFua) != 0 && (op == IoOp::kWrite || op == IoOp::kUnmap || op == IoOp::kWriteZeroes);
  }

  IoOp op = IoOp::kRead;
  std::uint8_t flags = 0;
  IoStatus status = IoStatus::kOk;  // set by the device before complete()
  // Of which of the channel's users: when requests have to wait, streams take turns (bdev/fair_queue.h).
  std::uint8_t stream = 0;
  std::uint16_t iov_count = 0;
  std::uint8_t framed_bytes = 0;  // of `frames`: how many are in use
  std::uint64_t offset_bytes = 0;
  std::uint64_t length_bytes = 0;  // of the iovecs together for read and write; 0 for flush
  const iovec* iov = nullptr;
  // Called on the channel's reactor when done.
  void (*complete)(IoRequest&) = nullptr;

  // The layers' frames, for the layer that owns the request at the time. A frame is plain data in units of 8 bytes.
  template <typename Frame>
  static constexpr bool kIsFrame = std::is_trivially_copyable_v<Frame> && std::is_trivially_destructible_v<Frame> &&
                                   alignof(Frame) <= 8 && sizeof(Frame) % 8 == 0;
  template <typename Frame>
  Frame& push_frame(const Frame& frame) {
    static_assert(kIsFrame<Frame>);
    assert(framed_bytes + sizeof(Frame) <= kFrameBytes);
    std::byte* at = frames + framed_bytes;
    framed_bytes = static_cast<std::uint8_t>(framed_bytes + sizeof(Frame));
    return *new (at) Frame(frame);
  }
  // The one that was pushed last, which was a Frame.
  template <typename Frame>
  Frame& top_frame() {
    static_assert(kIsFrame<Frame>);
    assert(framed_bytes >= sizeof(Frame));
    return *std::launder(reinterpret_cast<Frame*>(frames + framed_bytes - sizeof(Frame)));
  }
  // The same, and takes it off: it is gone with the next push, which completing the request may come to.
  template <typename Frame>
  Frame& pop_frame() {
    Frame& top = top_frame<Frame>();
    framed_bytes = static_cast<std::uint8_t>(framed_bytes - sizeof(Frame));
    return top;
  }

  // How long the layers above have held it back, for a layer that times requests. Set by the one that holds it, which
  // puts back the 0 with its frame.
  std::uint64_t held_ns = 0;
  // For the list of the layer that owns the request, while it waits there.
  IoRequest* device_next = nullptr;
  static constexpr std::uint32_t kFrameBytes = 192;
  alignas(8) std::byte frames[kFrameBytes];
};

class Channel {
 public:
  virtual ~Channel() = default;
  // On the channel's reactor. Submission to the kernel or hardware may wait for the reactor's next turn, so that
  // all requests of one turn go out together.
  virtual void submit(IoRequest& request) = 0;
  // The caller waits for what is in flight to end, before it leaves: a device that holds requests back on purpose
  // (limits) submits those that it holds now. What comes later is held back as ever. On the channel's reactor, and not
  // from within a completion.
  virtual void expedite() {}
};

// A channel that is being opened; errors of the device.
using Opening = reactor::Task<Result<std::unique_ptr<Channel>>>;

class Bdev {
 public:
  virtual ~Bdev() = default;

  virtual const std::string& name() const = 0;
  // Any thread; may grow at any time.
  virtual std::uint64_t size_bytes() const = 0;
  // Logical block size: 512 or 4096.
  virtual std::uint32_t block_bytes() const = 0;
  // The size below which a write costs a read: for VPD B0 and virtio-blk topology.
  virtual std::uint32_t optimal_io_bytes() const { return block_bytes(); }
  virtual bool read_only() const { return false; }
  virtual bool supports_unmap() const { return false; }
  // Unit in which unmap frees space; 0 when it does not.
  virtual std::uint32_t unmap_granularity_bytes() const { return 0; }
  // Whether channels answer IoOp::kExtent; it is kInvalid to those that do not.
  virtual bool reports_extents() const { return false; }
  // The most that this device and all below it keep in frames of one request.
  virtual std::uint32_t frame_bytes() const { return 0; }
  // A name of what is behind the device that nothing else has, on any host and over restarts of a host, and that this
  // object holds a lock on: another that has opened the same name is gone. Empty: there is no such name.
  virtual const std::string& exclusive_name() const;
  // A later write to this range will find room in the file system under the device; what is read there stays as it is.
  // On this reactor, on which the coroutine also goes on. kUnsupported: that cannot be had ahead. kNoSpace. kIoError.
  virtual reactor::Task<Status> reserve(reactor::Reactor& reactor, std::uint64_t offset_bytes,
                                        std::uint64_t length_bytes);
  // Everything that would change the device is answered kReadOnly from now on, for good. Any thread.
  virtual void stop_writing() {}
  // Looks whether what is behind the device grew, and takes the new size over; who asked with on_resize() is told. Any
  // thread; does not wait for I/O.
  virtual void refresh_size() {}
  // On the reactor that will use it, which is not held up meanwhile: what waits for the kernel or for memory does so
  // elsewhere. The channel is destroyed there with no request in flight, if need be from within the completion of the
  // last one. It keeps the device alive; until it is open the caller does.
  virtual Opening open_channel(reactor::Reactor& reactor) = 0;

  // Calls back, on any thread, after the size grew. The token unsubscribes when it is destroyed, and does not return
  // from that while a call is under way.
  using ResizeToken = std::shared_ptr<void>;
  [[nodiscard]] virtual ResizeToken on_resize(std::function<void(std::uint64_t size_bytes)> callback);

 protected:
  // For devices that grow, after size_bytes() answers the new size.
  void notify_resized();

 private:
  struct Listeners {
    std::mutex mutex;
    std::vector<std::shared_ptr<std::function<void(std::uint64_t)>>> callbacks;
  };
  std::shared_ptr<Listeners> listeners_ = std::make_shared<Listeners>();
};

// For callers that may give up waiting: goes to the reactor, and keeps the device until the channel does. A channel that
// nobody has waited for is to be destroyed on the reactor too, as reactor::call() does.
Opening open_channel(std::shared_ptr<Bdev> device, reactor::Reactor& reactor);

// kUnsupported: `top` and the layers below it keep more with a request than there is room for. Each front end asks
// before it opens a channel.
Status check_stack(const Bdev& top);

// For coroutines: one request as something to await. Buffers of any alignment, lengths in blocks of the device.
reactor::Task<IoStatus> read(Channel& channel, std::uint64_t offset_bytes, void* data, std::size_t length_bytes);
reactor::Task<IoStatus> write(Channel& channel, std::uint64_t offset_bytes, const void* data, std::size_t length_bytes,
                              std::uint8_t flags = 0);
reactor::Task<IoStatus> flush(Channel& channel, std::uint8_t flags = 0);
reactor::Task<IoStatus> unmap(Channel& channel, std::uint64_t offset_bytes, std::uint64_t length_bytes,
                              std::uint8_t flags = 0);
reactor::Task<IoStatus> write_zeroes(Channel& channel, std::uint64_t offset_bytes, std::uint64_t length_bytes,
                                     std::uint8_t flags = 0);

struct Extent {
  std::uint64_t length_bytes;
  bool mapped;
};
reactor::Task<Result<Extent>> extent(Channel& channel, std::uint64_t offset_bytes, std::uint64_t length_bytes);

// kOk as success; anything else as an Error that names what was done, e.g. "write of 4096 bytes at 8192 on nvme0: ...".
Status to_status(IoStatus status, const std::string& what);

}  // namespace pollux::bdev
