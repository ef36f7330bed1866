#include "volume/volume_service.h"

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "volume/test_support.h"

using namespace pollux;
using namespace pollux::volume;
using namespace pollux::volume::test;
using reactor::call;

namespace {

struct Fixture {
  std::unique_ptr<reactor::ReactorGroup> reactors = start_reactors(2);
  std::unique_ptr<VolumeService> service = std::make_unique<VolumeService>(*reactors);
  Uuid pool_id = Uuid::random();

  PoolSpec ram_pool(std::uint64_t bytes = 256 * kMiB) {
    return {.id = pool_id, .name = "pool", .bdev = {.kind = bdev::Spec::Kind::kRam, .path = {}, .size_bytes = bytes}};
  }
  template <typename T>
  Result<T> run(reactor::Task<Result<T>> task) {
    return call(reactors->main(), std::move(task));
  }
  VolumeSpec spec(std::string name, std::uint64_t bytes = 16 * kMiB, Provisioning p = Provisioning::kThin) {
    return {.id = Uuid::random(), .name = std::move(name), .size_bytes = bytes, .provisioning = p};
  }
  // The delete's background work is over.
  void wait_for_jobs() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!must(run(service->list_jobs())).empty()) {
      BOOST_REQUIRE(std::chrono::steady_clock::now() < deadline);
      std::this_thread::yield();
    }
  }
  ~Fixture() {
    if (service) BOOST_CHECK(run(service->close()).has_value());
  }
};

template <typename T>
ErrorCode code(const Result<T>& result) {
  BOOST_REQUIRE(!result.has_value());
  return result.error().code;
}

}  // namespace

BOOST_FIXTURE_TEST_SUITE(volume_service, Fixture)

BOOST_AUTO_TEST_CASE(pool_creation_may_be_repeated_but_not_contradicted) {
  const auto spec = ram_pool();
  const auto info = must(run(service->create_pool(spec)));
  BOOST_TEST(info.cluster_bytes == 256 * kKiB);
  BOOST_TEST(info.free_bytes > 200 * kMiB);
  BOOST_TEST(info.allocated_bytes == 0U);
  BOOST_TEST(must(run(service->create_pool(spec))).id.to_string() == info.id.to_string());
  auto other = spec;
  other.name = "another";
  BOOST_TEST((code(run(service->create_pool(other))) == ErrorCode::kExists));
  BOOST_TEST(must(run(service->list_pools())).size() == 1U);
  BOOST_TEST(must(run(service->describe_pool("pool"))).id.to_string() == pool_id.to_string());
  BOOST_TEST(must(run(service->describe_pool(pool_id.to_string()))).name == "pool");
}

BOOST_AUTO_TEST_CASE(the_statistics_of_all_volumes_come_in_one_call) {
  must(run(service->create_pool(ram_pool())));
  must(run(service->create_pool({.id = Uuid::random(),
                                 .name = "second",
                                 .bdev = {.kind = bdev::Spec::Kind::kRam, .path = {}, .size_bytes = 64 * kMiB}})));
  std::map<std::string, std::string> expected;
  for (unsigned i = 0; i < 100; ++i) {
    const std::string pool = i % 4 == 0 ? "second" : "pool";
    const auto made = must(run(service->create_volume(pool, spec("v" + std::to_string(i)))));
    expected.emplace(made.id.to_string(), pool);
  }
  const auto used = *Uuid::parse(expected.begin()->first);
  const Uuid snapshot = Uuid::random();
  must(run(service->create_snapshot(used, snapshot, "nobody has it open")));
  {
    const auto device = must(run(service->open(used)));
    RemoteChannel channel(*device, reactors->at(1));
    BOOST_TEST((channel.write(0, pattern(8192, 1)) == bdev::IoStatus::kOk));
    const auto all = must(run(service->all_stats(1000)));
    BOOST_TEST(all.complete);
    std::map<std::string, std::string> found;
    for (const auto& each : all.volumes) {
      found.emplace(each.volume.to_string(), each.pool);
      BOOST_TEST(each.stats.write_bytes == (each.volume == used ? 8192U : 0U));
    }
    BOOST_TEST((found == expected));
    BOOST_TEST(all.volumes.size() == expected.size());
  }
  const auto some = must(run(service->all_stats(40)));
  BOOST_TEST(!some.complete);
  BOOST_TEST(some.volumes.size() == 40U);
}

