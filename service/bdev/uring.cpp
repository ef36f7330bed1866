#include "bdev/uring.h"

#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "base/cores.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/units.h"
#include "bdev/device_thread.h"
#include "bdev/direct_io.h"
#include "bdev/fair_queue.h"
#include "reactor/reactor.h"

namespace pollux::bdev {

namespace {

constexpr unsigned kRingEntries = 256;
constexpr unsigned kMaxInFlight = 512;
constexpr unsigned kCompletionsPerTurn = 128;
// Buffers that bounce are rare (firmware, old guests); this is what O_DIRECT asks for on every device of today.
constexpr std::uint32_t kBounceAlignment = 4096;
// Of copies into and out of such buffers in one turn, one request of any size aside.
constexpr std::uint64_t kCopiedBytesPerTurn = 2 * kMiB;
// How often a request that came back short or interrupted is sent again before it counts as failed.
constexpr unsigned kMaxRetries = 5;
// Zeros for files whose file system cannot zero a range by itself (tmpfs); so many go out at a time.
constexpr std::size_t kZeroChunkBytes = 256 * kKiB;
alignas(kBounceAlignment) std::byte zeros[kZeroChunkBytes];

std::string describe_errno(const std::string& what) {
  return what + ": " + std::strerror(errno);
}

class UringBdev : public Bdev, public std::enable_shared_from_this<UringBdev> {
 public:
  UringBdev(std::string path, std::string exclusive_name, int fd, std::uint64_t size_bytes, DirectIo direct,
            bool is_block_device, bool honours_dsync)
      : path_(std::move(path)),
        exclusive_name_(std::move(exclusive_name)),
        fd_(fd),
        size_bytes_(size_bytes),
        direct_(direct),
        is_block_device_(is_block_device),
        honours_dsync_(honours_dsync),
        device_thread_(fd) {}
  ~UringBdev() override {
    // Explicitly: the kernel may drop the last requests' references to the file a little later.
    flock(fd_, LOCK_UN);
    close(fd_);
  }

  const std::string& name() const override { return path_; }
  const std::string& exclusive_name() const override { return exclusive_name_; }
  void stop_writing() override { writing_stopped_.store(true, std::memory_order_relaxed); }
  bool writing_stopped() const { return writing_stopped_.load(std::memory_order_relaxed); }
  std::uint64_t size_bytes() const override { return size_bytes_.load(std::memory_order_relaxed); }
  std::uint32_t block_bytes() const override { return direct_.block_bytes; }
  // Until the first attempt has shown that it cannot.
  bool supports_unmap() const override { return supports_unmap_.load(std::memory_order_relaxed); }
  std::uint32_t unmap_granularity_bytes() const override { return 4096; }
  Opening open_channel(reactor::Reactor& reactor) override;
  void refresh_size() override;
  reactor::Task<Status> reserve(reactor::Reactor& reactor, std::uint64_t offset_bytes,
                                std::uint64_t length_bytes) override;

  int fd() const { return fd_; }
  // The file system refuses to zero a range: zeros are written instead. Found out by the first request.
  bool writes_zeros() const { return writes_zeros_.load(std::memory_order_relaxed); }
  void write_zeros_from_now_on() {
    if (!writes_zeros_.exchange(true, std::memory_order_relaxed)) {
      log::info("{}: its file system cannot zero a range by itself; zeros are written", path_);
    }
  }
  const DirectIo& direct() const { return direct_; }
  bool is_block_device() const { return is_block_device_; }
  bool honours_dsync() const { return honours_dsync_; }
  DeviceThread& device_thread() { return device_thread_; }
  void unmaps_no_more() {
    if (supports_unmap_.exchange(false, std::memory_order_relaxed)) {
      log::info("{} cannot take freed space back", path_);
    }
  }

