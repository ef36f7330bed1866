// A logical unit that is being removed from a guest, while it is not known whether what the device has will end.

#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

Request write_a_block(std::uint8_t lba) {
  return {.cdb = {0x2a, 0, 0, 0, 0, lba, 0, 0, 1, 0}, .data_out = Bytes(512, 0x5a)};
}
Request test_unit_ready(TaskAttribute attribute = TaskAttribute::kSimple, std::uint64_t tag = 0) {
  return {.cdb = cdb6(0x00), .attribute = attribute, .tag = tag};
}

struct Leaving : Bench {
  LunChannel& channel() { return *guests.at(0).channels.at(0); }
  bool drained() {
    bool answer = false;
    on_reactor(0, [&] { answer = channel().drained(); });
    return answer;
  }
  void begin() {
    on_reactor(0, [&] { channel().begin_leaving(); });
  }
};

constexpr TaskAttribute kAttributes[] = {TaskAttribute::kSimple, TaskAttribute::kOrdered, TaskAttribute::kHeadOfQueue};

}  // namespace

BOOST_AUTO_TEST_CASE(commands_wait_until_it_is_decided_that_the_unit_stays) {
  Leaving bench;
  bench.bdev->pause();
  auto begun = bench.start(write_a_block(0));
  bench.bdev->await_paused(1);
  bench.begin();
  std::vector<std::unique_ptr<Pending>> late;
  for (const auto attribute : kAttributes) late.push_back(bench.start(test_unit_ready(attribute)));
  late.push_back(bench.start(write_a_block(1)));
  BOOST_TEST(!bench.drained());
  for (const auto& pending : late) BOOST_TEST(!pending->done());
  BOOST_TEST(bench.bdev->paused() == 1U);
  bench.on_reactor(0, [&] { bench.channel().stay(); });
  bench.bdev->resume();
  check_good(begun->answer(), 512);
  for (std::size_t i = 0; i < 3; ++i) check_good(late[i]->answer(), 0);
  check_good(late[3]->answer(), 512);
  check_good(bench.run(write_a_block(2)), 512);
}

BOOST_AUTO_TEST_CASE(commands_that_waited_end_with_a_unit_that_goes) {
  Leaving bench;
  bench.bdev->pause();
  auto begun = bench.start(write_a_block(0));
  bench.bdev->await_paused(1);
  bench.begin();
  std::vector<std::unique_ptr<Pending>> late;
  for (const auto attribute : kAttributes) late.push_back(bench.start(test_unit_ready(attribute)));
  bench.bdev->resume();
  check_good(begun->answer(), 512);
  BOOST_TEST(bench.drained());
  for (const auto& pending : late) BOOST_TEST(!pending->done());
  bench.on_reactor(0, [&] { bench.channel().end_waiting(); });
  for (const auto& pending : late) BOOST_TEST((pending->answer().outcome == Outcome::kRemoved));
}

BOOST_AUTO_TEST_CASE(commands_that_wait_can_be_aborted) {
  Leaving bench;
  bench.begin();
  auto waiting = bench.start(test_unit_ready(TaskAttribute::kSimple, 7));
  BOOST_TEST((bench.manage(TaskFunction::kQueryTask, {0, 0}, 7) == TaskFunctionResponse::kSucceeded));
  BOOST_TEST((bench.manage(TaskFunction::kAbortTask, {0, 0}, 7) == TaskFunctionResponse::kComplete));
  BOOST_TEST((waiting->answer().outcome == Outcome::kAborted));
  bench.on_reactor(0, [&] { bench.channel().stay(); });
  check_good(bench.run(test_unit_ready()), 0);
}