BOOST_AUTO_TEST_CASE(volume_creation_may_be_repeated_but_not_contradicted) {
  must(run(service->create_pool(ram_pool())));
  auto first = spec("one");
  const auto info = must(run(service->create_volume("pool", first)));
  BOOST_TEST(info.size_bytes == 16 * kMiB);
  BOOST_TEST(info.mapped_bytes == 0U);
  BOOST_TEST(must(run(service->create_volume("pool", first))).name == "one");
  auto larger = first;
  larger.size_bytes *= 2;
  BOOST_TEST((code(run(service->create_volume("pool", larger))) == ErrorCode::kExists));
  BOOST_TEST((code(run(service->create_volume("pool", spec("one")))) == ErrorCode::kExists));
  BOOST_TEST((code(run(service->create_volume("none", spec("two")))) == ErrorCode::kNotFound));
  BOOST_TEST((code(run(service->create_volume("pool", spec("odd", 1000)))) == ErrorCode::kInvalid));
  BOOST_TEST((code(run(service->create_volume("pool", spec("", 4096)))) == ErrorCode::kInvalid));
}

// A snapshot of a volume in use waits for all reactors, and what is made in its pool meanwhile waits for the snapshot.
BOOST_AUTO_TEST_CASE(an_id_is_given_once_however_many_are_made_at_a_time) {
  must(run(service->create_pool(ram_pool())));
  must(run(service->create_pool({.id = Uuid::random(),
                                 .name = "second",
                                 .bdev = {.kind = bdev::Spec::Kind::kRam, .path = {}, .size_bytes = 64 * kMiB}})));
  const auto source = must(run(service->create_volume("pool", spec("source"))));
  const auto device = must(run(service->open(source.id)));
  RemoteChannel guest(*device, reactors->at(1));
  const Uuid snapshot = Uuid::random();
  const VolumeSpec wanted = spec("wanted");
  using Made = Result<VolumeInfo>;
  const auto make_all = [&]() -> reactor::Task<Result<std::vector<Made>>> {
    co_await reactors->main().enter();
    std::vector<reactor::Task<Made>> tasks;
    tasks.push_back(service->create_snapshot(source.id, snapshot, "snapshot"));
    for (const char* pool : {"pool", "second", "pool"}) tasks.push_back(service->create_volume(pool, wanted));
    tasks.push_back(service->clone(snapshot, wanted));
    tasks.push_back(service->create_snapshot(source.id, snapshot, "snapshot"));
    std::vector<Made> made(tasks.size(), fail(ErrorCode::kInternal, "nobody answered"));
    std::size_t left = tasks.size();
    reactor::Completion<bool> over;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      reactor::spawn(std::move(tasks[i]), [&, i](Made result) {
        made[i] = std::move(result);
        if (--left == 0) over.set(true);
      });
    }
    co_await over;
    co_return made;
  };
  const auto made = must(run(make_all()));
  BOOST_TEST(made[0].has_value());
  BOOST_TEST(made[1].has_value());
  for (const std::size_t beside : {2, 3, 5}) BOOST_TEST((code(made[beside]) == ErrorCode::kRetry));
  BOOST_TEST(!made[4].has_value());
  BOOST_TEST(must(run(service->list_volumes("second", std::nullopt, 10))).empty());
  // Once it is there, a repetition is answered as ever.
  BOOST_TEST(must(run(service->create_volume("pool", wanted))).name == "wanted");
  BOOST_TEST((code(run(service->create_volume("second", wanted))) == ErrorCode::kExists));
}

BOOST_AUTO_TEST_CASE(volumes_are_listed_in_pages_in_order_of_id) {
  must(run(service->create_pool(ram_pool())));
  for (int i = 0; i < 7; ++i) must(run(service->create_volume("pool", spec("v" + std::to_string(i)))));
  std::vector<Uuid> seen;
  std::optional<Uuid> after;
  while (true) {
    const auto page = must(run(service->list_volumes("pool", after, 3)));
    if (page.empty()) break;
    for (const auto& each : page) seen.push_back(each.id);
    after = seen.back();
  }
  BOOST_TEST(seen.size() == 7U);
  BOOST_TEST(std::is_sorted(seen.begin(), seen.end()));
}