 private:
  std::string path_;
  const std::string exclusive_name_;
  int fd_;
  std::atomic<bool> writing_stopped_{false};
  std::atomic<std::uint64_t> size_bytes_;
  std::atomic<bool> writes_zeros_{false};
  const DirectIo direct_;
  bool is_block_device_;
  const bool honours_dsync_;
  std::atomic<bool> supports_unmap_{true};
  DeviceThread device_thread_;
};

class UringChannel : public Channel, public reactor::Poller {
 public:
  // On any thread. The ring is nobody's yet.
  static Result<std::unique_ptr<UringChannel>> make(std::shared_ptr<UringBdev> bdev, reactor::Reactor& reactor);
  UringChannel(std::shared_ptr<UringBdev> bdev, reactor::Reactor& reactor)
      : bdev_(std::move(bdev)), reactor_(reactor), ops_(kMaxInFlight) {
    for (auto& op : ops_) {
      op.next_free = free_;
      free_ = &op;
    }
  }
  ~UringChannel() override;
  // On the reactor, before the first request.
  Status start();

  void submit(IoRequest& request) override;
  unsigned poll() override;
  bool arm() override;

 private:
  struct Op {
    IoRequest* request = nullptr;
    Op* next_free = nullptr;
    iovec bounce{};
    unsigned retries = 0;
    bool syncing = false;  // the change is made, the device is being flushed for it
    // Write zeroes by writing: how much is done, and what is under way; 0 when the kernel does it.
    std::uint64_t zeroed_bytes = 0;
    std::uint32_t zeroing_bytes = 0;
    struct Discard : DeviceThread::Job {
      UringChannel* channel = nullptr;
      Op* op = nullptr;
    } discard;
  };

  Status make_ring();
  Status enable_ring();
  Status watch_completions();
  void want_events(bool wanted);
  void move_workers();
  bool valid(const IoRequest& request) const;
  bool start_op(Op& op);
  void start_discard(Op& op);
  void drain_waiting();
  void finish(Op& op, int result);
  bool finish_zeroing(Op& op, int& result);
  void release(Op& op);
  bool make_bounce(Op& op);

