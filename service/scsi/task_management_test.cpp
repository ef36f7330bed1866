// The order of tasks, and their ends by task management.
#include "scsi/test_bench.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

Request write_block(std::uint64_t lba, TaskAttribute attribute = TaskAttribute::kSimple, std::uint64_t tag = 0) {
  return {.cdb = range_cdb({0x2a, lba, 1}), .data_out = Bytes(512, 1), .attribute = attribute, .tag = tag};
}

void check_ended(const Answer& answer, Outcome outcome) {
  BOOST_TEST((answer.outcome == outcome));
  check_status(answer, ScsiStatus::kTaskAborted);
  BOOST_TEST(answer.transferred == 0u);
}

}  // namespace

BOOST_AUTO_TEST_CASE(ordered_tasks_wait_for_what_came_before_and_hold_what_comes_after) {
  Bench bench;
  bench.bdev->pause();
  auto before = bench.start(write_block(0));
  auto ordered = bench.start(write_block(1, TaskAttribute::kOrdered));
  auto after = bench.start(write_block(2));
  auto head = bench.start(write_block(3, TaskAttribute::kHeadOfQueue));
  auto elsewhere = bench.start(write_block(4), {0, 1});
  bench.bdev->await_paused(3);
  for (const auto& seen : bench.bdev->seen()) BOOST_TEST((seen.offset_bytes != 512 && seen.offset_bytes != 1024));
  bench.bdev->resume();
  for (auto* pending : {&before, &ordered, &after, &head, &elsewhere}) check_good((*pending)->answer(), 512);
  // The ordered one reached the device before the one after it.
  const auto seen = bench.bdev->seen();
  BOOST_REQUIRE_EQUAL(seen.size(), 5u);
  BOOST_TEST(seen[3].offset_bytes == 512u);
  BOOST_TEST(seen[4].offset_bytes == 1024u);
}

BOOST_AUTO_TEST_CASE(a_row_of_ordered_tasks_keeps_its_order) {
  for (bool defer : {false, true}) {
    Bench bench({.bdev = {.defer = defer}});
    std::vector<std::unique_ptr<Pending>> pending;
    for (std::uint64_t lba = 0; lba < 300; ++lba)
      pending.push_back(bench.start(write_block(lba, TaskAttribute::kOrdered)));
    for (auto& each : pending) check_good(each->answer(), 512);
    const auto seen = bench.bdev->seen();
    for (std::size_t i = 0; i < seen.size(); ++i) BOOST_REQUIRE_EQUAL(seen[i].offset_bytes, i * 512);
  }
}

BOOST_AUTO_TEST_CASE(abort_task_ends_the_named_one_and_waits_for_the_device) {
  Bench bench;
  bench.bdev->pause();
  auto first = bench.start(write_block(0, TaskAttribute::kSimple, 100), {0, 1});
  auto second = bench.start(write_block(1, TaskAttribute::kSimple, 200), {0, 1});
  auto waiting = bench.start(write_block(2, TaskAttribute::kOrdered, 300), {0, 1});
  auto other_guest = bench.start(write_block(3, TaskAttribute::kSimple, 100), {1, 1});
  bench.bdev->await_paused(3);
  BOOST_TEST((bench.manage(TaskFunction::kQueryTask, {0, 0}, 100) == TaskFunctionResponse::kSucceeded));
  BOOST_TEST((bench.manage(TaskFunction::kQueryTask, {0, 0}, 400) == TaskFunctionResponse::kComplete));
  BOOST_TEST((bench.manage(TaskFunction::kQueryTaskSet, {0, 0}) == TaskFunctionResponse::kSucceeded));
  // One that has not begun ends at once, asked for from the other reactor.
  BOOST_TEST((bench.manage(TaskFunction::kAbortTask, {0, 0}, 300) == TaskFunctionResponse::kComplete));
  check_ended(waiting->answer(), Outcome::kAborted);
  BOOST_TEST(!first->done());
  // One that the device has: the answer comes when the device has released its buffers.
  auto abort = bench.start_managing(TaskFunction::kAbortTask, {0, 0}, 100);
  bench.settle();
  BOOST_TEST(!abort->done.is_set());
  bench.bdev->resume();
  BOOST_TEST((abort->wait() == TaskFunctionResponse::kComplete));
  BOOST_TEST(first->done());
  check_ended(first->answer(), Outcome::kAborted);
  check_good(second->answer(), 512);
  check_good(other_guest->answer(), 512);
  BOOST_TEST((bench.manage(TaskFunction::kQueryTaskSet, {0, 0}) == TaskFunctionResponse::kComplete));
  BOOST_TEST((bench.manage(TaskFunction::kAbortTask, {0, 0}, 100) == TaskFunctionResponse::kComplete));
}

