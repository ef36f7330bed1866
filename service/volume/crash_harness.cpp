#include "volume/crash_harness.h"

#include <cstring>

#include "blob/parallel.h"
#include "blob/volume.h"

namespace pollux::volume::test {

namespace {

constexpr std::uint64_t kBlock = 512;
// So often the reactor may turn without an operation of the disk before that counts as rest.
constexpr unsigned kTurnsOfRest = 200;
constexpr std::uint64_t kNever = 3'600'000'000;

std::vector<std::byte> stamped(std::uint64_t blocks, std::uint64_t stamp) {
  std::vector<std::byte> bytes(blocks * kBlock);
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(stamp))
    std::memcpy(bytes.data() + at, &stamp, sizeof(stamp));
  return bytes;
}

}  // namespace

std::vector<std::byte> CrashHarness::formatted(const Reactors& reactors, std::uint64_t bytes,
                                               std::uint32_t cluster_bytes) {
  auto disk = std::make_shared<blob::SimDisk>(bytes);
  Uuid id;
  id.bytes.fill(0x50);
  blob::FormatOptions options{.id = id, .name = "sim", .cluster_bytes = cluster_bytes, .created_ms = 1};
  must(reactors.call(blob::Store::format(make_sim_bdev(disk, 1), reactors.home(), std::move(options))));
  return disk->image();
}

void CrashHarness::open(std::vector<std::byte> image, std::uint64_t seed) {
  drop();
  const auto kept = process_dies_ ? std::exchange(kept_, {}) : std::vector<std::byte>();
  after_kill_ = std::exchange(process_dies_, false);
  random_.seed(seed);
  disk_ = std::make_shared<blob::SimDisk>(std::move(image), device_block_bytes_);
  // Freed space is discarded at once, and nothing is written because time passed: the seed alone decides what happens
  // when.
  blob::OpenOptions options{
      .discard_pace = {.delay_us = 0, .rest = 0}, .loads_on = &any_reactor(), .losses = losses_,
      .longest_queued_us = kNever};
  if (has_queue_) options.queue = [&](const Uuid&, std::size_t bytes) -> Result<blob::JournalQueue::Memory> {
    memory_ = std::make_shared<blob::AlignedBuffer>(bytes);
    if (!kept.empty()) std::memcpy(memory_->data(), kept.data(), bytes);
    return blob::JournalQueue::Memory{
        .bytes = std::shared_ptr<std::byte>(memory_, memory_->data()), .name = "memory", .discard = nullptr};
  };
  store_ = must(call(blob::Store::open(make_sim_bdev(disk_, seed), home_, options)));
}

void CrashHarness::keep_memory() {
  if (memory_) kept_.assign(memory_->data(), memory_->data() + memory_->size());
}

void CrashHarness::process_dies() {
  process_dies_ = true;
  disk_->set_on_cut([this] { keep_memory(); });
}

reactor::Task<Result<std::vector<std::byte>>> CrashHarness::kill_task(std::uint64_t seed) {
  co_await home_.enter();
  if (!disk_->power_is_off()) keep_memory();
  // What the store does from here on did not happen.
  disk_->set_on_cut(nullptr);
  co_return disk_->image_after_kill(seed);
}

std::vector<std::byte> CrashHarness::image_after_kill(std::uint64_t seed) {
  return must(call(kill_task(seed)));
}

reactor::Task<Status> CrashHarness::drop_task() {
  for (auto& [id, volume] : opened_) co_await close_channel(volume);
  co_await home_.enter();
  opened_.clear();
  // The devices gave their volumes back by messages.
  co_await home_.yield();
  co_return co_await store_->close();
}

void CrashHarness::drop() {
  if (!store_) return;
  // With the power off this cannot write; with the power on it is a clean stop.
  const auto closed = call(drop_task());
  if (!closed && !disk_failed()) must(closed);
  store_.reset();
}