  std::shared_ptr<UringBdev> bdev_;
  reactor::Reactor& reactor_;
  io_uring ring_{};
  bool ring_open_ = false;
  bool polled_ = false;
  // The ring's completions wait in the kernel until this thread asks for them; see make_ring().
  bool deferred_ = false;
  // Only with deferred_: readable after a completion that came while events are wanted.
  int event_fd_ = -1;
  bool events_wanted_ = false;
  std::vector<Op> ops_;
  Op* free_ = nullptr;
  // Requests that found no free op or ring slot.
  FairQueue waiting_;
  bool unsubmitted_ = false;
  std::uint64_t copied_bytes_ = 0;  // in this turn
  // While poll() takes completions: where to say that one of them has ended this channel, or that enough was copied.
  enum class Turn : std::uint8_t { kGoesOn, kSpent, kChannelEnded };
  Turn* turn_ = nullptr;
  void copied(std::uint64_t bytes);
};

// The memory of a channel and of its ring, and the kernel's work on them, take up to some milliseconds.
Opening UringBdev::open_channel(reactor::Reactor& reactor) {
  struct Making : DeviceThread::Job {
    std::shared_ptr<UringBdev> bdev;
    Result<std::unique_ptr<UringChannel>> channel;
    reactor::Completion<bool> done;
  } job;
  job.call = DeviceThread::Call::kOwn;
  job.bdev = shared_from_this();
  job.reactor = &reactor;
  job.own = [](DeviceThread::Job& own) {
    auto& making = static_cast<Making&>(own);
    making.channel = UringChannel::make(making.bdev, *making.reactor);
    return 0;
  };
  job.run = [](reactor::Message& message) { static_cast<Making&>(message).done.set(true); };
  device_thread_.start(job);
  co_await job.done;
  if (!job.channel) co_return fail(std::move(job.channel.error()));
  POLLUX_CO_TRY((*job.channel)->start());
  co_return std::move(*job.channel);
}

Result<std::unique_ptr<UringChannel>> UringChannel::make(std::shared_ptr<UringBdev> bdev, reactor::Reactor& reactor) {
  auto channel = std::make_unique<UringChannel>(std::move(bdev), reactor);
  POLLUX_TRY(channel->make_ring());
  channel->ring_open_ = true;
  return channel;
}

Status UringChannel::start() {
  POLLUX_TRY(enable_ring());
  move_workers();
  POLLUX_TRY(watch_completions());
  reactor_.add_poller(*this);
  polled_ = true;
  return {};
}

// By default the kernel interrupts the thread that made the ring for each completion, and an interrupt from another
// core is what costs most in a virtual machine. With deferred task work (6.1 and newer) a completion only sets a flag in the
// ring, and io_uring_peek_batch_cqe() asks the kernel for all of them when it sees it.
Status UringChannel::make_ring() {
  constexpr unsigned kDeferred = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
  int rc = 0;
  for (const unsigned flags : {kDeferred, 0U}) {
    io_uring_params params{};
    params.flags = IORING_SETUP_CQSIZE | IORING_SETUP_R_DISABLED | flags;
    params.cq_entries = 2 * kMaxInFlight;
    rc = io_uring_queue_init_params(kRingEntries, &ring_, &params);
    deferred_ = rc >= 0 && flags != 0;
    // An older kernel does not know the flags.
    if (rc != -EINVAL) break;
  }
  if (rc >= 0) return {};
  return fail(ErrorCode::kInternal, "cannot make an io_uring for " + bdev_->name() + ": " + std::strerror(-rc) +
                                        " (is io_uring disabled by kernel.io_uring_disabled?)");
}

// The thread that enables the ring is the one whose requests it takes, not the one that made it.
Status UringChannel::enable_ring() {
  // liburing 2.3 does not export io_uring_enable_rings().
  if (syscall(SYS_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0) != 0) {
    return fail(ErrorCode::kInternal, describe_errno("cannot enable an io_uring"));
  }
  // Asks for a request that is not there: from here on the kernel knows this thread, whose workers are moved next.
  if (syscall(SYS_io_uring_enter, ring_.ring_fd, 1, 0, 0, nullptr, 0) < 0) {
    return fail(ErrorCode::kInternal, describe_errno("cannot use an io_uring"));
  }
  return {};
}

// A ring with deferred task work does not become readable by a completion that is still in the kernel. An eventfd does,
// which is switched off while the ring is polled.
Status UringChannel::watch_completions() {
  if (!deferred_) return reactor_.watch(ring_.ring_fd);
  event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_fd_ < 0) return fail(ErrorCode::kInternal, describe_errno("cannot make an eventfd"));
  if (int rc = io_uring_register_eventfd(&ring_, event_fd_); rc < 0) {
    return fail(ErrorCode::kInternal, std::string("cannot register an eventfd: ") + std::strerror(-rc));
  }
  io_uring_cq_eventfd_toggle(&ring_, false);
  return reactor_.watch(event_fd_);
}

void UringChannel::want_events(bool wanted) {
  if (!deferred_ || events_wanted_ == wanted) return;
  io_uring_cq_eventfd_toggle(&ring_, wanted);
  events_wanted_ = wanted;
}

// The kernel's own threads, which run what may block (fsync, fallocate, RWF_DSYNC writes), inherit the core of the
// thread whose requests they are. There they would wait until the reactor sleeps.
void UringChannel::move_workers() {
  const auto cores = main_thread_cores();
  if (!cores) return;
  if (int rc = io_uring_register_iowq_aff(&ring_, sizeof(*cores), &*cores); rc < 0) {
    log::warn("{}: the kernel's workers stay on the reactor's core, and flushes wait for it: {}", bdev_->name(),
              std::strerror(-rc));
  }
}

UringChannel::~UringChannel() {
  if (turn_ != nullptr) *turn_ = Turn::kChannelEnded;
  if (!ring_open_) return;
  if (polled_) {
    reactor_.remove_poller(*this);
    reactor_.unwatch(deferred_ ? event_fd_ : ring_.ring_fd);
  }
  if (event_fd_ >= 0) close(event_fd_);
  // Unmapping and closing it wait for the kernel, as making it does.
  struct Ending : DeviceThread::Job {
    io_uring ring;
  };
  auto* const job = new Ending;
  job->call = DeviceThread::Call::kOwn;
  job->ring = ring_;
  job->own = [](DeviceThread::Job& own) {
    const std::unique_ptr<Ending> ending(&static_cast<Ending&>(own));
    io_uring_queue_exit(&ending->ring);
    return 0;
  };
  bdev_->device_thread().start(*job);
}

bool UringChannel::valid(const IoRequest& request) const {
  if (request.op == IoOp::kFlush) return true;
  const std::uint64_t block = bdev_->block_bytes();
  return is_aligned(request.offset_bytes, block) && is_aligned(request.length_bytes, block) &&
         range_fits(request.offset_bytes, request.length_bytes, bdev_->size_bytes());
}

void UringChannel::submit(IoRequest& request) {
  if (!valid(request) || request.op == IoOp::kExtent) {
    request.status = IoStatus::kInvalid;
    request.complete(request);
    return;
  }
  if (request.op != IoOp::kFlush && request.length_bytes == 0) {
    request.status = IoStatus::kOk;
    request.complete(request);
    return;
  }
  if (bdev_->writing_stopped() && request.op != IoOp::kRead && request.op != IoOp::kFlush) {
    request.status = IoStatus::kReadOnly;
    request.complete(request);
    return;
  }
  if (!waiting_.empty() || free_ == nullptr) {
    waiting_.push(request);
    return;
  }
  Op& op = *free_;
  free_ = op.next_free;
  op.request = &request;
  op.retries = 0;
  op.syncing = false;
  if (!start_op(op)) {
    release(op);
    waiting_.push(request);
  }
}

void UringChannel::drain_waiting() {
  while (!waiting_.empty() && free_ != nullptr && copied_bytes_ < kCopiedBytesPerTurn) {
    IoRequest& request = waiting_.front();
    Op& op = *free_;
    free_ = op.next_free;
    op.request = &request;
    op.retries = 0;
    op.syncing = false;
    if (!start_op(op)) {
      release(op);
      return;
    }
    waiting_.pop();
  }
}

void UringChannel::copied(std::uint64_t bytes) {
  copied_bytes_ += bytes;
  if (turn_ != nullptr && copied_bytes_ >= kCopiedBytesPerTurn) *turn_ = Turn::kSpent;
}

bool UringChannel::make_bounce(Op& op) {
  const IoRequest& request = *op.request;
  void* memory = memory::allocate(request.length_bytes, kBounceAlignment);
  if (memory == nullptr) return false;
  op.bounce = {memory, request.length_bytes};
  if (request.op == IoOp::kWrite) {
    auto* to = static_cast<std::byte*>(memory);
    std::uint64_t left = request.length_bytes;
    for (std::uint16_t i = 0; i < request.iov_count && left > 0; ++i) {
      const std::uint64_t now = std::min<std::uint64_t>(request.iov[i].iov_len, left);
      std::memcpy(to, request.iov[i].iov_base, now);
      to += now;
      left -= now;
    }
    copied(request.length_bytes);
  }
  return true;
}

void UringChannel::start_discard(Op& op) {
  op.discard.offset_bytes = op.request->offset_bytes;
  op.discard.length_bytes = op.request->length_bytes;
  op.discard.reactor = &reactor_;
  op.discard.channel = this;
  op.discard.op = &op;
  op.discard.run = [](reactor::Message& message) {
    auto& discard = static_cast<Op::Discard&>(message);
    discard.channel->finish(*discard.op, discard.result);
  };
  bdev_->device_thread().start(op.discard);
}

// False: the ring or memory has no room now; try again after completions.
bool UringChannel::start_op(Op& op) {
  const IoRequest& request = *op.request;
  if (request.op == IoOp::kUnmap && bdev_->is_block_device() && !op.syncing) {
    start_discard(op);
    return true;
  }
  const bool moves_data = request.op == IoOp::kRead || request.op == IoOp::kWrite;
  const bool fits = !moves_data || bdev_->direct().takes(request.iov, request.iov_count);
  if (!fits && op.bounce.iov_base == nullptr && !make_bounce(op)) return false;
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe == nullptr) {
    io_uring_submit(&ring_);
    sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return false;
  }
  const iovec* iov = op.bounce.iov_base != nullptr ? &op.bounce : request.iov;
  const unsigned iov_count = op.bounce.iov_base != nullptr ? 1 : request.iov_count;
  // Not a registered file: those belong to the ring, which the kernel takes down some time after a process was killed.
  // A request holds the file, and so its lock, until it has ended, which is just as long as a successor has to wait:
  // nothing that the dead process wrote or read can land after the lock was taken anew.
  const int file = bdev_->fd();
  switch (op.syncing ? IoOp::kFlush : request.op) {
    case IoOp::kRead:
      io_uring_prep_readv(sqe, file, iov, iov_count, request.offset_bytes);
      break;
    case IoOp::kWrite:
      io_uring_prep_writev2(sqe, file, iov, iov_count, request.offset_bytes,
                            (request.flags & IoRequest::kFua) != 0 && bdev_->honours_dsync() ? RWF_DSYNC : 0);
      break;
    case IoOp::kFlush:
      io_uring_prep_fsync(sqe, file, IORING_FSYNC_DATASYNC);
      break;
    case IoOp::kUnmap:
      io_uring_prep_fallocate(sqe, file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                              static_cast<off_t>(request.offset_bytes), static_cast<off_t>(request.length_bytes));
      break;
    case IoOp::kWriteZeroes:
      if (bdev_->writes_zeros()) {
        op.zeroing_bytes = static_cast<std::uint32_t>(
            std::min<std::uint64_t>(request.length_bytes - op.zeroed_bytes, kZeroChunkBytes));
        io_uring_prep_write(sqe, file, zeros, op.zeroing_bytes, request.offset_bytes + op.zeroed_bytes);
        break;
      }
      io_uring_prep_fallocate(sqe, file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                              static_cast<off_t>(request.offset_bytes), static_cast<off_t>(request.length_bytes));
      break;
    case IoOp::kExtent:
      // submit() refused it.
      return false;
  }
  io_uring_sqe_set_data(sqe, &op);
  unsubmitted_ = true;
  return true;
}