BOOST_AUTO_TEST_CASE(deleting_everything_gives_all_space_back) {
  const auto before = must(run(service->create_pool(ram_pool())));
  const auto one = must(run(service->create_volume("pool", spec("one"))));
  {
    auto device = must(run(service->open(one.id)));
    RemoteChannel channel(*device, reactors->at(1));
    BOOST_REQUIRE((channel.write(0, pattern(4 * kMiB, 1)) == bdev::IoStatus::kOk));
    BOOST_TEST((code(run(service->delete_volume(one.id))) == ErrorCode::kBusy));
  }
  const auto used = must(run(service->describe_pool("pool")));
  BOOST_TEST(used.allocated_bytes == 4 * kMiB);
  const Uuid snapshot = Uuid::random();
  must(run(service->create_snapshot(one.id, snapshot, "snap")));
  auto clone = spec("clone");
  must(run(service->clone(snapshot, clone)));
  BOOST_TEST(must(run(service->describe_pool("pool"))).snapshots == 1U);
  // A snapshot with clones goes without complaint.
  must(run(service->delete_volume(snapshot)));
  must(run(service->delete_volume(one.id)));
  wait_for_jobs();
  BOOST_TEST(must(run(service->describe_pool("pool"))).allocated_bytes == 4 * kMiB);
  must(run(service->delete_volume(clone.id)));
  wait_for_jobs();
  const auto after = must(run(service->describe_pool("pool")));
  BOOST_TEST(after.allocated_bytes == 0U);
  BOOST_TEST(after.free_bytes == before.free_bytes);
  BOOST_TEST(after.volumes + after.snapshots == 0U);
  BOOST_TEST((code(run(service->describe_volume(clone.id))) == ErrorCode::kNotFound));
}

BOOST_AUTO_TEST_CASE(thick_volumes_have_their_space_promised) {
  const auto pool = must(run(service->create_pool(ram_pool(64 * kMiB))));
  const std::uint64_t half = align_down<std::uint64_t>(pool.free_bytes / 2, kMiB);
  const auto thick = must(run(service->create_volume("pool", spec("thick", half, Provisioning::kThick))));
  BOOST_TEST(must(run(service->describe_pool("pool"))).reserved_bytes == half);
  const auto too_much = spec("more", half + 2 * kMiB, Provisioning::kThick);
  BOOST_TEST((code(run(service->create_volume("pool", too_much))) == ErrorCode::kNoSpace));
  // A thin volume takes what is left, and the thick one can still be filled.
  const auto thin = must(run(service->create_volume("pool", spec("thin", 64 * kMiB))));
  auto thin_device = must(run(service->open(thin.id)));
  auto thick_device = must(run(service->open(thick.id)));
  RemoteChannel greedy(*thin_device, reactors->at(0));
  RemoteChannel calm(*thick_device, reactors->at(1));
  std::uint64_t at = 0;
  while (greedy.write(at, pattern(kMiB, at)) == bdev::IoStatus::kOk) at += kMiB;
  BOOST_TEST(at >= half - 4 * kMiB);
  std::vector<std::byte> back(kMiB);
  BOOST_TEST((greedy.read(0, back) == bdev::IoStatus::kOk));
  BOOST_TEST((back == pattern(kMiB, 0)));
  for (std::uint64_t offset = 0; offset < half; offset += kMiB) {
    BOOST_REQUIRE((calm.write(offset, pattern(kMiB, offset)) == bdev::IoStatus::kOk));
  }
  BOOST_TEST((code(run(service->create_snapshot(thick.id, Uuid::random(), "snap"))) == ErrorCode::kNoSpace));
  // Room made by one is there for the other.
  BOOST_TEST((greedy.write(at, pattern(kMiB, at)) == bdev::IoStatus::kNoSpace));
  BOOST_TEST((greedy.unmap(0, 2 * kMiB) == bdev::IoStatus::kOk));
  BOOST_TEST((greedy.write(at, pattern(kMiB, at)) == bdev::IoStatus::kOk));
}