template <typename T>
std::optional<T> CrashHarness::run(reactor::Task<Result<T>> task, const char* what) {
  auto result = call(std::move(task));
  if (result && dead()) return std::nullopt;
  if (result) return std::move(*result);
  if (disk_failed()) return std::nullopt;
  throw std::runtime_error(std::string(what) + ": " + result.error().message);
}

bool CrashHarness::run(reactor::Task<Status> task, const char* what) {
  const auto result = call(std::move(task));
  if (result && dead()) return false;
  if (result) return true;
  if (disk_failed()) return false;
  throw std::runtime_error(std::string(what) + ": " + result.error().message);
}

// ---- What a completed operation makes durable

// A snapshot, a clone and a checkpoint are flushes of everything before them.
void CrashHarness::flush_model() {
  for (auto& [id, volume] : model_) volume.flush_all();
}

bool CrashHarness::create(const Uuid& id, std::uint64_t bytes) {
  ModelVolume& volume = model_[id];
  volume.name = id.to_string();
  volume.size_bytes = bytes;
  volume.latest.assign(bytes / kBlock, 0);
  volume.flush_all();
  volume.may_be_missing = true;
  blob::CreateOptions options{
      .id = id, .name = volume.name, .size_bytes = bytes, .created_ms = 1, .block_bytes = kSectorBytes};
  if (!run(store_->create(std::move(options)), "create")) return false;
  volume.may_be_missing = false;
  return true;
}

bool CrashHarness::fork(const Uuid& source, const Uuid& id, bool snapshot) {
  ModelVolume& volume = model_[id];
  const ModelVolume& from = model_.at(source);
  volume = from;
  volume.name = id.to_string();
  volume.snapshot = snapshot;
  volume.parent = source;
  volume.may_be_missing = true;
  // Until it is durable it may hold whatever of the source the cut leaves.
  blob::CreateOptions options{.id = id, .name = volume.name, .snapshot = snapshot, .created_ms = 1};
  if (!run(store_->fork(source, std::move(options)), "fork")) return false;
  volume.may_be_missing = false;
  flush_model();
  return true;
}

bool CrashHarness::remove(const Uuid& id) {
  close_volume(id);
  model_.at(id).may_be_missing = true;
  if (!run(store_->remove(id), "remove")) return false;
  model_.erase(id);
  return true;
}

bool CrashHarness::resize(const Uuid& id, std::uint64_t bytes) {
  ModelVolume& volume = model_.at(id);
  volume.other_size = bytes;
  if (!run(store_->resize(id, bytes), "resize")) return false;
  volume.other_size.reset();
  volume.size_bytes = bytes;
  for (auto* stamps : {&volume.latest, &volume.answered, &volume.durable}) stamps->resize(bytes / kBlock, 0);
  return true;
}

bool CrashHarness::revert(const Uuid& id, const Uuid& snapshot) {
  close_volume(id);
  ModelVolume& volume = model_.at(id);
  const ModelVolume& from = model_.at(snapshot);
  std::vector<std::uint64_t> contents = from.latest;
  contents.resize(volume.latest.size(), 0);
  for (std::uint32_t block = 0; block < contents.size(); ++block) {
    volume.since[block].insert(contents[block]);
    volume.under_way[block].insert(contents[block]);
  }
  if (!run(store_->revert(id, snapshot), "revert")) return false;
  volume.latest = std::move(contents);
  volume.flush_all();
  return true;
}

reactor::Task<Status> CrashHarness::flatten_task(Uuid id) {
  co_await home_.enter();
  const Uuid job = Uuid::random();
  POLLUX_CO_TRY(co_await store_->flatten(id, job));
  while (true) {
    for (const blob::Job& each : store_->jobs()) {
      if (each.id != job || each.state == blob::JobState::kRunning) continue;
      if (each.state == blob::JobState::kDone) co_return Status{};
      co_return fail(ErrorCode::kIoError, each.error);
    }
    co_await home_.yield();
  }
}