void UringChannel::release(Op& op) {
  memory::release(op.bounce.iov_base);
  op.bounce = {};
  op.zeroed_bytes = 0;
  op.zeroing_bytes = 0;
  op.request = nullptr;
  op.next_free = free_;
  free_ = &op;
}

// True: the request goes on, with zeros that are written because the file system refused the range, or with more of
// them. Else `result` says how the request as a whole ended.
bool UringChannel::finish_zeroing(Op& op, int& result) {
  IoRequest& request = *op.request;
  if (op.zeroing_bytes == 0) {
    if (result != -EOPNOTSUPP && result != -EINVAL && result != -ENOSYS) return false;
    bdev_->write_zeros_from_now_on();
  } else {
    if (result < 0) return false;
    // A short write stopped where the next one gets the error that says why.
    const std::uint64_t written = align_down<std::uint64_t>(static_cast<std::uint64_t>(result), bdev_->block_bytes());
    if (written == 0) result = -EIO;
    op.zeroed_bytes += written;
    if (written == 0 || op.zeroed_bytes == request.length_bytes) return false;
  }
  op.retries = 0;
  if (start_op(op)) return true;
  // No room in the ring: from the beginning when there is.
  release(op);
  waiting_.push(request);
  return true;
}

// What the kernel's block layer says where a transport failed or did not answer in time (block/blk-core.c, blk_errors):
// a path of a network or of several that may come back. Not so for a flush: what a device's cache lost with the first
// attempt is not in the answer to the second.
IoStatus failure_of(IoOp op, bool syncing, int result) {
  if (result == -ENOSPC) return IoStatus::kNoSpace;
  const bool transport = result == -ENOLINK || result == -ETIMEDOUT;
  return transport && !syncing && (op == IoOp::kRead || op == IoOp::kWrite) ? IoStatus::kPathLost : IoStatus::kIoError;
}

