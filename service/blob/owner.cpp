#include "blob/owner.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "blob/aligned_buffer.h"

namespace pollux::blob {

namespace {

// What a record may say of its interval; beyond that it is not believed.
constexpr std::uint32_t kMinBeatMs = 10;
constexpr std::uint32_t kMaxBeatMs = 60'000;
// How often a record that a living owner wrote over is put there again.
constexpr unsigned kForceAttempts = 3;

std::uint32_t crc_of(const OwnerRecord& record) {
  return crc32c(&record, offsetof(OwnerRecord, crc));
}

// No record: what lies there is none of this pool.
using Found = std::optional<OwnerRecord>;

reactor::Task<Result<Found>> read_record(bdev::Channel& channel, reactor::Reactor& home, const Uuid& pool_id) {
  // A read beside the owner's write may see some of both.
  constexpr unsigned kReads = 5;
  constexpr std::uint64_t kPauseUs = 20'000;
  AlignedBuffer bytes(kPageBytes);
  OwnerRecord record;
  for (unsigned reads = 0; reads < kReads; ++reads) {
    if (reads != 0) co_await home.sleep_us(kPauseUs);
    POLLUX_CO_TRY(bdev::to_status(co_await bdev::read(channel, kOwnerOffset, bytes.data(), kPageBytes),
                                  "read of the owner's record"));
    std::memcpy(&record, bytes.data(), sizeof(record));
    if (record.magic != kOwnerMagic || record.pool_id != pool_id) co_return Found();
    if (record.crc != crc_of(record)) continue;
    if (record.host_bytes > sizeof(record.host) || record.device_bytes > sizeof(record.device) ||
        record.beat_ms < kMinBeatMs || record.beat_ms > kMaxBeatMs) {
      co_return Found();
    }
    co_return Found(record);
  }
  co_return Found();
}

// Without FUA: it is for others to see while this service lives, and worth nothing after the device lost its power.
reactor::Task<Status> write_record(bdev::Channel& channel, OwnerRecord record) {
  record.crc = crc_of(record);
  AlignedBuffer bytes(kPageBytes);
  std::memcpy(bytes.data(), &record, sizeof(record));
  co_return bdev::to_status(co_await bdev::write(channel, kOwnerOffset, bytes.data(), kPageBytes),
                            "write of the owner's record");
}

std::string text(const char* from, std::uint16_t bytes) {
  std::string safe(from, bytes);
  std::replace_if(
      safe.begin(), safe.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return safe;
}

std::string describe(const OwnerRecord& record) {
  return "service " + record.service.to_string() + " on host " + text(record.host, record.host_bytes);
}

const Uuid& user_of(const OwnerRecord& record) {
  return record.user.is_nil() ? record.service : record.user;
}

bool known_dead(const OwnerRecord& record, const bdev::Bdev& device, const Owner::Identity& identity) {
  if (record.released != 0) return true;
  if (!identity.service.is_nil() && record.service == identity.service) return true;
  const std::string& name = device.exclusive_name();
  return !name.empty() && name == std::string(record.device, record.device_bytes);
}

// How it came to be nobody's.
enum class Vacant : std::uint8_t { kAtOnce, kAfterSilence };

reactor::Task<Result<Vacant>> wait_for_vacancy(bdev::Bdev& device, bdev::Channel& channel, reactor::Reactor& home,
                                               const Superblock& super, const Owner::Identity& identity) {
  auto first = co_await read_record(channel, home, super.pool_id);
  if (!first) co_return fail(std::move(first.error()));
  if (!*first || known_dead(**first, device, identity)) co_return Vacant::kAtOnce;
  const OwnerRecord before = **first;
  const std::string pool(super.name, super.name_bytes);
  log::info("pool {} on {} belongs to {}; watching whether that is alive", pool, device.name(), describe(before));
  const std::uint64_t patience_ns = std::uint64_t{before.beat_ms} * identity.silent_beats * 1'000'000;
  const std::uint64_t begin_ns = monotonic_ns();
  while (monotonic_ns() - begin_ns < patience_ns) {
    co_await home.sleep_us(std::uint64_t{before.beat_ms} * 250);
    auto now = co_await read_record(channel, home, super.pool_id);
    if (!now) co_return fail(std::move(now.error()));
    if (!*now || (*now)->released != 0) co_return Vacant::kAfterSilence;
    if ((*now)->session == before.session && (*now)->beat == before.beat) continue;
    co_return fail(ErrorCode::kBusy, "pool '" + pool + "' on " + device.name() + " is open elsewhere: " +
                                         describe(**now) + " serves it now, as " +
                                         text((*now)->device, (*now)->device_bytes) +
                                         ". Export it there, or stop that service");
  }
  log::warn("pool {} on {}: {} has been silent for {} ms and counts as dead", pool, device.name(), describe(before),
            patience_ns / 1'000'000);
  co_return Vacant::kAfterSilence;
}

}  // namespace

Owner::Owner(reactor::Reactor& home, OwnerRecord record)
    : home_(home), record_(record), next_([this] { reactor::spawn(beat()); }) {}

reactor::Task<Status> Owner::look(bdev::Bdev& device, bdev::Channel& channel, reactor::Reactor& home,
                                  const Superblock& super, const Identity& identity) {
  const auto vacant = co_await wait_for_vacancy(device, channel, home, super, identity);
  if (!vacant) co_return fail(vacant.error());
  co_return Status{};
}

reactor::Task<Result<std::unique_ptr<Owner>>> Owner::claim(bdev::Bdev& device, bdev::Channel& channel,
                                                           reactor::Reactor& home, const Superblock& super,
                                                           const Identity& identity, Force force,
                                                           Purpose purpose) {
  const auto before = co_await last_user(channel, home, super);
  if (!before) co_return fail(before.error());
  Vacant vacant = Vacant::kAfterSilence;
  std::uint32_t their_beat_ms = identity.beat_ms;
  if (force == Force::kYes) {
    auto there = co_await read_record(channel, home, super.pool_id);
    if (!there) co_return fail(std::move(there.error()));
    if (!*there || known_dead(**there, device, identity)) {
      vacant = Vacant::kAtOnce;
    } else {
      their_beat_ms = (*there)->beat_ms;
      log::warn("pool {} on {} is taken by force from {}", std::string(super.name, super.name_bytes), device.name(),
                describe(**there));
    }
  } else {
    const auto found = co_await wait_for_vacancy(device, channel, home, super, identity);
    if (!found) co_return fail(found.error());
    vacant = *found;
  }

  OwnerRecord record{};
  record.magic = kOwnerMagic;
  record.pool_id = super.pool_id;
  record.service = identity.service.is_nil() ? Uuid::random() : identity.service;
  record.session = Uuid::random();
  record.user = purpose == Purpose::kUse ? record.service : *before;
  record.beat = 1;
  record.beat_ms = std::clamp(identity.beat_ms, kMinBeatMs, kMaxBeatMs);
  record.host_bytes = static_cast<std::uint16_t>(std::min(identity.host.size(), sizeof(record.host)));
  std::memcpy(record.host, identity.host.data(), record.host_bytes);
  const std::string& name = device.exclusive_name();
  record.device_bytes = static_cast<std::uint16_t>(std::min(name.size(), sizeof(record.device)));
  std::memcpy(record.device, name.data(), record.device_bytes);
  for (unsigned attempt = 1;; ++attempt) {
    POLLUX_CO_TRY(co_await write_record(channel, record));
    if (vacant == Vacant::kAtOnce) break;
    // Another may have taken it at the same moment, and an owner that was not dead finds out at its next beat: both show
    // before anything else of the pool is written.
    co_await home.sleep_us(std::uint64_t{their_beat_ms} * 1500);
    const auto now = co_await read_record(channel, home, super.pool_id);
    if (!now) co_return fail(now.error());
    if (*now && (*now)->session == record.session) break;
    if (force == Force::kNo || attempt == kForceAttempts) {
      co_return fail(ErrorCode::kBusy, "pool '" + std::string(super.name, super.name_bytes) + "' on " + device.name() +
                                           " was taken by another service at the same moment" +
                                           (*now ? ": " + describe(**now) : ""));
    }
  }
  co_return std::unique_ptr<Owner>(new Owner(home, record));
}

reactor::Task<Result<Uuid>> Owner::last_user(bdev::Channel& channel, reactor::Reactor& home, const Superblock& super) {
  const auto there = co_await read_record(channel, home, super.pool_id);
  if (!there) co_return fail(there.error());
  co_return *there ? user_of(**there) : Uuid{};
}

void Owner::start(bdev::Channel& channel, std::function<void(const std::string& who)> on_lost) {
  channel_ = &channel;
  on_lost_ = std::move(on_lost);
  next_.start(home_, std::uint64_t{record_.beat_ms} * 1000);
}

reactor::Task<void> Owner::beat() {
  beating_ = true;
  const auto there = co_await read_record(*channel_, home_, record_.pool_id);
  // A device that fails says so elsewhere; here it only means that nobody can see us.
  if (there && (!*there || (*there)->session != record_.session)) {
    lost_ = true;
    beating_ = false;
    on_lost_(*there ? describe(**there) : "nobody: the record was cleared");
    co_return;
  }
  if (there && !stopped_) {
    ++record_.beat;
    // Nobody waits for the answer: what went wrong shows at the next beat, and to everybody else's writes.
    if (const auto written = co_await write_record(*channel_, record_); !written) {
      log::debug("{}", written.error().message);
    }
  }
  beating_ = false;
  if (!stopped_) next_.start(home_, std::uint64_t{record_.beat_ms} * 1000);
}

reactor::Task<void> Owner::stop() {
  stopped_ = true;
  next_.cancel();
  while (beating_) co_await home_.sleep_us(200);
}

reactor::Task<Status> Owner::release(bdev::Channel& channel) {
  if (lost_) co_return Status{};
  const auto there = co_await read_record(channel, home_, record_.pool_id);
  if (!there) co_return fail(there.error());
  if (!*there || (*there)->session != record_.session) co_return Status{};
  record_.released = 1;
  co_return co_await write_record(channel, record_);
}

}  // namespace pollux::blob
