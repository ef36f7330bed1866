#include "control/nbd_connection.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "base/memory.h"
#include "base/units.h"
#include "control/nbd_protocol.h"

namespace pollux::control::nbd {

namespace {

constexpr std::size_t kSlots = 32;
// Of all requests of a connection together; one alone may have kMaxPayloadBytes.
constexpr std::uint64_t kBytesInFlight = kMaxPayloadBytes;
// How long a request waits for the path to its device to come back. NBD has no error for it.
constexpr std::chrono::milliseconds kPathPatience{30'000};
// Kept in a slot between requests; larger ones are given back.
constexpr std::size_t kKeptBufferBytes = 1 << 20;
constexpr std::size_t kBufferAlignment = 4096;  // of O_DIRECT, so that devices need not bounce
constexpr int kNegotiationTimeoutS = 10;
// Requests go on arriving from the socket's buffer after the client has gone, and limits hold back those too.
constexpr int kHurryEveryMs = 10;
// Of one answer about extents; the client asks on where it ends.
constexpr std::size_t kMaxExtents = 32;
constexpr std::size_t kExtentBytes = 8;  // on the wire: length, state

std::uint32_t to_nbd(bdev::IoStatus status) {
  switch (status) {
    case bdev::IoStatus::kOk:
      return kOk;
    case bdev::IoStatus::kNoSpace:
      return kEnospc;
    case bdev::IoStatus::kInvalid:
      return kEinval;
    case bdev::IoStatus::kReadOnly:
      return kEperm;
    case bdev::IoStatus::kAborted:
      return kEshutdown;
    case bdev::IoStatus::kIoError:
    case bdev::IoStatus::kMediumError:
    case bdev::IoStatus::kPathLost:
      return kEio;
  }
  return kEio;
}

void set_timeout(int socket, int option, int seconds) {
  const timeval limit{seconds, 0};
  setsockopt(socket, SOL_SOCKET, option, &limit, sizeof(limit));
}

bool moves_data(std::uint16_t type) {
  return type == kCmdRead || type == kCmdWrite;
}

reactor::Task<Status> drop_channel(reactor::Reactor& reactor, std::unique_ptr<bdev::Channel> channel,
                                   std::unique_ptr<bdev::PathWait> path_wait) {
  co_await reactor.enter();
  path_wait.reset();
  channel.reset();
  co_return Status{};
}

}  // namespace

// A request on its way: to the reactor as a message, on it as an IoRequest, back as a message.
struct Connection::Slot : reactor::Message, bdev::PathWait::Request {
  Connection* connection = nullptr;
  std::uint64_t cookie = 0;
  std::uint16_t type = 0;        // of the request
  std::uint64_t from_bytes = 0;  // where the request begins, and where it ends
  std::uint64_t end_bytes = 0;
  std::size_t extents_left = 0;  // how many more an answer may have
  std::uint32_t error = kOk;
  std::uint32_t answer_bytes = 0;   // data that follows the answer
  std::uint32_t counted_bytes = 0;  // of bytes_in_use_
  iovec data{};
  std::unique_ptr<void, memory::Release> buffer;
  std::size_t buffer_bytes = 0;

  // Takes the device's answer over. True: it is to be asked for the next extent.
  bool add_extent() {
    auto* out = static_cast<std::uint8_t*>(buffer.get()) + answer_bytes;
    put(out, static_cast<std::uint32_t>(length_bytes));
    put(out + 4, (bdev::IoRequest::flags & kMapped) != 0 ? 0 : kStateHole | kStateZero);
    answer_bytes += kExtentBytes;
    offset_bytes += length_bytes;
    length_bytes = end_bytes - offset_bytes;
    return --extents_left > 0 && length_bytes > 0;
  }