void UringChannel::finish(Op& op, int result) {
  IoRequest& request = *op.request;
  if (request.op == IoOp::kWriteZeroes && !op.syncing && finish_zeroing(op, result)) return;
  const bool moves_data = !op.syncing && (request.op == IoOp::kRead || request.op == IoOp::kWrite);
  const bool is_short = moves_data && result >= 0 && static_cast<std::uint64_t>(result) != request.length_bytes;
  // Short transfers and interruptions are legal for the kernel; the request is idempotent, so it goes out whole again.
  if ((is_short || result == -EINTR || result == -EAGAIN) && op.retries++ < kMaxRetries && start_op(op)) return;
  // fallocate has no flag that makes it durable, and the flag of a write may not be honoured.
  const bool needs_sync = request.durable_change() && (request.op != IoOp::kWrite || !bdev_->honours_dsync());
  if (result >= 0 && !op.syncing && needs_sync) {
    op.syncing = true;
    if (start_op(op)) return;
    // No room in the ring: all of it once more.
    release(op);
    waiting_.push(request);
    return;
  }
  if (result < 0 || is_short) {
    request.status = failure_of(request.op, op.syncing, result);
    // A device without discard keeps its data, which unmap allows.
    if (request.op == IoOp::kUnmap && result == -EOPNOTSUPP) {
      bdev_->unmaps_no_more();
      request.status = IoStatus::kOk;
    }
  } else {
    request.status = IoStatus::kOk;
    if (request.op == IoOp::kRead && op.bounce.iov_base != nullptr) {
      const auto* from = static_cast<const std::byte*>(op.bounce.iov_base);
      std::uint64_t left = request.length_bytes;
      for (std::uint16_t i = 0; i < request.iov_count && left > 0; ++i) {
        const std::uint64_t now = std::min<std::uint64_t>(request.iov[i].iov_len, left);
        std::memcpy(request.iov[i].iov_base, from, now);
        from += now;
        left -= now;
      }
      copied(request.length_bytes);
    }
  }
  release(op);
  request.complete(request);
}

