#include "blob/sim_bdev.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstring>
#include <random>

#include "base/clock.h"
#include "base/units.h"
#include "reactor/reactor.h"

namespace pollux::blob {

using bdev::IoOp;
using bdev::IoRequest;
using bdev::IoStatus;

SimDisk::SimDisk(std::uint64_t size_bytes, std::uint32_t block_bytes)
    : block_bytes_(block_bytes), durable_(size_bytes) {}
SimDisk::SimDisk(std::vector<std::byte> image, std::uint32_t block_bytes)
    : block_bytes_(block_bytes), durable_(std::move(image)) {}

void SimDisk::cut_power_at_write(std::uint64_t nth) {
  std::lock_guard lock(mutex_);
  cut_at_ = writes_ + nth;
}

void SimDisk::fail_operations(std::uint64_t nth, std::uint64_t count) {
  std::lock_guard lock(mutex_);
  fail_at_ = operations_ + nth;
  fail_end_ = fail_at_ + count;
}

void SimDisk::set_fault(std::function<IoStatus(const IoRequest&)> fault) {
  std::lock_guard lock(mutex_);
  fault_ = std::move(fault);
}

IoStatus SimDisk::ordered_failure(const IoRequest& request) {
  const std::uint64_t number = operations_++;
  IoStatus status = fault_ ? fault_(request) : IoStatus::kOk;
  if (number >= fail_at_ && number < fail_end_) status = IoStatus::kIoError;
  if (status != IoStatus::kOk && request.op == IoOp::kFlush) cached_.clear();
  return status;
}

bool SimDisk::power_is_off() const {
  std::lock_guard lock(mutex_);
  return off_;
}

bool SimDisk::has_failed() const {
  std::lock_guard lock(mutex_);
  return operations_ > fail_at_;
}

bool SimDisk::is_failing() const {
  std::lock_guard lock(mutex_);
  return fail_end_ != UINT64_MAX && operations_ < fail_end_;
}

std::uint64_t SimDisk::writes() const {
  std::lock_guard lock(mutex_);
  return writes_;
}

std::uint64_t SimDisk::operations() const {
  std::lock_guard lock(mutex_);
  return operations_;
}

std::uint64_t SimDisk::discards() const {
  std::lock_guard lock(mutex_);
  return discards_;
}

std::uint64_t SimDisk::flushes() const {
  std::lock_guard lock(mutex_);
  return flushes_;
}

std::vector<std::byte> SimDisk::image_after_power_cut(std::uint64_t seed) const {
  std::lock_guard lock(mutex_);
  std::vector<std::byte> image = durable_;
  std::mt19937_64 random(seed);
  // In order of the sectors, so that the seed alone decides.
  std::vector<std::uint64_t> sectors;
  for (const auto& [sector, versions] : cached_) sectors.push_back(sector);
  std::sort(sectors.begin(), sectors.end());
  // Some cuts lose almost everything, some almost nothing: both are good at finding faults.
  const std::uint64_t mood = random() % 4;
  for (std::uint64_t sector : sectors) {
    const auto& versions = cached_.at(sector);
    std::uint64_t pick = random() % (versions.size() + 1);
    if (mood == 0 && random() % 16 != 0) pick = 0;
    if (mood == 1 && random() % 16 != 0) pick = versions.size();
    if (pick != 0) std::memcpy(image.data() + sector * block_bytes_, versions[pick - 1].bytes.data(), block_bytes_);
  }
  return image;
}

std::vector<std::byte> SimDisk::image_after_kill(std::uint64_t seed) const {
  std::lock_guard lock(mutex_);
  std::vector<std::byte> image = durable_;
  std::mt19937_64 random(seed);
  std::vector<std::uint64_t> sectors;
  for (const auto& [sector, versions] : cached_) sectors.push_back(sector);
  std::sort(sectors.begin(), sectors.end());
  for (std::uint64_t sector : sectors) {
    const auto& versions = cached_.at(sector);
    std::size_t kept = versions.size();
    // The write that the cut came with is the last one.
    if (off_ && versions.back().write == writes_ && random() % 2 == 0) --kept;
    if (kept != 0) std::memcpy(image.data() + sector * block_bytes_, versions[kept - 1].bytes.data(), block_bytes_);
  }
  return image;
}

std::vector<std::byte> SimDisk::image() const {
  std::lock_guard lock(mutex_);
  std::vector<std::byte> image = durable_;
  for (const auto& [sector, versions] : cached_) {
    std::memcpy(image.data() + sector * block_bytes_, versions.back().bytes.data(), block_bytes_);
  }
  return image;
}

void SimDisk::rot(std::uint64_t byte, unsigned bit) {
  std::lock_guard lock(mutex_);
  durable_.at(byte) ^= static_cast<std::byte>(1U << bit);
}

void SimDisk::keep(std::uint64_t sector, const std::byte* bytes, bool durable) {
  if (durable) {
    std::memcpy(durable_.data() + sector * block_bytes_, bytes, block_bytes_);
    cached_.erase(sector);
  } else {
    cached_[sector].push_back({writes_, std::vector<std::byte>(bytes, bytes + block_bytes_)});
  }
}

void SimDisk::write_sectors(const IoRequest& request) {
  const bool durable = (request.flags & IoRequest::kFua) != 0 && !off_;
  std::vector<std::byte> bytes(request.length_bytes);
  if (request.op == IoOp::kWrite) {
    std::size_t at = 0;
    for (std::uint16_t i = 0; i < request.iov_count; ++i) {
      std::memcpy(bytes.data() + at, request.iov[i].iov_base, request.iov[i].iov_len);
      at += request.iov[i].iov_len;
    }
    assert(at == request.length_bytes);
  }
  if (request.op == IoOp::kUnmap) {
    ++discards_;
    // Block by block alike: one draw for each byte would take longer than a turn of a reactor may.
    std::generate_n(bytes.begin(), block_bytes_, [this] { return static_cast<std::byte>(garbage_()); });
    for (std::size_t at = block_bytes_; at < bytes.size(); ++at) bytes[at] = bytes[at - block_bytes_];
  }
  for (std::uint64_t done = 0; done < request.length_bytes; done += block_bytes_) {
    keep((request.offset_bytes + done) / block_bytes_, bytes.data() + done, durable);
  }
}

void SimDisk::flush(std::uint64_t writes_before) {
  for (auto at = cached_.begin(); at != cached_.end();) {
    auto& versions = at->second;
    std::size_t covered = 0;
    while (covered < versions.size() && versions[covered].write <= writes_before) ++covered;
    if (covered != 0) {
      std::memcpy(durable_.data() + at->first * block_bytes_, versions[covered - 1].bytes.data(), block_bytes_);
      versions.erase(versions.begin(), versions.begin() + static_cast<std::ptrdiff_t>(covered));
    }
    at = versions.empty() ? cached_.erase(at) : std::next(at);
  }
}

IoStatus SimDisk::perform(IoRequest& request, std::uint64_t writes_before) {
  std::lock_guard lock(mutex_);
  if (off_) return IoStatus::kIoError;
  if (const IoStatus failed = ordered_failure(request); failed != IoStatus::kOk) return failed;
  if (request.op == IoOp::kFlush) {
    ++flushes_;
    flush(writes_before);
    return IoStatus::kOk;
  }
  if (!is_aligned<std::uint64_t>(request.offset_bytes, block_bytes_) ||
      !is_aligned<std::uint64_t>(request.length_bytes, block_bytes_) ||
      !range_fits(request.offset_bytes, request.length_bytes, durable_.size())) {
    return IoStatus::kInvalid;
  }
  if (request.op == IoOp::kExtent) return IoStatus::kInvalid;
  if (request.op == IoOp::kRead) {
    std::uint64_t at = request.offset_bytes;
    std::vector<std::byte> bytes(request.length_bytes);
    std::memcpy(bytes.data(), durable_.data() + at, bytes.size());
    for (std::uint64_t done = 0; done < bytes.size(); done += block_bytes_) {
      if (auto found = cached_.find((at + done) / block_bytes_); found != cached_.end()) {
        std::memcpy(bytes.data() + done, found->second.back().bytes.data(), block_bytes_);
      }
    }
    std::size_t from = 0;
    for (std::uint16_t i = 0; i < request.iov_count; ++i) {
      std::memcpy(request.iov[i].iov_base, bytes.data() + from, request.iov[i].iov_len);
      from += request.iov[i].iov_len;
    }
    return IoStatus::kOk;
  }
  if (writes_++ == cut_at_) {
    off_ = true;
    if (on_cut_) on_cut_();
  }
  write_sectors(request);
  return off_ ? IoStatus::kIoError : IoStatus::kOk;
}

class SimChannel : public bdev::Channel, public reactor::Poller {
 public:
  SimChannel(std::shared_ptr<SimDisk> disk, reactor::Reactor& reactor, std::uint64_t seed)
      : disk_(std::move(disk)), reactor_(reactor), random_(seed) {
    reactor_.add_poller(*this);
  }
  ~SimChannel() override { reactor_.remove_poller(*this); }