BOOST_AUTO_TEST_CASE(extend_reaches_who_has_it_open) {
  must(run(service->create_pool(ram_pool())));
  const auto made = must(run(service->create_volume("pool", spec("one"))));
  auto device = must(run(service->open(made.id)));
  std::atomic<std::uint64_t> told{0};
  auto token = device->on_resize([&told](std::uint64_t size) { told = size; });
  BOOST_TEST(must(run(service->extend_volume(made.id, 20 * kGiB))).size_bytes == 20 * kGiB);
  BOOST_TEST(told.load() == 20 * kGiB);
  BOOST_TEST(device->size_bytes() == 20 * kGiB);
  BOOST_TEST((code(run(service->extend_volume(made.id, kMiB))) == ErrorCode::kInvalid));
  RemoteChannel channel(*device, reactors->at(1));
  BOOST_TEST((channel.write(20 * kGiB - 4096, pattern(4096, 7)) == bdev::IoStatus::kOk));
  std::vector<std::byte> back(4096);
  BOOST_TEST((channel.read(20 * kGiB - 4096, back) == bdev::IoStatus::kOk));
  BOOST_TEST((back == pattern(4096, 7)));
}

BOOST_AUTO_TEST_CASE(revert_brings_the_snapshot_back) {
  must(run(service->create_pool(ram_pool())));
  const auto made = must(run(service->create_volume("pool", spec("one"))));
  const Uuid snapshot = Uuid::random();
  {
    auto device = must(run(service->open(made.id)));
    RemoteChannel channel(*device, reactors->at(1));
    BOOST_REQUIRE((channel.write(0, pattern(kMiB, 1)) == bdev::IoStatus::kOk));
    must(run(service->create_snapshot(made.id, snapshot, "snap")));
    BOOST_REQUIRE((channel.write(4096, pattern(kMiB, 2)) == bdev::IoStatus::kOk));
    BOOST_TEST((code(run(service->revert(made.id, snapshot))) == ErrorCode::kBusy));
  }
  must(run(service->revert(made.id, snapshot)));
  auto device = must(run(service->open(made.id)));
  RemoteChannel channel(*device, reactors->at(0));
  std::vector<std::byte> back(kMiB);
  BOOST_REQUIRE((channel.read(0, back) == bdev::IoStatus::kOk));
  BOOST_TEST((back == pattern(kMiB, 1)));
  wait_for_jobs();
  BOOST_TEST(must(run(service->describe_pool("pool"))).allocated_bytes == kMiB);
}

BOOST_AUTO_TEST_CASE(flatten_frees_a_clone_from_all_it_shares_while_it_is_written) {
  must(run(service->create_pool(ram_pool())));
  const auto base = must(run(service->create_volume("pool", spec("base"))));
  const Uuid snapshot = Uuid::random();
  std::vector<std::byte> expected(16 * kMiB);
  {
    auto device = must(run(service->open(base.id)));
    RemoteChannel channel(*device, reactors->at(1));
    const auto bytes = pattern(6 * kMiB, 1);
    BOOST_REQUIRE((channel.write(kMiB, bytes) == bdev::IoStatus::kOk));
    std::copy(bytes.begin(), bytes.end(), expected.begin() + kMiB);
  }
  must(run(service->create_snapshot(base.id, snapshot, "snap")));
  const auto clone = must(run(service->clone(snapshot, spec("clone"))));
  auto device = must(run(service->open(clone.id)));
  RemoteChannel channel(*device, reactors->at(1));
  const auto put = [&](std::uint64_t offset, std::size_t bytes, std::uint64_t seed) {
    const auto data = pattern(bytes, seed);
    BOOST_REQUIRE((channel.write(offset, data) == bdev::IoStatus::kOk));
    std::copy(data.begin(), data.end(), expected.begin() + static_cast<long>(offset));
  };
  // Half-written clusters: some of the clone's own over what it shares, some beside it.
  put(2 * kMiB + 8192, 4096, 2);
  put(512, 512, 3);
  const Uuid job = Uuid::random();
  BOOST_TEST((code(run(service->flatten(snapshot, Uuid::random()))) == ErrorCode::kInvalid));
  must(run(service->flatten(clone.id, job)));
  for (std::uint64_t i = 0; i < 100; ++i) put((i * 7919 % 4000) * 4096, 4096, 10 + i);
  const auto find = [&] {
    for (const auto& each : must(run(service->list_jobs()))) {
      if (each.id == job) return each;
    }
    throw std::runtime_error("the job is not listed");
  };
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (find().state == JobState::kRunning) {
    BOOST_REQUIRE(std::chrono::steady_clock::now() < deadline);
    std::this_thread::yield();
  }
  BOOST_TEST((find().state == JobState::kDone));
  BOOST_TEST(find().done == find().total);
  BOOST_TEST((must(run(service->flatten(clone.id, job))).state == JobState::kDone));
  BOOST_TEST((code(run(service->flatten(base.id, job))) == ErrorCode::kExists));
  const auto info = must(run(service->describe_volume(clone.id)));
  BOOST_TEST(!info.parent_id.has_value());
  std::vector<std::byte> back(16 * kMiB);
  BOOST_REQUIRE((channel.read(0, back) == bdev::IoStatus::kOk));
  BOOST_TEST((back == expected));
  // Nothing is shared with the clone any more: the others' space is theirs alone.
  must(run(service->delete_volume(base.id)));
  must(run(service->delete_volume(snapshot)));
  const auto gone = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (must(run(service->describe_pool("pool"))).allocated_bytes != info.mapped_bytes) {
    BOOST_REQUIRE(std::chrono::steady_clock::now() < gone);
    std::this_thread::yield();
  }
  BOOST_REQUIRE((channel.read(0, back) == bdev::IoStatus::kOk));
  BOOST_TEST((back == expected));
}