BOOST_AUTO_TEST_CASE(each_function_reaches_the_tasks_it_is_for) {
  const struct {
    TaskFunction function;
    bool others_too;
    Outcome outcome;
    std::optional<SenseCode> own_attention;
    std::optional<SenseCode> other_attention;
  } kTable[] = {
      {TaskFunction::kAbortTaskSet, false, Outcome::kAborted, {}, {}},
      {TaskFunction::kNexusReset, false, Outcome::kReset, SenseCode{SenseKey::kUnitAttention, 0x29, 0x07}, {}},
      {TaskFunction::kClearTaskSet, true, Outcome::kAborted, {}, SenseCode{SenseKey::kUnitAttention, 0x2f, 0x00}},
      {TaskFunction::kLogicalUnitReset, true, Outcome::kReset, SenseCode{SenseKey::kUnitAttention, 0x29, 0x03},
       SenseCode{SenseKey::kUnitAttention, 0x29, 0x03}},
  };
  for (const auto& row : kTable) {
    Bench bench;
    bench.bdev->pause();
    // Tasks that wait behind an ORDERED one can be ended without the device.
    std::vector<std::unique_ptr<Pending>> started;
    std::vector<std::unique_ptr<Pending>> own;
    std::vector<std::unique_ptr<Pending>> others;
    for (std::size_t reactor : {0u, 1u}) {
      own.push_back(bench.start(write_block(0), {0, reactor}));
      own.push_back(bench.start(write_block(1, TaskAttribute::kOrdered), {0, reactor}));
      others.push_back(bench.start(write_block(2), {1, reactor}));
      others.push_back(bench.start(write_block(3, TaskAttribute::kOrdered), {1, reactor}));
    }
    bench.bdev->await_paused(4);
    auto managing = bench.start_managing(row.function, {0, 0});
    bench.settle();
    BOOST_TEST(!managing->done.is_set());
    BOOST_TEST(own[1]->done());
    BOOST_TEST(own[3]->done());
    BOOST_TEST(others[1]->done() == row.others_too);
    bench.bdev->resume();
    BOOST_TEST((managing->wait() == TaskFunctionResponse::kComplete));
    for (auto& each : own) {
      BOOST_TEST(each->done());
      check_ended(each->answer(), row.outcome);
    }
    for (auto& each : others) {
      if (row.others_too) {
        check_ended(each->answer(), row.outcome);
      } else {
        check_good(each->answer(), 512);
      }
    }
    const struct {
      std::size_t guest;
      const std::optional<SenseCode>& attention;
    } kGuests[] = {{0, row.own_attention}, {1, row.other_attention}};
    for (const auto& each : kGuests) {
      const Answer answer = bench.run({.cdb = cdb6(0x00)}, {each.guest, 1});
      if (each.attention) {
        check_sense(answer, *each.attention);
      } else {
        check_good(answer, 0);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(a_reset_ends_old_reservations_and_mode_changes_but_not_persistent_ones) {
  Bench bench;
  check_good(bench.run({.cdb = cdb6(0x16)}), 0);
  Bytes list{0, 0, 0, 0, 0x0a, 10, 0, 0x10, 0x08, 0, 0, 0, 0xff, 0xff, 0, 0};
  check_good(bench.run({.cdb = cdb6(0x15, 0x10, 0, 0, 16), .data_out = list}), 16);
  check_sense(bench.run(write_block(0)), sense::kWriteProtected);
  BOOST_TEST((bench.manage(TaskFunction::kLogicalUnitReset, {1, 1}) == TaskFunctionResponse::kComplete));
  for (std::size_t guest : {0u, 1u}) {
    check_sense(bench.run({.cdb = cdb6(0x00)}, {guest, 0}), {SenseKey::kUnitAttention, 0x29, 0x03});
  }
  // The mode parameters' change was told before the reset, to the guest that had not made it.
  check_sense(bench.run({.cdb = cdb6(0x00)}, {1, 0}), {SenseKey::kUnitAttention, 0x2a, 0x01});
  check_good(bench.run(write_block(0), {1, 0}), 512);
  Bytes parameters(24);
  parameters[15] = 7;
  check_good(bench.run({.cdb = {0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0}, .data_out = parameters}), 24);
  BOOST_TEST((bench.manage(TaskFunction::kLogicalUnitReset, {1, 1}) == TaskFunctionResponse::kComplete));
  check_sense(bench.run({.cdb = cdb6(0x00)}), {SenseKey::kUnitAttention, 0x29, 0x03});
  check_good(bench.run({.cdb = {0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0}, .data_in_bytes = 255}), 16);
}

BOOST_AUTO_TEST_CASE(clear_aca_is_rejected) {
  Bench bench;
  BOOST_TEST((bench.manage(TaskFunction::kClearAca, {0, 0}) == TaskFunctionResponse::kRejected));
}

BOOST_AUTO_TEST_CASE(a_long_command_ends_at_the_next_step) {
  Bench bench({.bdev = {.size_bytes = 64 * kMiB, .defer = true}});
  bench.bdev->pause();
  auto verify = bench.start({.cdb = range_cdb({0x8f, 0, 131072}), .tag = 1}, {0, 1});
  bench.bdev->await_paused(1);
  auto managing = bench.start_managing(TaskFunction::kAbortTask, {0, 0}, 1);
  bench.settle();
  bench.bdev->resume();
  BOOST_TEST((managing->wait() == TaskFunctionResponse::kComplete));
  check_ended(verify->answer(), Outcome::kAborted);
  BOOST_TEST(bench.bdev->seen().size() == 1u);
}

BOOST_AUTO_TEST_CASE(an_aborted_compare_and_write_gives_its_range_back) {
  Bench bench;
  bench.bdev->pause();
  Bytes cdb(16);
  cdb[0] = 0x89;
  cdb[13] = 1;
  auto first = bench.start({.cdb = cdb, .data_out = Bytes(1024), .tag = 1}, {0, 0});
  bench.bdev->await_paused(1);
  auto second = bench.start({.cdb = cdb, .data_out = Bytes(1024), .tag = 2}, {1, 1});
  auto write = bench.start(write_block(0), {1, 0});
  auto managing = bench.start_managing(TaskFunction::kAbortTaskSet, {0, 1});
  bench.settle();
  bench.bdev->resume();
  BOOST_TEST((managing->wait() == TaskFunctionResponse::kComplete));
  check_ended(first->answer(), Outcome::kAborted);
  check_good(write->answer(), 512);
  const Answer answer = second->answer();
  // Before or after the write, but one of the two.
  if (answer.status == ScsiStatus::kGood) {
    check_good(answer, 1024);
  } else {
    check_sense(answer, sense::kMiscompareDuringVerify);
  }
}