bool CrashHarness::flatten(const Uuid& id) {
  // Nothing that can be read changes.
  return run(flatten_task(id), "flatten");
}

// ---- I/O

reactor::Task<Result<bool>> CrashHarness::open_task(Uuid id) {
  co_await home_.enter();
  auto volume = co_await store_->view(id);
  if (!volume) co_return fail(std::move(volume.error()));
  if (losses_ && losses_->owed(id)) store_->owe(**volume);
  Opened opened{.lane = &any_reactor(), .device = std::make_shared<VolumeBdev>(*store_, **volume), .channel = nullptr};
  co_await opened.lane->enter();
  auto channel = co_await opened.device->open_channel(*opened.lane);
  co_await home_.enter();
  if (!channel) co_return fail(std::move(channel.error()));
  opened.channel = std::move(*channel);
  opened_[id] = std::move(opened);
  co_return true;
}

reactor::Task<void> CrashHarness::close_channel(Opened& opened) {
  co_await opened.lane->enter();
  opened.channel.reset();
}

template <typename Operation>
reactor::Task<bdev::IoStatus> CrashHarness::on_lane(Uuid id, Operation operation) {
  const Opened& opened = opened_.at(id);
  co_await opened.lane->enter();
  const bdev::IoStatus status = co_await operation(*opened.channel);
  co_await home_.enter();
  co_return status;
}

bool CrashHarness::opened(const Uuid& id) {
  return opened_.contains(id) || run(open_task(id), "open").has_value();
}

reactor::Task<Status> CrashHarness::close_task(Uuid id) {
  co_await close_channel(opened_.at(id));
  co_await home_.enter();
  opened_.erase(id);
  co_await home_.yield();
  co_return Status{};
}

void CrashHarness::close_volume(const Uuid& id) {
  if (opened_.contains(id)) must(call(close_task(id)));
}

std::vector<CrashHarness::Stamped> CrashHarness::stamp(const std::vector<Write>& writes) {
  std::vector<Stamped> all;
  for (const Write& write : writes) {
    const std::uint64_t stamp = next_stamp_++;
    all.push_back({.write = &write, .bytes = stamped(write.extent.length / kBlock, stamp)});
    ModelVolume& volume = model_.at(write.id);
    for (std::uint64_t at = write.extent.offset; at < write.extent.offset + write.extent.length; at += kBlock) {
      volume.begin(static_cast<std::uint32_t>(at / kBlock), stamp);
    }
  }
  return all;
}

// What was answered of these must be there.
void CrashHarness::settle(const std::vector<Stamped>& writes, bool fua) {
  for (const Stamped& each : writes) {
    if (each.answered) settle(each.write->id, each.write->extent, fua);
  }
}

void CrashHarness::settle(const Uuid& id, Extent extent, bool fua) {
  ModelVolume& volume = model_.at(id);
  for (std::uint64_t at = extent.offset; at < extent.offset + extent.length; at += kBlock) {
    const auto block = static_cast<std::uint32_t>(at / kBlock);
    fua ? volume.flush(block) : volume.answer(block);
  }
}

reactor::Task<Status> CrashHarness::write_one(Stamped* write, std::uint8_t flags) {
  co_await home_.enter();
  const std::uint64_t begin_at = disk_->operations() + write->write->after_operations;
  std::uint64_t before = 0;
  for (unsigned turns = 0; disk_->operations() < begin_at && turns < kTurnsOfRest; ++turns) {
    if (before != disk_->operations()) turns = 0;
    before = disk_->operations();
    co_await home_.yield();
  }
  for (unsigned turn = 0; turn < write->write->after_turns; ++turn) co_await home_.yield();
  const auto status = co_await on_lane(write->write->id, [&](bdev::Channel& channel) {
    return bdev::write(channel, write->write->extent.offset, write->bytes.data(), write->bytes.size(), flags);
  });
  write->answered = status == bdev::IoStatus::kOk && !dead();
  co_return bdev::to_status(status, "write");
}