unsigned UringChannel::poll() {
  copied_bytes_ = 0;
  if (!waiting_.empty()) drain_waiting();
  if (unsubmitted_) {
    const int rc = io_uring_submit(&ring_);
    // Busy means the completion queue is full: take completions, submit on the next turn. The kernel may also stop half
    // way, after a request that it refuses.
    if (rc >= 0) unsubmitted_ = io_uring_sq_ready(&ring_) != 0;
  }
  std::array<io_uring_cqe*, kCompletionsPerTurn> cqes;
  const unsigned count = io_uring_peek_batch_cqe(&ring_, cqes.data(), kCompletionsPerTurn);
  if (count != 0) want_events(false);
  auto turn = Turn::kGoesOn;
  turn_ = &turn;
  for (unsigned i = 0; i < count; ++i) {
    Op& op = *static_cast<Op*>(io_uring_cqe_get_data(cqes[i]));
    const int result = cqes[i]->res;
    // The slot goes back first: finish() may submit again and so needs room.
    io_uring_cqe_seen(&ring_, cqes[i]);
    finish(op, result);
    if (turn == Turn::kGoesOn) continue;
    // Its last request may have been what kept the channel; nothing of it may be touched any more. Otherwise the rest of
    // the completions stay in the ring for the next turn.
    if (turn == Turn::kSpent) turn_ = nullptr;
    return i + 1;
  }
  turn_ = nullptr;
  return count;
}

bool UringChannel::arm() {
  want_events(true);
  // The kernel looks whether events are wanted after it has set its flag; poll() looks at the flag after this.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  // A completion taken here may be an answer that a poller which is armed already has still to publish: sleeping now
  // would leave the guest waiting for it.
  if (poll() != 0) return false;
  return !unsubmitted_ && waiting_.empty() && io_uring_cq_ready(&ring_) == 0;
}

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x00002000U
#endif