  void submit(IoRequest& request) override {
    const std::uint64_t due_ns = disk_->delay_us_ ? monotonic_ns() + disk_->delay_us_(request) * 1000 : 0;
    waiting_.push_back({&request, disk_->writes(), due_ns});
  }

  unsigned poll() override {
    unsigned done = 0;
    // Some of them, in any order; what completions submit waits for the next turn.
    for (std::size_t left = waiting_.size(); left > 0 && !waiting_.empty(); --left) {
      const std::size_t at = random_() % waiting_.size();
      const Waiting next = waiting_[at];
      if (next.due_ns != 0 && next.due_ns > monotonic_ns()) continue;
      waiting_[at] = waiting_.back();
      waiting_.pop_back();
      next.request->status = disk_->perform(*next.request, next.writes_before);
      next.request->complete(*next.request);
      ++done;
      if (random_() % 4 == 0) break;
    }
    return done;
  }
  bool arm() override { return waiting_.empty(); }

 private:
  struct Waiting {
    IoRequest* request;
    std::uint64_t writes_before;
    std::uint64_t due_ns;
  };
  std::shared_ptr<SimDisk> disk_;
  reactor::Reactor& reactor_;
  std::mt19937_64 random_;
  std::vector<Waiting> waiting_;
};

namespace {

class SimBdev : public bdev::Bdev {
 public:
  SimBdev(std::shared_ptr<SimDisk> disk, std::uint64_t seed) : disk_(std::move(disk)), seed_(seed) {}
  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return disk_->size_bytes(); }
  std::uint32_t block_bytes() const override { return disk_->block_bytes(); }
  bool supports_unmap() const override { return true; }
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    co_return std::make_unique<SimChannel>(disk_, reactor, seed_ + channels_++);
  }

 private:
  std::shared_ptr<SimDisk> disk_;
  const std::string name_ = "simulated disk";
  const std::uint64_t seed_;
  std::atomic<std::uint64_t> channels_{0};
};

}  // namespace

std::shared_ptr<bdev::Bdev> make_sim_bdev(std::shared_ptr<SimDisk> disk, std::uint64_t seed) {
  return std::make_shared<SimBdev>(std::move(disk), seed);
}

}  // namespace pollux::blob