BOOST_AUTO_TEST_CASE(a_flatten_can_be_cancelled_and_fails_by_name_when_the_pool_is_full) {
  must(run(service->create_pool(ram_pool(64 * kMiB))));
  const auto base = must(run(service->create_volume("pool", spec("base", 40 * kMiB))));
  {
    auto device = must(run(service->open(base.id)));
    RemoteChannel channel(*device, reactors->at(1));
    for (std::uint64_t at = 0; at < 40 * kMiB; at += kMiB) {
      BOOST_REQUIRE((channel.write(at, pattern(kMiB, at)) == bdev::IoStatus::kOk));
    }
  }
  const Uuid snapshot = Uuid::random();
  must(run(service->create_snapshot(base.id, snapshot, "snap")));
  BOOST_TEST((code(run(service->cancel_job(Uuid::random()))) == ErrorCode::kNotFound));
  const auto ended = [&](const Uuid& job) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (true) {
      BOOST_REQUIRE(std::chrono::steady_clock::now() < deadline);
      for (const auto& each : must(run(service->list_jobs()))) {
        if (each.id == job && each.state != JobState::kRunning) return each;
      }
    }
  };
  // Started and cancelled in one turn of the pool's reactor.
  const Uuid cancelled = Uuid::random();
  const auto both = [&]() -> reactor::Task<Status> {
    co_await reactors->main().enter();
    POLLUX_CO_TRY(co_await service->flatten(base.id, cancelled));
    co_return co_await service->cancel_job(cancelled);
  };
  must(run(both()));
  BOOST_TEST((ended(cancelled).state == JobState::kCancelled));
  const Uuid full = Uuid::random();
  must(run(service->flatten(base.id, full)));
  const auto failed = ended(full);
  BOOST_TEST((failed.state == JobState::kFailed));
  BOOST_TEST(failed.error.find("pool 'pool' is full") != std::string::npos);
  must(run(service->delete_volume(snapshot)));
  const Uuid again = Uuid::random();
  must(run(service->flatten(base.id, again)));
  BOOST_TEST((ended(again).state == JobState::kDone));
}

BOOST_AUTO_TEST_CASE(a_full_pool_goes_on_when_its_file_grows) {
  const auto path = std::filesystem::temp_directory_path() / ("pollux-" + Uuid::random().to_string());
  const bdev::Spec file{.kind = bdev::Spec::Kind::kUring, .path = path.string(), .size_bytes = 32 * kMiB};
  must(run(service->create_pool({.id = pool_id, .name = "file", .bdev = file})));
  const auto one = must(run(service->create_volume("file", spec("one", 64 * kMiB))));
  auto device = must(run(service->open(one.id)));
  RemoteChannel channel(*device, reactors->at(1));
  std::uint64_t at = 0;
  auto status = bdev::IoStatus::kOk;
  while (status == bdev::IoStatus::kOk) {
    status = channel.write(at, pattern(kMiB, at));
    if (status == bdev::IoStatus::kOk) at += kMiB;
  }
  BOOST_REQUIRE((status == bdev::IoStatus::kNoSpace));
  std::filesystem::resize_file(path, 96 * kMiB);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (must(run(service->describe_pool("file"))).free_bytes < 60 * kMiB) {
    BOOST_REQUIRE(std::chrono::steady_clock::now() < deadline);
    std::this_thread::yield();
  }
  for (std::uint64_t more = at; more < 64 * kMiB; more += kMiB) {
    BOOST_REQUIRE((channel.write(more, pattern(kMiB, more)) == bdev::IoStatus::kOk));
  }
  std::vector<std::byte> back(kMiB);
  for (std::uint64_t each = 0; each < 64 * kMiB; each += kMiB) {
    BOOST_REQUIRE((channel.read(each, back) == bdev::IoStatus::kOk));
    BOOST_TEST((back == pattern(kMiB, each)));
  }
  std::filesystem::remove(path);
}