// The kernel's own word where it gives one (statx since 6.1), else the logical block size.
DirectIo find_rules(int fd, bool is_block_device) {
  DirectIo rules;
  if (int logical = 0; is_block_device && ioctl(fd, BLKSSZGET, &logical) == 0 && logical > 512) {
    rules.memory_bytes = rules.block_bytes = static_cast<std::uint32_t>(logical);
  }
  struct statx stx {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 && (stx.stx_mask & STATX_DIOALIGN) != 0) {
    // stx_dio_mem_align and stx_dio_offset_align sit behind stx_mnt_id; older headers call them spare.
    std::uint32_t dio[2];
    std::memcpy(dio, reinterpret_cast<const char*>(&stx) + 0x98, sizeof(dio));
    if (dio[0] != 0) rules.memory_bytes = dio[0];
    if (dio[1] > rules.block_bytes) rules.block_bytes = dio[1];
  }
  return rules;
}

struct OpenedFile {
  int fd;
  bool created;
};

Result<OpenedFile> open_file(const std::string& path, std::uint64_t create_bytes) {
  constexpr int kFlags = O_RDWR | O_CLOEXEC;
  struct stat st {};
  const bool exists = stat(path.c_str(), &st) == 0;
  if (!exists && create_bytes == 0) {
    return fail(ErrorCode::kNotFound, describe_errno("cannot open " + path) + " (give a size to create it)");
  }
  const int flags = kFlags | (exists ? (S_ISBLK(st.st_mode) ? O_EXCL : 0) : O_CREAT | O_EXCL);
  int fd = ::open(path.c_str(), flags | O_DIRECT, 0600);
  if (fd < 0 && errno == EINVAL) {
    // Some file systems (tmpfs) have no O_DIRECT; with O_CREAT the file may be there now all the same.
    log::warn("{}: its file system has no O_DIRECT; data passes through the page cache", path);
    fd = ::open(path.c_str(), kFlags | (exists ? 0 : O_CREAT), 0600);
  }
  if (fd < 0) {
    const auto code = errno == EBUSY ? ErrorCode::kBusy : ErrorCode::kIoError;
    return fail(code, describe_errno("cannot open " + path));
  }
  return OpenedFile{fd, !exists};
}

Result<std::uint64_t> size_of(int fd, const std::string& path, bool* is_block_device) {
  struct stat st {};
  if (fstat(fd, &st) != 0) return fail(ErrorCode::kIoError, describe_errno("cannot stat " + path));
  *is_block_device = S_ISBLK(st.st_mode);
  if (S_ISREG(st.st_mode)) return static_cast<std::uint64_t>(st.st_size);
  if (!*is_block_device) return fail(ErrorCode::kInvalid, path + " is neither a regular file nor a block device");
  std::uint64_t bytes = 0;
  if (ioctl(fd, BLKGETSIZE64, &bytes) != 0) return fail(ErrorCode::kIoError, describe_errno("cannot size " + path));
  return bytes;
}

// Linux (up to 6.18) answers an asynchronous write with RWF_DSYNC to a file of FUSE without any flush.
bool honours_dsync(int fd) {
  struct statfs system {};
  return fstatfs(fd, &system) == 0 && static_cast<unsigned long>(system.f_type) != FUSE_SUPER_MAGIC;
}

// The lock (flock, O_EXCL) is on the inode or the device number, of this run of the kernel. Empty when the kernel does
// not say which run that is.
std::string exclusive_name_of(int fd) {
  std::ifstream boot("/proc/sys/kernel/random/boot_id");
  std::string boot_id;
  struct stat st {};
  if (!std::getline(boot, boot_id) || boot_id.empty() || fstat(fd, &st) != 0) return {};
  if (S_ISBLK(st.st_mode)) {
    return "block " + std::to_string(major(st.st_rdev)) + ":" + std::to_string(minor(st.st_rdev)) + " of " + boot_id;
  }
  return "file " + std::to_string(st.st_ino) + " on " + std::to_string(major(st.st_dev)) + ":" +
         std::to_string(minor(st.st_dev)) + " of " + boot_id;
}

