// CDBs with their data, from two guests of one logical unit, against the whole command set.
//
// An input is a row of commands, each: one byte that says who sends it, how and where the buffers are cut; two bytes of
// data-out length and two of data-in length; the CDB's length and its bytes; the data-out bytes. What is missing at the
// end reads as zeros. Beyond the sanitizers, every answer is checked against what a front end relies on.

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <semaphore>
#include <vector>

#include "bdev/ram.h"
#include "fuzz/input.h"
#include "reactor/reactor.h"
#include "scsi/logical_unit.h"
#include "scsi/lun_channel.h"
#include "scsi/target.h"

namespace {

using namespace pollux;

constexpr std::uint64_t kDiskBytes = 1 << 20;
constexpr std::size_t kMaxCommands = 64;
constexpr std::size_t kMaxDataBytes = 16 * 1024;

using fuzz::Input;
using fuzz::require;

struct Sent : scsi::Task {
  std::vector<std::uint8_t> out;
  std::vector<std::uint8_t> in;
  std::vector<iovec> out_pieces;
  std::vector<iovec> in_pieces;
  int completions = 0;
  std::counting_semaphore<>* done = nullptr;

  void set_buffers(std::size_t piece_bytes) {
    cut(out, piece_bytes, out_pieces);
    cut(in, piece_bytes, in_pieces);
    data_out = out_pieces.data();
    data_out_count = static_cast<std::uint32_t>(out_pieces.size());
    data_out_bytes = out.size();
    data_in = in_pieces.data();
    data_in_count = static_cast<std::uint32_t>(in_pieces.size());
    data_in_bytes = in.size();
  }
  void check() const {
    require(completions == 1, "a task completes once");
    require(sense_length <= sense.size(), "sense data fits");
    require((status == scsi::ScsiStatus::kCheckCondition) == (sense_length != 0),
            "sense data with CHECK CONDITION alone");
    require(transferred_bytes <= std::max(data_in_bytes, data_out_bytes), "no more is moved than buffers hold");
    require(outcome != scsi::Outcome::kOverrun || transferred_bytes == 0, "an overrun moves nothing");
  }

 private:
  static void cut(std::vector<std::uint8_t>& bytes, std::size_t piece_bytes, std::vector<iovec>& pieces) {
    for (std::size_t at = 0; at < bytes.size(); at += piece_bytes) {
      pieces.push_back({bytes.data() + at, std::min(piece_bytes, bytes.size() - at)});
    }
  }
};

std::unique_ptr<Sent> next_command(Input& input, std::uint8_t how) {
  auto sent = std::make_unique<Sent>();
  sent->attribute = static_cast<scsi::TaskAttribute>((how >> 1 & 3) % 3);
  sent->out.resize(std::min<std::size_t>(input.word(), kMaxDataBytes));
  sent->in.resize(std::min<std::size_t>(input.word(), kMaxDataBytes));
  sent->cdb_length = static_cast<std::uint8_t>(std::min<std::size_t>(input.byte(), scsi::kMaxCdbBytes));
  for (std::size_t i = 0; i < sent->cdb_length; ++i) sent->cdb[i] = input.byte();
  for (auto& byte : sent->out) byte = input.byte();
  sent->set_buffers((how >> 4) == 0 ? 4096 : 1u << (how >> 4));
  sent->complete = [](scsi::Task& task) {
    auto& self = static_cast<Sent&>(task);
    ++self.completions;
    self.done->release();
  };
  return sent;
}

// Kept from input to input, so that each does not pay for threads and scratch memory.
struct World {
  World() {
    reactors = reactor::ReactorGroup::start({{.id = 0}}).value();
    keeper = unit("keeper");
    keeper_nexus = keeper->join({.initiator = "keeper"}).value();
    auto device = open(*keeper);
    on_reactor([&] { keeper_channel = keeper_nexus->make_channel(reactors->main(), std::move(device)); });
  }
  std::unique_ptr<bdev::Channel> open(const scsi::LogicalUnit& unit) {
    return reactor::call(reactors->main(), bdev::open_channel(unit.options().bdev, reactors->main())).value();
  }
  static std::shared_ptr<scsi::LogicalUnit> unit(const char* name) {
    return scsi::LogicalUnit::make({.bdev = bdev::make_ram_bdev(name, kDiskBytes).value(), .uuid = {}}).value();
  }
  template <typename Fn>
  void on_reactor(Fn fn) {
    std::binary_semaphore done{0};
    reactors->main().post([&] {
      fn();
      done.release();
    });
    done.acquire();
  }
  std::unique_ptr<reactor::ReactorGroup> reactors;
  std::shared_ptr<scsi::LogicalUnit> keeper;
  std::shared_ptr<scsi::Nexus> keeper_nexus;
  std::unique_ptr<scsi::LunChannel> keeper_channel;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static World& world = *new World;
  auto unit = World::unit("fuzz");
  std::array<std::shared_ptr<scsi::Nexus>, 2> guests;
  std::array<std::unique_ptr<scsi::TargetChannel>, 2> targets;
  std::counting_semaphore<> done{0};
  std::vector<std::unique_ptr<Sent>> tasks;
  for (std::size_t i = 0; i < guests.size(); ++i) {
    guests[i] = unit->join({.initiator = i == 0 ? "guest-a" : "guest-b", .announce_power_on = false}).value();
  }
  std::array<std::unique_ptr<bdev::Channel>, 2> devices;
  for (auto& device : devices) device = world.open(*unit);
  world.on_reactor([&] {
    for (std::size_t i = 0; i < guests.size(); ++i) {
      targets[i] = std::make_unique<scsi::TargetChannel>();
      targets[i]->add(0, guests[i]->make_channel(world.reactors->main(), std::move(devices[i])));
    }
    Input input(data, size);
    while (!input.empty() && tasks.size() < kMaxCommands) {
      const std::uint8_t how = input.byte();
      tasks.push_back(next_command(input, how));
      Sent& sent = *tasks.back();
      sent.tag = tasks.size();
      sent.done = &done;
      targets[how & 1]->submit(/*lun=*/(how & 8) != 0 ? 1 : 0, sent);
    }
  });
  for (std::size_t i = 0; i < tasks.size(); ++i) done.acquire();
  world.on_reactor([&] {
    for (const auto& task : tasks) task->check();
    for (auto& target : targets) {
      require(target->idle(), "a target whose tasks have completed is idle");
      target.reset();
    }
  });
  return 0;
}
