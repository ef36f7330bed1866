#include "volume/rot_harness.h"

#include <algorithm>
#include <cstring>

#include "blob/page_codec.h"
#include "blob/volume.h"

namespace pollux::volume::test {

namespace {

constexpr std::uint64_t kPoolBytes = 16 * kMiB;

Uuid id_of(std::uint8_t number) {
  Uuid id;
  id.bytes[0] = 0x42;
  id.bytes[15] = number;
  return id;
}

bool running(const blob::Store& store) {
  const auto jobs = store.jobs();
  return std::any_of(jobs.begin(), jobs.end(), [](const auto& job) { return job.state == blob::JobState::kRunning; });
}

// With the guests' I/O on `lane`.
reactor::Task<Status> use(reactor::Reactor& home, reactor::Reactor& lane, blob::Store& store) {
  std::vector<Uuid> ids;
  for (const auto& [number, volume] : store.state().volumes()) {
    if (!volume->deleting()) ids.push_back(volume->id);
  }
  for (const Uuid& id : ids) {
    auto volume = co_await store.view(id);
    if (!volume) continue;
    {
      auto device = std::make_shared<volume::VolumeBdev>(store, **volume);
      co_await lane.enter();
      auto channel = co_await device->open_channel(lane);
      std::vector<std::byte> bytes(256 * kKiB);
      const std::uint64_t length = std::min<std::uint64_t>(bytes.size(), device->size_bytes() / 4096 * 4096);
      // Any status will do; what counts is that there is one.
      (void)co_await bdev::read(**channel, 0, bytes.data(), length);
      (void)co_await bdev::write(**channel, 0, bytes.data(), std::min<std::uint64_t>(length, 8192));
      (void)co_await bdev::write(**channel, 0, bytes.data(), length >= 512 ? 512 : 0);
      (void)co_await bdev::unmap(**channel, 0, length);
      (void)co_await bdev::flush(**channel);
      // This may run in a completion of the channel.
      co_await lane.yield();
      channel->reset();
      co_await home.enter();
    }
    co_await home.yield();
    blob::CreateOptions options{.id = Uuid::random(), .name = id.to_string() + "-fork", .snapshot = true};
    (void)co_await store.fork(id, options);
    (void)co_await store.revert(id, options.id);
    (void)co_await store.resize(id, 12 * kMiB);
    if (co_await store.flatten(id, id)) {
      while (running(store)) co_await home.yield();
    }
    (void)co_await store.remove(id);
  }
  while (!store.idle()) co_await home.yield();
  co_return Status{};
}

void check_and_repair(const Reactors& reactors, const std::vector<std::byte>& image) {
  auto disk = std::make_shared<blob::SimDisk>(image);
  const auto first = reactors.call(blob::check_pool(make_sim_bdev(disk, 1), reactors.home(), blob::Repair::kYes));
  if (!first) return;
  const auto second_try = reactors.call(blob::check_pool(make_sim_bdev(disk, 1), reactors.home()));
  if (!second_try) {
    std::string all = "a repair wrote what cannot be loaded: " + second_try.error().message;
    for (const auto& finding : first->findings) all += "\n  " + finding;
    throw std::runtime_error(all);
  }
  const auto& second = *second_try;
  const bool written = first->irreparable.empty();
  const bool whole = written && first->damaged + first->doubly_used == 0;
  if ((written && second.lost != 0) || (whole && !second.clean())) {
    std::string all = "left by a repair:";
    for (const auto& finding : second.findings) all += "\n  " + finding;
    throw std::runtime_error(all);
  }
}

}  // namespace

std::vector<std::byte> busy_pool(reactor::Stepper& reactors) {
  CrashHarness pool(reactors);
  pool.open(CrashHarness::formatted(reactors, kPoolBytes, 64 * kKiB), 1);
  const Uuid one = id_of(1), large = id_of(2), snap = id_of(3), clone = id_of(4);
  const bool done =
      pool.create(one, 2 * kMiB) && pool.write(one, {{0, 4096}, {64 * kKiB, 128 * kKiB}}) &&
      pool.create(large, 3 * kGiB) && pool.write(large, {{0, 4096}, {3 * kGiB - 8192, 8192}}) &&
      pool.fork(one, snap, true) && pool.fork(snap, clone, false) && pool.write(clone, {{0, 4096}, {8192, 512}}) &&
      pool.checkpoint() && pool.write(one, {{0, 4096}, {70 * kKiB, 4096}}) && pool.fork(one, id_of(5), true) &&
      pool.write(clone, {{128 * kKiB, 64 * kKiB}}) && pool.unmap(one, {64 * kKiB, 64 * kKiB}) && pool.flush(one);
  if (!done) throw std::runtime_error("the disk failed");
  return pool.disk().image();
}

void forge_page(std::vector<std::byte>& image, std::size_t at, const std::function<void(std::byte* payload)>& change) {
  blob::Superblock super;
  std::memcpy(&super, image.data(), sizeof(super));
  std::byte* page = image.data() + at;
  blob::PageHeader header;
  std::memcpy(&header, page, sizeof(header));
  change(page + sizeof(header));
  blob::seal_page(page, header.type, header.number, header.generation, blob::checksum_seed(super.pool_id));
}

std::vector<std::size_t> metadata_pages(const std::vector<std::byte>& image) {
  std::vector<std::size_t> found;
  for (std::size_t at = 0; at + blob::kPageBytes <= image.size(); at += blob::kPageBytes) {
    std::uint32_t magic = 0;
    std::memcpy(&magic, image.data() + at, sizeof(magic));
    if (magic == blob::kPageMagic) found.push_back(at);
  }
  return found;
}

bool survives(const std::vector<std::byte>& image, std::uint64_t seed) {
  reactor::Stepper stepper(2, seed);
  const Reactors reactors(stepper);
  reactor::Reactor& home = reactors.home();
  check_and_repair(reactors, image);
  auto disk = std::make_shared<blob::SimDisk>(image);
  auto store = reactors.call(blob::Store::open(make_sim_bdev(disk, 1), home));
  if (!store) {
    if (store.error().message.empty()) throw std::runtime_error("a refusal without a reason");
    return false;
  }
  must(reactors.call(use(home, stepper.any(), **store)));
  (void)reactors.call((*store)->close());
  return true;
}

}  // namespace pollux::volume::test