reactor::Task<Status> UringBdev::reserve(reactor::Reactor& reactor, std::uint64_t offset_bytes,
                                         std::uint64_t length_bytes) {
  if (is_block_device_) co_return Status{};
  struct Reserving : DeviceThread::Job {
    reactor::Completion<bool> done;
  } job;
  job.call = DeviceThread::Call::kReserve;
  job.offset_bytes = offset_bytes;
  job.length_bytes = length_bytes;
  job.reactor = &reactor;
  job.run = [](reactor::Message& message) { static_cast<Reserving&>(message).done.set(true); };
  device_thread().start(job);
  co_await job.done;
  if (job.result == 0) co_return Status{};
  const std::string what = "reserving " + std::to_string(length_bytes) + " bytes at " + std::to_string(offset_bytes) +
                           " of " + path_ + ": " + std::strerror(-job.result);
  if (job.result == -EOPNOTSUPP || job.result == -ENOSYS) co_return fail(ErrorCode::kUnsupported, what);
  co_return fail(job.result == -ENOSPC || job.result == -EDQUOT ? ErrorCode::kNoSpace : ErrorCode::kIoError, what);
}

// Growth alone: a device that shrank keeps its size here, and what lies beyond fails as the kernel says.
void UringBdev::refresh_size() {
  bool is_block_device = false;
  const auto found = size_of(fd_, path_, &is_block_device);
  // A device that is gone says so at the next request.
  if (!found) return;
  const std::uint64_t size = align_down<std::uint64_t>(*found, 4096);
  std::uint64_t known = size_bytes_.load(std::memory_order_relaxed);
  while (size > known) {
    if (size_bytes_.compare_exchange_weak(known, size, std::memory_order_relaxed)) {
      log::info("{} grew from {} to {} bytes", path_, known, size);
      notify_resized();
      return;
    }
  }
}

}  // namespace

Result<std::shared_ptr<Bdev>> make_uring_bdev(const std::string& path, std::uint64_t create_bytes) {
  if (path.empty() || path.front() != '/') {
    return fail(ErrorCode::kInvalid, "the path of a device must be absolute, not '" + path + "'");
  }
  if (!is_aligned<std::uint64_t>(create_bytes, 4096)) {
    return fail(ErrorCode::kInvalid, "the size of " + path + " must be a multiple of 4096 bytes");
  }
  auto opened = open_file(path, create_bytes);
  if (!opened) return fail(std::move(opened.error()));
  const int fd = opened->fd;
  const auto give_up = [fd](Error error) {
    close(fd);
    return fail(std::move(error));
  };
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    return give_up({errno == EWOULDBLOCK ? ErrorCode::kBusy : ErrorCode::kIoError,
                    path + " is locked: another process serves it already"});
  }
  if (opened->created && ftruncate(fd, static_cast<off_t>(create_bytes)) != 0) {
    Error error{ErrorCode::kIoError, describe_errno("cannot size the new file " + path)};
    unlink(path.c_str());
    return give_up(std::move(error));
  }
  bool is_block_device = false;
  auto size_bytes = size_of(fd, path, &is_block_device);
  if (!size_bytes) return give_up(std::move(size_bytes.error()));
  const DirectIo direct = find_rules(fd, is_block_device);
  if (direct.block_bytes > 4096) {
    return give_up({ErrorCode::kUnsupported, path + " has blocks of " + std::to_string(direct.block_bytes) +
                                                 " bytes; 512 and 4096 are supported"});
  }
  return std::make_shared<UringBdev>(path, exclusive_name_of(fd), fd, align_down<std::uint64_t>(*size_bytes, 4096),
                                     direct, is_block_device, honours_dsync(fd));
}

}  // namespace pollux::bdev