BOOST_AUTO_TEST_CASE(limits_are_kept_with_the_volume_and_io_is_counted) {
  must(run(service->create_pool(ram_pool())));
  const auto made = must(run(service->create_volume("pool", spec("one"))));
  const QosLimits limits{.read_iops = 100,
                         .total_bytes_per_s = 5 * kMiB,
                         .read_iops_burst = {.per_s = 300, .length_s = 2},
                         .total_bytes_burst = {.per_s = 6 * kMiB, .length_s = 1}};
  BOOST_TEST((must(run(service->set_qos(made.id, limits))).qos == limits));
  auto device = must(run(service->open(made.id)));
  BOOST_TEST(must(run(service->describe_volume(made.id))).open_count == 1U);
  {
    RemoteChannel channel(*device, reactors->at(1));
    channel.write(0, pattern(8192, 1));
    channel.flush();
    std::vector<std::byte> back(4096);
    channel.read(0, back);
  }
  const auto stats = must(run(service->stats(made.id)));
  BOOST_TEST(stats.write_ops == 1U);
  BOOST_TEST(stats.write_bytes == 8192U);
  BOOST_TEST(stats.read_ops == 1U);
  BOOST_TEST(stats.flush_ops == 1U);
  BOOST_TEST(stats.errors == 0U);
}

BOOST_AUTO_TEST_CASE(a_file_pool_comes_back_after_export_and_after_a_growth_of_its_file) {
  const auto path = std::filesystem::temp_directory_path() / ("pollux-" + Uuid::random().to_string());
  const bdev::Spec file{.kind = bdev::Spec::Kind::kUring, .path = path.string(), .size_bytes = 64 * kMiB};
  const auto made = must(run(service->create_pool({.id = pool_id, .name = "file", .bdev = file})));
  const auto one = must(run(service->create_volume("file", spec("one"))));
  {
    auto device = must(run(service->open(one.id)));
    RemoteChannel channel(*device, reactors->at(1));
    BOOST_REQUIRE((channel.write(512, pattern(70000 / 512 * 512, 3)) == bdev::IoStatus::kOk));
    BOOST_TEST((code(run(service->export_pool("file"))) == ErrorCode::kBusy));
  }
  must(run(service->export_pool("file")));
  BOOST_TEST((code(run(service->describe_volume(one.id))) == ErrorCode::kNotFound));
  std::filesystem::resize_file(path, 128 * kMiB);
  const auto grown = must(run(service->import_pool(file)));
  BOOST_TEST(grown.capacity_bytes >= made.capacity_bytes + 63 * kMiB);
  BOOST_TEST(grown.id.to_string() == pool_id.to_string());
  {
    auto device = must(run(service->open(one.id)));
    RemoteChannel channel(*device, reactors->at(1));
    std::vector<std::byte> back(70000 / 512 * 512);
    BOOST_REQUIRE((channel.read(512, back) == bdev::IoStatus::kOk));
    BOOST_TEST((back == pattern(70000 / 512 * 512, 3)));
  }
  BOOST_TEST(
      (code(run(service->create_pool({.id = Uuid::random(), .name = "other", .bdev = file}))) == ErrorCode::kBusy));
  must(run(service->export_pool("file")));
  BOOST_TEST(
      (code(run(service->create_pool({.id = Uuid::random(), .name = "other", .bdev = file}))) == ErrorCode::kExists));
  std::filesystem::remove(path);
}

BOOST_AUTO_TEST_SUITE_END()