  bool reserve(std::size_t bytes) {
    if (buffer_bytes >= bytes) return true;
    buffer_bytes = 0;
    const std::size_t rounded = align_up<std::size_t>(bytes, kBufferAlignment);
    buffer.reset(memory::allocate(rounded, kBufferAlignment));
    if (buffer) buffer_bytes = rounded;
    return buffer != nullptr;
  }
};

Connection::Connection(UniqueFd socket, std::shared_ptr<bdev::Bdev> device, reactor::Reactor& reactor, Export exported)
    : socket_(std::move(socket)),
      device_(std::move(device)),
      reactor_(reactor),
      export_(std::move(exported)),
      answers_event_(eventfd(0, EFD_CLOEXEC)) {
  for (std::size_t i = 0; i < kSlots; ++i) {
    slots_.push_back(std::make_unique<Slot>());
    slots_.back()->connection = this;
    free_.push_back(slots_.back().get());
  }
}

Connection::~Connection() = default;

void Connection::interrupt() {
  interrupted_.store(true);
  shutdown(socket_.get(), SHUT_RDWR);
}

Status Connection::run() {
  if (!answers_event_) return fail(ErrorCode::kInternal, std::string("no eventfd: ") + std::strerror(errno));
  set_timeout(socket_.get(), SO_RCVTIMEO, kNegotiationTimeoutS);
  set_timeout(socket_.get(), SO_SNDTIMEO, kNegotiationTimeoutS);
  const auto agreed = negotiate(socket_.get(), export_, negotiating_);
  if (!agreed) return fail(agreed.error());
  if (!*agreed) return {};
  agreed_ = **agreed;
  // From here on a client may be silent, or busy, for as long as it likes.
  set_timeout(socket_.get(), SO_RCVTIMEO, 0);
  set_timeout(socket_.get(), SO_SNDTIMEO, 0);
  auto channel = open_channel();
  if (!channel) return fail(std::move(channel.error()));
  channel_ = std::move(*channel);
  path_wait_ = std::make_unique<bdev::PathWait>(reactor_, *channel_, kPathPatience);
  const auto status = transmit();
  const auto dropped = reactor::call(reactor_, drop_channel(reactor_, std::move(channel_), std::move(path_wait_)));
  return status ? dropped : status;
}

Result<std::unique_ptr<bdev::Channel>> Connection::open_channel() {
  using Call = reactor::Call<std::unique_ptr<bdev::Channel>>;
  Call call(reactor_, bdev::open_channel(device_, reactor_));
  while (!interrupted_.load()) {
    if (auto opened = call.wait_until(Call::Clock::now() + std::chrono::milliseconds(kHurryEveryMs))) {
      return std::move(*opened);
    }
  }
  if (auto opened = call.give_up()) return std::move(*opened);
  return fail(ErrorCode::kRetry, "it ended while " + device_->name() + " was being opened");
}

Status Connection::transmit() {
  std::thread sender([this] { send_answers(); });
  const auto status = read_requests();
  reading_done_.store(true);
  const std::uint64_t one = 1;
  const bool woken = write(answers_event_.get(), &one, sizeof(one)) == sizeof(one);
  sender.join();
  if (!woken) return fail(ErrorCode::kInternal, "cannot wake the sending thread");
  return status;
}

Status Connection::read_requests() {
  while (true) {
    std::array<std::uint8_t, kRequestBytes> raw{};
    if (!receive(socket_.get(), raw.data(), raw.size())) return {};
    if (get<std::uint32_t>(raw.data()) != kRequestMagic)
      return fail(ErrorCode::kInvalid, "a request without its magic");
    Request request;
    request.flags = get<std::uint16_t>(raw.data() + 4);
    request.type = get<std::uint16_t>(raw.data() + 6);
    request.cookie = get<std::uint64_t>(raw.data() + 8);
    request.offset_bytes = get<std::uint64_t>(raw.data() + 16);
    request.length_bytes = get<std::uint32_t>(raw.data() + 24);
    if (request.type == kCmdDisconnect) return {};
    POLLUX_TRY(take(request));
  }
}

std::uint32_t Connection::judge(const Request& request) const {
  // "Command flags": where FUA is offered it comes with any command, and means nothing to those that do not write.
  std::uint16_t known_flags = (export_.transmission_flags & kSendFua) != 0 ? kCmdFlagFua : 0;
  bool writes = true;
  switch (request.type) {
    case kCmdRead:
      if (agreed_.structured_replies) known_flags |= kCmdFlagDf;
      writes = false;
      break;
    case kCmdBlockStatus:
      if (!agreed_.allocation) return kEinval;
      known_flags |= kCmdFlagReqOne;
      writes = false;
      break;
    case kCmdWrite:
    case kCmdTrim:
      break;
    case kCmdWriteZeroes:
      known_flags |= kCmdFlagNoHole;
      break;
    case kCmdFlush:
      if ((request.flags & ~known_flags) != 0 || request.offset_bytes != 0 || request.length_bytes != 0) return kEinval;
      return kOk;
    default:
      return kEinval;
  }
  if ((request.flags & ~known_flags) != 0) return kEinval;
  if (writes && (export_.transmission_flags & kReadOnly) != 0) return kEperm;
  if (request.length_bytes == 0) return kEinval;
  if (moves_data(request.type) && request.length_bytes > kMaxPayloadBytes) {
    return agreed_.structured_replies ? kEoverflow : kEinval;
  }
  if (!is_aligned<std::uint64_t>(request.offset_bytes, export_.block_bytes) ||
      !is_aligned<std::uint32_t>(request.length_bytes, export_.block_bytes)) {
    return kEinval;
  }
  if (!range_fits(request.offset_bytes, request.length_bytes, device_->size_bytes())) {
    return writes && request.type != kCmdTrim ? kEnospc : kEinval;
  }
  return kOk;
}

Status Connection::take(const Request& request) {
  const std::uint32_t refusal = judge(request);
  const bool has_payload = request.type == kCmdWrite;
  if (has_payload && request.length_bytes > kMaxPayloadBytes) {
    return fail(ErrorCode::kInvalid, "a write of " + std::to_string(request.length_bytes) + " bytes");
  }
  Slot* slot = acquire(refusal == kOk ? request : Request{.cookie = request.cookie});
  slot->cookie = request.cookie;
  slot->type = request.type;
  slot->from_bytes = request.offset_bytes;
  slot->end_bytes = request.offset_bytes + request.length_bytes;
  if (refusal != kOk) {
    if (has_payload && !skip(socket_.get(), request.length_bytes)) {
      release(*slot);
      return {};
    }
    answer(*slot, refusal);
    return {};
  }
  if (moves_data(request.type) && !slot->reserve(request.length_bytes)) {
    release(*slot);
    return fail(ErrorCode::kNoSpace, "no memory for a request of " + std::to_string(request.length_bytes) + " bytes");
  }
  if (has_payload && !receive(socket_.get(), slot->buffer.get(), request.length_bytes)) {
    release(*slot);
    return {};
  }
  if (request.type == kCmdBlockStatus && !slot->reserve(kMaxExtents * kExtentBytes)) {
    release(*slot);
    return fail(ErrorCode::kNoSpace, "no memory for an answer about extents");
  }
  const bool fua = (request.flags & kCmdFlagFua) != 0;
  slot->bdev::IoRequest::flags = fua ? bdev::IoRequest::kFua : 0;
  slot->offset_bytes = request.offset_bytes;
  slot->length_bytes = request.length_bytes;
  slot->iov = nullptr;
  slot->iov_count = 0;
  slot->answer_bytes = 0;
  if (moves_data(request.type)) {
    slot->data = {slot->buffer.get(), request.length_bytes};
    slot->iov = &slot->data;
    slot->iov_count = 1;
  }
  switch (request.type) {
    case kCmdRead:
      slot->op = bdev::IoOp::kRead;
      slot->answer_bytes = request.length_bytes;
      break;
    case kCmdWrite:
      slot->op = bdev::IoOp::kWrite;
      break;
    case kCmdTrim:
      slot->op = bdev::IoOp::kUnmap;
      break;
    case kCmdWriteZeroes:
      slot->op = bdev::IoOp::kWriteZeroes;
      if ((request.flags & kCmdFlagNoHole) == 0) slot->bdev::IoRequest::flags |= bdev::IoRequest::kMayUnmap;
      break;
    case kCmdBlockStatus:
      slot->op = bdev::IoOp::kExtent;
      slot->extents_left = (request.flags & kCmdFlagReqOne) != 0 ? 1 : kMaxExtents;
      break;
    default:
      slot->op = bdev::IoOp::kFlush;
      slot->bdev::IoRequest::flags = export_.flush_flags;
      break;
  }
  submit(*slot);
  return {};
}

Connection::Slot* Connection::acquire(const Request& request) {
  const std::uint32_t bytes = moves_data(request.type) ? request.length_bytes : 0;
  std::unique_lock lock(free_mutex_);
  free_changed_.wait(lock, [&] { return !free_.empty() && bytes_in_use_ + bytes <= kBytesInFlight; });
  Slot* slot = free_.back();
  free_.pop_back();
  bytes_in_use_ += bytes;
  slot->counted_bytes = bytes;
  return slot;
}

void Connection::release(Slot& slot) {
  if (slot.buffer_bytes > kKeptBufferBytes) {
    slot.buffer.reset();
    slot.buffer_bytes = 0;
  }
  const std::lock_guard lock(free_mutex_);
  bytes_in_use_ -= slot.counted_bytes;
  slot.counted_bytes = 0;
  free_.push_back(&slot);
  free_changed_.notify_all();
}

void Connection::submit(Slot& slot) {
  slot.complete = [](bdev::IoRequest& request) {
    auto& done = static_cast<Slot&>(request);
    if (done.status == bdev::IoStatus::kPathLost) return done.connection->path_wait_->hold(done);
    if (done.status == bdev::IoStatus::kOk && done.op == bdev::IoOp::kExtent && done.add_extent()) {
      done.connection->channel_->submit(done);
      return;
    }
    done.connection->answer(done, to_nbd(done.status));
  };
  slot.run = [](reactor::Message& message) {
    auto& ready = static_cast<Slot&>(message);
    ready.connection->channel_->submit(ready);
  };
  reactor_.post(slot);
}

// On the reactor, or on the reading thread for what is refused.
void Connection::answer(Slot& slot, std::uint32_t error) {
  slot.error = error;
  if (error != kOk) slot.answer_bytes = 0;
  answers_.push(slot);
  const std::uint64_t one = 1;
  // An eventfd refuses a write only when its counter is full, and then the reader is woken anyway.
  [[maybe_unused]] const auto written = write(answers_event_.get(), &one, sizeof(one));
}

// "Structured replies": in one chunk, which is the last.
bool Connection::send_chunk(const Slot& slot) {
  // The longest that goes before data: an offset, or the number of a context, or an error and the length of its text.
  std::array<std::uint8_t, kChunkHeaderBytes + 8> header{};
  std::uint8_t* extra = header.data() + kChunkHeaderBytes;
  std::uint16_t type = kChunkError;
  std::uint32_t extra_bytes = 6;
  if (slot.error != kOk) {
    put(extra, slot.error);
  } else if (slot.type == kCmdRead) {
    type = kChunkOffsetData;
    extra_bytes = 8;
    put(extra, slot.from_bytes);
  } else {
    type = kChunkBlockStatus;
    extra_bytes = 4;
    put(extra, kAllocationContextId);
  }
  put(header.data(), kStructuredReplyMagic);
  put(header.data() + 4, kChunkDone);
  put(header.data() + 6, type);
  put(header.data() + 8, slot.cookie);
  put(header.data() + 16, extra_bytes + slot.answer_bytes);
  return send_all(socket_.get(), header.data(), kChunkHeaderBytes + extra_bytes) &&
         (slot.answer_bytes == 0 || send_all(socket_.get(), slot.buffer.get(), slot.answer_bytes));
}

bool Connection::send_answer(Slot& slot) {
  if (agreed_.structured_replies && (slot.type == kCmdRead || slot.type == kCmdBlockStatus)) return send_chunk(slot);
  std::array<std::uint8_t, kSimpleReplyBytes> header{};
  put(header.data(), kSimpleReplyMagic);
  put(header.data() + 4, slot.error);
  put(header.data() + 8, slot.cookie);
  return send_all(socket_.get(), header.data(), header.size()) &&
         (slot.answer_bytes == 0 || send_all(socket_.get(), slot.buffer.get(), slot.answer_bytes));
}

// Somebody waits for the end of what is in flight, or nobody for its answer: limits, which may keep a request for
// hours, hold back the client's next connection instead.
void Connection::hurry() {
  if (hurry_.under_way.exchange(true)) return;
  hurry_.connection = this;
  hurry_.run = [](reactor::Message& message) {
    auto& self = static_cast<Hurry&>(message);
    self.connection->path_wait_->give_up();
    self.connection->channel_->expedite();
    self.under_way.store(false);
  };
  reactor_.post(hurry_);
}

bool Connection::all_answered() {
  const std::lock_guard lock(free_mutex_);
  return free_.size() == slots_.size();
}

// Ends when the reading thread has, every slot is back and the reactor has no message of ours; after a failed send it
// goes on without sending. It is also what sees that the client is gone while the reading thread waits for a slot.
void Connection::send_answers() {
  bool connected = true;
  bool ending = false;
  while (true) {
    while (auto* message = answers_.pop()) {
      auto& slot = static_cast<Slot&>(*message);
      if (connected && !send_answer(slot)) {
        connected = false;
        interrupt();
      }
      release(slot);
    }
    if (reading_done_.load()) {
      ending = true;
      if (all_answered() && !hurry_.under_way.load()) return;
    }
    // Without events a descriptor reports that both directions are shut: by the client's end, or by interrupt().
    std::array<pollfd, 2> fds{{{answers_event_.get(), POLLIN, 0}, {ending ? -1 : socket_.get(), 0, 0}}};
    if (poll(fds.data(), fds.size(), ending ? kHurryEveryMs : -1) < 0) continue;
    if (fds[1].revents != 0) ending = true;
    if (ending && !all_answered()) hurry();
    std::uint64_t count = 0;
    if (fds[0].revents != 0 && read(answers_event_.get(), &count, sizeof(count)) < 0 && errno != EINTR) return;
  }
}

}  // namespace pollux::control::nbd
