#include "bdev/bdev.h"

#include <algorithm>

#include "reactor/reactor.h"

namespace pollux::bdev {

const char* to_string(IoStatus status) {
  switch (status) {
    case IoStatus::kOk:
      return "ok";
    case IoStatus::kIoError:
      return "I/O error";
    case IoStatus::kMediumError:
      return "medium error";
    case IoStatus::kNoSpace:
      return "out of space";
    case IoStatus::kInvalid:
      return "invalid range or alignment";
    case IoStatus::kReadOnly:
      return "read only";
    case IoStatus::kAborted:
      return "aborted";
    case IoStatus::kPathLost:
      return "path to the device lost";
  }
  return "unknown";
}

const char* to_string(IoOp op) {
  switch (op) {
    case IoOp::kRead:
      return "read";
    case IoOp::kWrite:
      return "write";
    case IoOp::kFlush:
      return "flush";
    case IoOp::kUnmap:
      return "unmap";
    case IoOp::kWriteZeroes:
      return "write zeroes";
    case IoOp::kExtent:
      return "extent";
  }
  return "unknown";
}

const std::string& Bdev::exclusive_name() const {
  static const std::string none;
  return none;
}

reactor::Task<Status> Bdev::reserve(reactor::Reactor&, std::uint64_t, std::uint64_t) {
  co_return Status{};
}

Bdev::ResizeToken Bdev::on_resize(std::function<void(std::uint64_t)> callback) {
  auto entry = std::make_shared<std::function<void(std::uint64_t)>>(std::move(callback));
  {
    std::lock_guard lock(listeners_->mutex);
    listeners_->callbacks.push_back(entry);
  }
  // The token may outlive the device; the list then outlives it too.
  return {entry.get(), [listeners = listeners_, entry](void*) {
            std::lock_guard lock(listeners->mutex);
            std::erase(listeners->callbacks, entry);
          }};
}

void Bdev::notify_resized() {
  const std::uint64_t size = size_bytes();
  std::lock_guard lock(listeners_->mutex);
  for (const auto& callback : listeners_->callbacks) (*callback)(size);
}

Opening open_channel(std::shared_ptr<Bdev> device, reactor::Reactor& reactor) {
  co_await reactor.enter();
  auto channel = co_await device->open_channel(reactor);
  // This frame ends some time after its caller has the answer. It must not be what keeps the device in use then.
  device.reset();
  co_return channel;
}

Status check_stack(const Bdev& top) {
  const std::uint32_t needed = top.frame_bytes();
  if (needed <= IoRequest::kFrameBytes) return {};
  return fail(ErrorCode::kUnsupported, "the layers of " + top.name() + " keep " + std::to_string(needed) +
                                           " bytes with each request, and there is room for " +
                                           std::to_string(IoRequest::kFrameBytes) + "; use fewer layers");
}

namespace {

// A request that a coroutine waits for; lives in the coroutine's frame.
struct Awaited : IoRequest {
  explicit Awaited(Channel& on) : channel(on) {}

  bool await_ready() const { return false; }
  bool await_suspend(std::coroutine_handle<> self) {
    waiter = self;
    complete = [](IoRequest& done) {
      auto& awaited = static_cast<Awaited&>(done);
      awaited.completed = true;
      if (awaited.suspended) awaited.waiter.resume();
    };
    channel.submit(*this);
    suspended = true;
    return !completed;
  }
  IoStatus await_resume() const { return status; }

  Channel& channel;
  iovec buffer{};
  std::coroutine_handle<> waiter;
  // Completion may come from within submit(): then the coroutine has not suspended and must not be resumed.
  bool completed = false;
  bool suspended = false;
};

reactor::Task<IoStatus> run(Channel& channel, IoOp op, std::uint64_t offset_bytes, void* data,
                            std::uint64_t length_bytes, std::uint8_t flags) {
  Awaited awaited(channel);
  awaited.op = op;
  awaited.flags = flags;
  awaited.offset_bytes = offset_bytes;
  awaited.length_bytes = length_bytes;
  if (data != nullptr) {
    awaited.buffer = {data, length_bytes};
    awaited.iov = &awaited.buffer;
    awaited.iov_count = 1;
  }
  co_return co_await awaited;
}

}  // namespace

reactor::Task<IoStatus> read(Channel& channel, std::uint64_t offset_bytes, void* data, std::size_t length_bytes) {
  return run(channel, IoOp::kRead, offset_bytes, data, length_bytes, 0);
}

reactor::Task<IoStatus> write(Channel& channel, std::uint64_t offset_bytes, const void* data, std::size_t length_bytes,
                              std::uint8_t flags) {
  return run(channel, IoOp::kWrite, offset_bytes, const_cast<void*>(data), length_bytes, flags);
}

reactor::Task<IoStatus> flush(Channel& channel, std::uint8_t flags) {
  return run(channel, IoOp::kFlush, 0, nullptr, 0, flags);
}

reactor::Task<IoStatus> unmap(Channel& channel, std::uint64_t offset_bytes, std::uint64_t length_bytes,
                              std::uint8_t flags) {
  return run(channel, IoOp::kUnmap, offset_bytes, nullptr, length_bytes, flags);
}

reactor::Task<IoStatus> write_zeroes(Channel& channel, std::uint64_t offset_bytes, std::uint64_t length_bytes,
                                     std::uint8_t flags) {
  return run(channel, IoOp::kWriteZeroes, offset_bytes, nullptr, length_bytes, flags);
}

reactor::Task<Result<Extent>> extent(Channel& channel, std::uint64_t offset_bytes, std::uint64_t length_bytes) {
  Awaited awaited(channel);
  awaited.op = IoOp::kExtent;
  awaited.offset_bytes = offset_bytes;
  awaited.length_bytes = length_bytes;
  const IoStatus status = co_await awaited;
  POLLUX_CO_TRY(to_status(status, "looking for an extent"));
  co_return Extent{awaited.length_bytes, (awaited.flags & IoRequest::kMapped) != 0};
}

Status to_status(IoStatus status, const std::string& what) {
  switch (status) {
    case IoStatus::kOk:
      return {};
    case IoStatus::kNoSpace:
      return fail(ErrorCode::kNoSpace, what + ": out of space");
    case IoStatus::kInvalid:
      return fail(ErrorCode::kInvalid, what + ": invalid range or alignment");
    case IoStatus::kReadOnly:
      return fail(ErrorCode::kDenied, what + ": the device is read only");
    case IoStatus::kMediumError:
      return fail(ErrorCode::kCorrupt, what + ": medium error");
    case IoStatus::kIoError:
    case IoStatus::kAborted:
    case IoStatus::kPathLost:
      break;
  }
  return fail(ErrorCode::kIoError, what + ": " + to_string(status));
}

}  // namespace pollux::bdev