reactor::Task<Status> CrashHarness::write_task(std::vector<Stamped>* writes, std::uint8_t flags) {
  const auto one = [&](std::size_t i) { return write_one(&(*writes)[i], flags); };
  co_return co_await blob::parallel(home_, writes->size(), writes->size(), one);
}

bool CrashHarness::write(const std::vector<Write>& writes, bool fua) {
  for (const Write& write : writes) {
    if (!opened(write.id)) return false;
  }
  auto all = stamp(writes);
  const bool done = run(write_task(&all, fua ? bdev::IoRequest::kFua : 0), "write");
  // Our FUA is a flush of everything, which is more than is promised: only what was written with it counts here.
  settle(all, fua);
  return done;
}

bool CrashHarness::write(const Uuid& id, const std::vector<Extent>& extents, bool fua) {
  std::vector<Write> writes;
  for (const Extent& extent : extents) writes.push_back({.id = id, .extent = extent});
  return write(writes, fua);
}

reactor::Task<Status> CrashHarness::remove_beside_task(Uuid id, bool* removed, Stamped* write) {
  const auto one = [&](std::size_t i) -> reactor::Task<Status> {
    if (i == 1) co_return co_await write_one(write, 0);
    Status done = co_await store_->remove(id);
    *removed = done.has_value();
    co_return done;
  };
  co_return co_await blob::parallel(home_, 2, 2, one);
}

bool CrashHarness::remove_beside(const Uuid& id, const Write& write) {
  close_volume(id);
  if (!opened(write.id)) return false;
  model_.at(id).may_be_missing = true;
  const std::vector<Write> writes{write};
  auto all = stamp(writes);
  bool removed = false;
  const bool done = run(remove_beside_task(id, &removed, &all[0]), "remove beside a write");
  settle(all, false);
  if (removed) model_.erase(id);
  return done;
}

reactor::Task<Status> CrashHarness::clear_task(Uuid id, Extent extent, bdev::IoOp op, std::uint8_t flags) {
  const auto status = co_await on_lane(id, [&](bdev::Channel& channel) {
    return op == bdev::IoOp::kUnmap ? bdev::unmap(channel, extent.offset, extent.length, flags)
                                    : bdev::write_zeroes(channel, extent.offset, extent.length, flags);
  });
  co_return bdev::to_status(status, "clear");
}

bool CrashHarness::clear(const Uuid& id, Extent extent, bdev::IoOp op, std::uint8_t flags) {
  if (!opened(id)) return false;
  ModelVolume& volume = model_.at(id);
  for (std::uint64_t at = extent.offset; at < extent.offset + extent.length; at += kBlock) {
    volume.begin(static_cast<std::uint32_t>(at / kBlock), 0);
  }
  const bool done = run(clear_task(id, extent, op, flags), "clear");
  if (done) settle(id, extent, (flags & bdev::IoRequest::kFua) != 0);
  return done;
}

reactor::Task<Status> CrashHarness::flush_task(Uuid id, std::uint8_t flags) {
  const auto status = co_await on_lane(id, [&](bdev::Channel& channel) { return bdev::flush(channel, flags); });
  co_return bdev::to_status(status, "flush");
}

bool CrashHarness::flush(const Uuid& id, std::uint8_t flags) {
  if (!opened(id)) return false;
  if (!run(flush_task(id, flags), "flush")) return false;
  model_.at(id).flush_all();
  return true;
}

bool CrashHarness::grow() {
  return run(store_->grow(), "grow");
}

bool CrashHarness::checkpoint() {
  if (!run(store_->checkpoint(), "checkpoint")) return false;
  flush_model();
  return true;
}

reactor::Task<Status> CrashHarness::idle_task() {
  co_await home_.enter();
  while (!store_->idle() && !disk_failed()) co_await home_.yield();
  if (disk_failed()) co_return fail(ErrorCode::kIoError, "the disk failed");
  co_return Status{};
}

bool CrashHarness::wait_until_idle() {
  return run(idle_task(), "background work");
}

