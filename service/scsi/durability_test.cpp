// Without a write cache (WCE 0 in the caching page, SBC-4 6.5.6) whatever a command changes is durable with its answer.

#include <map>

#include "scsi/command.h"
#include "scsi/designators.h"
#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

constexpr std::uint32_t kBlocks = 4;

bool changes(bdev::IoOp op) {
  return op == bdev::IoOp::kWrite || op == bdev::IoOp::kUnmap || op == bdev::IoOp::kWriteZeroes;
}

Request turn_the_cache_off() {
  Bytes list(4 + 20);
  list[4] = 0x08;
  list[5] = 18;
  return {.cdb = cdb6(0x15, 0x10, 0, 0, static_cast<std::uint8_t>(list.size())), .data_out = list};
}

Request unmap() {
  Bytes list(8 + 16);
  put_be16(list.data(), 22);
  put_be16(list.data() + 2, 16);
  put_be32(list.data() + 16, kBlocks);
  return {.cdb = range_cdb({0x42, 0, static_cast<std::uint32_t>(list.size())}), .data_out = list};
}

// The first blocks to where the next ones are.
Request extended_copy(const Uuid& unit) {
  Bytes list(16 + 32 + 28);
  put_be16(list.data() + 2, 32);
  put_be32(list.data() + 8, 28);
  std::uint8_t* target = list.data() + 16;
  const auto naa = naa_designator(unit);
  target[0] = 0xe4;
  target[4] = 1;
  target[5] = 0x03;
  target[7] = static_cast<std::uint8_t>(naa.size());
  std::copy(naa.begin(), naa.end(), target + 8);
  put_be16(target + 30, 512);
  std::uint8_t* segment = target + 32;
  segment[0] = 0x02;
  segment[3] = 24;
  put_be16(segment + 10, kBlocks);
  put_be64(segment + 20, kBlocks);
  Bytes cdb(16);
  cdb[0] = 0x83;
  put_be32(cdb.data() + 10, static_cast<std::uint32_t>(list.size()));
  return {.cdb = cdb, .data_out = list};
}

// One or more requests of each command that changes the medium, by opcode.
std::multimap<std::uint8_t, Request> requests(const Bench& bench) {
  std::multimap<std::uint8_t, Request> all;
  for (std::uint8_t opcode : {0x0a, 0x2a, 0x2e, 0x8a, 0x8b, 0x8e, 0xaa, 0xae}) {
    all.insert({opcode, {.cdb = range_cdb({opcode, 0, kBlocks}), .data_out = pattern(kBlocks * 512, opcode)}});
  }
  for (std::uint8_t opcode : {0x41, 0x93}) {
    for (std::uint8_t flags : {0x00, 0x08}) {
      for (std::uint8_t byte : {0, 1}) {
        all.insert({opcode, {.cdb = range_cdb({opcode, 0, kBlocks, flags}), .data_out = Bytes(512, byte)}});
      }
    }
  }
  all.insert({0x93, {.cdb = range_cdb({0x93, 0, kBlocks, 0x01})}});  // NDOB
  all.insert({0x42, unmap()});
  all.insert({0x83, extended_copy(bench.uuid)});
  Bytes compare(16);
  compare[0] = 0x89;
  compare[13] = kBlocks;
  all.insert({0x89, {.cdb = compare, .data_out = Bytes(2 * kBlocks * 512)}});
  return all;
}

}  // namespace

BOOST_AUTO_TEST_CASE(without_a_write_cache_all_that_any_command_changes_is_durable) {
  Bench bench;
  const auto all = requests(bench);
  check_good(bench.run(turn_the_cache_off()), 24);
  for (const Command& command : commands()) {
    if (!command.is(Command::kModifiesMedium)) continue;
    BOOST_TEST_CONTEXT("opcode " << static_cast<int>(command.opcode)) {
      BOOST_TEST(all.contains(command.opcode));
      const auto [first, last] = all.equal_range(command.opcode);
      for (auto at = first; at != last; ++at) {
        bench.bdev->fill(0);
        bench.bdev->forget_seen();
        BOOST_TEST((bench.run(at->second).status == ScsiStatus::kGood));
        unsigned changed = 0;
        for (const auto& seen : bench.bdev->seen()) {
          if (!changes(seen.op)) continue;
          ++changed;
          BOOST_TEST((seen.flags & bdev::IoRequest::kFua) != 0);
        }
        BOOST_TEST(changed != 0u);
      }
    }
  }
}