// ---- Verification

reactor::Task<Status> CrashHarness::read_task(Uuid id, std::vector<std::byte>* bytes) {
  const auto status =
      co_await on_lane(id, [&](bdev::Channel& channel) { return bdev::read(channel, 0, bytes->data(), bytes->size()); });
  co_return bdev::to_status(status, "read");
}

std::vector<std::uint64_t> CrashHarness::read_stamps(const Uuid& id, std::uint64_t bytes) {
  std::vector<std::byte> data(bytes);
  if (!opened(id) || !run(read_task(id, &data), "read"))
    throw std::runtime_error("the disk failed during the verification");
  std::vector<std::uint64_t> stamps(bytes / kBlock);
  for (std::size_t block = 0; block < stamps.size(); ++block) {
    std::memcpy(&stamps[block], data.data() + block * kBlock, sizeof(stamps[block]));
    if (std::memcmp(data.data() + block * kBlock, stamped(1, stamps[block]).data(), kBlock) != 0) {
      throw std::runtime_error("block " + std::to_string(block) + " of volume " + id.to_string() + " is a mixture");
    }
  }
  return stamps;
}

void CrashHarness::verify_contents(const std::string& name, ModelVolume& volume,
                                   const std::vector<std::uint64_t>& stamps) const {
  const auto& sure = after_kill_ ? volume.answered : volume.durable;
  const auto& possible = after_kill_ ? volume.under_way : volume.since;
  for (std::uint32_t block = 0; block < stamps.size(); ++block) {
    if (!ModelVolume::allows(sure, possible, block, stamps[block])) {
      throw std::runtime_error(name + ", block " + std::to_string(block) + ": stamp " + std::to_string(stamps[block]) +
                               " instead of " + std::to_string(block < sure.size() ? sure[block] : 0));
    }
  }
}

void CrashHarness::verify() {
  for (auto at = model_.begin(); at != model_.end();) {
    auto& [id, volume] = *at;
    const blob::Volume* there = store_->state().find(id);
    const std::string name = (volume.snapshot ? "snapshot " : "volume ") + id.to_string();
    if (there == nullptr) {
      if (!volume.may_be_missing) throw std::runtime_error(name + " is gone");
      at = model_.erase(at);
      continue;
    }
    volume.may_be_missing = false;
    if (there->size_bytes != volume.size_bytes && there->size_bytes != volume.other_size) {
      throw std::runtime_error(name + " has the wrong size");
    }
    volume.size_bytes = there->size_bytes;
    volume.other_size.reset();
    const auto stamps = read_stamps(id, there->size_bytes);
    verify_contents(name, volume, stamps);
    volume.latest = stamps;
    if (after_kill_) {
      // What was not flushed before the kill is not flushed now, and what did not arrive never will.
      volume.durable.resize(stamps.size(), 0);
      for (const auto& [block, lost] : volume.under_way) {
        for (std::uint64_t stamp : lost) volume.since[block].erase(stamp);
      }
      for (std::uint32_t block = 0; block < stamps.size(); ++block) volume.since[block].insert(stamps[block]);
      volume.answer_all();
    } else {
      volume.flush_all();
    }
    ++at;
  }
  for (const auto& [number, volume] : store_->state().volumes()) {
    if (!volume->deleting() && !model_.contains(volume->id)) {
      throw std::runtime_error("volume " + volume->id.to_string() + " should not be there");
    }
  }
}

void CrashHarness::check(const Reactors& reactors, std::vector<std::byte> image, const std::string& when) {
  auto disk = std::make_shared<blob::SimDisk>(std::move(image));
  const auto report = must(reactors.call(blob::check_pool(make_sim_bdev(disk, 1), reactors.home())));
  if (report.clean()) return;
  std::string all = "the checker, " + when + ":";
  for (const auto& finding : report.findings) all += "\n  " + finding;
  throw std::runtime_error(all);
}

}  // namespace pollux::volume::test
