// Reservations as guests see them: commands, conflicts, unit attentions, restarts.
#include "scsi/command.h"
#include "scsi/reservations.h"
#include "scsi/test_bench.h"
#include "scsi/transport_id.h"

using namespace pollux;
using namespace pollux::scsi;
using namespace pollux::scsi::test;

namespace {

struct Out {
  std::uint8_t action;
  std::uint64_t key = 0;
  std::uint64_t new_key = 0;
  std::uint8_t type = 0;
  std::uint8_t flags = 0;  // byte 20
};
Request out(const Out& parameters) {
  Bytes list(24);
  put_be64(list.data(), parameters.key);
  put_be64(list.data() + 8, parameters.new_key);
  list[20] = parameters.flags;
  return {.cdb = {0x5f, parameters.action, parameters.type, 0, 0, 0, 0, 0, 24, 0}, .data_out = list};
}
Request in(std::uint8_t action, std::uint16_t allocation = 8192) {
  return {.cdb = {0x5e, action, 0, 0, 0, 0, 0, static_cast<std::uint8_t>(allocation >> 8),
                  static_cast<std::uint8_t>(allocation), 0},
          .data_in_bytes = 8192};
}
Request read_block() {
  return {.cdb = range_cdb({0x28, 0, 1}), .data_in_bytes = 512};
}
Request write_block() {
  return {.cdb = range_cdb({0x2a, 0, 1}), .data_out = Bytes(512)};
}

constexpr std::uint8_t kRegister = 0, kReserve = 1, kRelease = 2, kClear = 3, kPreempt = 4, kPreemptAndAbort = 5,
                       kIgnore = 6, kMove = 7;

}  // namespace

BOOST_AUTO_TEST_CASE(keys_reservation_and_full_status_are_read_back) {
  Bench bench;
  check_good(bench.run(out({kRegister, 0, 0x1111})), 24);
  check_good(bench.run(out({kRegister, 0, 0x2222}), {1, 1}), 24);
  const Answer keys = bench.run(in(0));
  check_good(keys, 24);
  BOOST_TEST(get_be32(keys.data.data()) == 2u);
  BOOST_TEST(get_be32(keys.data.data() + 4) == 16u);
  BOOST_TEST(get_be64(keys.data.data() + 8) == 0x1111u);
  BOOST_TEST(get_be64(keys.data.data() + 16) == 0x2222u);
  // Cut, the length still counts what there is.
  const Answer cut = bench.run(in(0, 8));
  check_good(cut, 8);
  BOOST_TEST(get_be32(cut.data.data() + 4) == 16u);
  check_good(bench.run(in(0, 0)), 0);

  check_good(bench.run(in(1)), 8);
  check_good(bench.run(out({kReserve, 0x2222, 0, 5}), {1, 0}), 24);
  const Answer reservation = bench.run(in(1));
  check_good(reservation, 24);
  BOOST_TEST(get_be32(reservation.data.data() + 4) == 16u);
  BOOST_TEST(get_be64(reservation.data.data() + 8) == 0x2222u);
  BOOST_TEST(reservation.data[21] == 5);

  const Answer full = bench.run(in(3));
  BOOST_TEST(get_be32(full.data.data() + 4) == full.data.size() - 8);
  BOOST_TEST(full.data[8 + 12] == 0);
  BOOST_TEST(get_be16(full.data.data() + 8 + 18) == 1);
  const std::size_t id_length = get_be32(full.data.data() + 8 + 20);
  const std::span<const std::uint8_t> id(full.data.data() + 8 + 24, id_length);
  BOOST_TEST(decode_transport_id(id).value() == "guest-a");
  const std::size_t second = 8 + 24 + id_length;
  BOOST_TEST(full.data[second + 12] == 1);
  BOOST_TEST(full.data[second + 13] == 5);

  const Answer capabilities = bench.run(in(2));
  check_good(capabilities, 8);
  BOOST_TEST(capabilities.data == Bytes({0, 8, 0, 0x80, 0xea, 0x01, 0, 0}));
}

BOOST_AUTO_TEST_CASE(who_may_do_what_under_each_type) {
  const struct {
    std::uint8_t type;
    bool stranger_reads;
    bool registrant_writes;
  } kTypes[] = {{1, true, false}, {3, false, false}, {5, true, true},
                {6, false, true}, {7, true, true},   {8, false, true}};
  for (const auto& row : kTypes) {
    Bench bench({.guests = {{.initiator = "holder", .announce_power_on = false},
                            {.initiator = "registrant", .announce_power_on = false},
                            {.initiator = "stranger", .announce_power_on = false}}});
    check_good(bench.run(out({kRegister, 0, 1})), 24);
    check_good(bench.run(out({kRegister, 0, 2}), {1, 0}), 24);
    check_good(bench.run(out({kReserve, 1, 0, row.type})), 24);
    check_good(bench.run(write_block(), {0, 1}), 512);
    const Answer registrant_write = bench.run(write_block(), {1, 1});
    if (row.registrant_writes) {
      check_good(registrant_write, 512);
      check_good(bench.run(read_block(), {1, 1}), 512);
    } else {
      check_status(registrant_write, ScsiStatus::kReservationConflict);
    }
    const Answer stranger_read = bench.run(read_block(), {2, 1});
    if (row.stranger_reads) {
      check_good(stranger_read, 512);
    } else {
      check_status(stranger_read, ScsiStatus::kReservationConflict);
    }
    for (const Bytes& cdb : {range_cdb({0x2a, 0, 1}), range_cdb({0x35, 0, 0}), range_cdb({0x41, 0, 1}), cdb6(0x15),
                             cdb6(0x1a), cdb6(0x1b), cdb6(0x16), cdb6(0x17), cdb6(0x1e, 0, 0, 0, 1)}) {
      check_status(bench.run({.cdb = cdb, .data_out = Bytes(512)}, {2, 0}), ScsiStatus::kReservationConflict);
    }
    check_good(bench.run({.cdb = cdb6(0x00)}, {2, 0}), 0);
    check_good(bench.run({.cdb = cdb6(0x12, 0, 0, 0, 36), .data_in_bytes = 36}, {2, 0}), 36);
    check_good(bench.run({.cdb = cdb6(0x1b, 0, 0, 0, 1)}, {2, 0}), 0);
    check_good(bench.run({.cdb = cdb6(0x1e)}, {2, 0}), 0);
    check_good(bench.run({.cdb = {0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, .data_in_bytes = 8}, {2, 0}), 8);
    check_status(bench.run(out({kReserve, 0, 0, row.type}), {2, 0}), ScsiStatus::kReservationConflict);
    // All is free again after the release.
    check_good(bench.run(out({kRelease, 1, 0, row.type})), 24);
    check_good(bench.run(write_block(), {2, 1}), 512);
  }
}

BOOST_AUTO_TEST_CASE(preempted_guests_hear_of_it_and_their_tasks_end) {
  Bench bench;
  check_good(bench.run(out({kRegister, 0, 1})), 24);
  check_good(bench.run(out({kRegister, 0, 2}), {1, 0}), 24);
  check_good(bench.run(out({kReserve, 1, 0, 3})), 24);
  bench.bdev->pause();
  auto write = bench.start(write_block(), {0, 1});
  bench.bdev->await_paused(1);
  auto preempt = bench.start(out({kPreemptAndAbort, 2, 1, 3}), {1, 0});
  bench.settle();
  BOOST_TEST(!preempt->done());
  bench.bdev->resume();
  const Answer aborted = write->answer();
  BOOST_TEST((aborted.outcome == Outcome::kAborted));
  check_status(aborted, ScsiStatus::kTaskAborted);
  check_good(preempt->answer(), 24);
  check_sense(bench.run(read_block()), {SenseKey::kUnitAttention, 0x2a, 0x05});
  check_status(bench.run(read_block()), ScsiStatus::kReservationConflict);
  check_good(bench.run(write_block(), {1, 1}), 512);
  check_good(bench.run(out({kClear, 2}), {1, 1}), 24);
  check_good(bench.run(write_block()), 512);
}

BOOST_AUTO_TEST_CASE(parameter_lists_are_checked) {
  Bench bench;
  for (std::uint8_t action : {kRegister, kReserve, kRelease, kClear, kPreempt, kPreemptAndAbort, kIgnore}) {
    for (std::uint32_t length : {0u, 1u, 23u, 25u, 0xffffffffu}) {
      Request request = out({action, 0, 1, 1});
      put_be32(request.cdb.data() + 5, length);
      check_sense(bench.run(request), sense::kParameterListLength);
    }
    Request request = out({action, 0, 1, 1});
    request.data_out.resize(23);
    BOOST_TEST((bench.run(request).outcome == Outcome::kOverrun));
  }
  for (std::uint8_t type : {0, 2, 4, 9, 15}) {
    check_invalid_cdb(bench.run(out({kReserve, 0, 0, type})), 2, 3);
    check_invalid_cdb(bench.run(out({kPreempt, 0, 0, type})), 2, 3);
  }
  check_invalid_cdb(bench.run(out({kReserve, 0, 0, 0x11})), 2, 7);
  check_invalid_cdb(bench.run(out({8, 0, 0, 1})), 1, 4);
  check_invalid_cdb(bench.run(in(4)), 1, 4);
  check_invalid_parameter(bench.run(out({kRegister, 0, 1, 0, 0x08})), 20, 3);  // SPEC_I_PT
  check_invalid_parameter(bench.run(out({kIgnore, 0, 1, 0, 0x04})), 20, 2);    // ALL_TG_PT
  check_invalid_parameter(bench.run(out({kRegister, 0, 1, 0, 0x01})), 20, 0);  // APTPL without a store
  check_good(bench.run(in(0)), 8);
  check_good(bench.run(out({kRegister, 0, 1})), 24);
  check_good(bench.run(out({kReserve, 1, 0, 1})), 24);
  check_sense(bench.run(out({kRelease, 1, 0, 3})), sense::kInvalidRelease);
  check_invalid_parameter(bench.run(out({kPreempt, 1, 0, 3})), 8);
}

BOOST_AUTO_TEST_CASE(a_reservation_moves_to_the_named_guest) {
  Bench bench;
  check_good(bench.run(out({kRegister, 0, 1})), 24);
  check_good(bench.run(out({kReserve, 1, 0, 1})), 24);
  auto move = [&](const Bytes& id, std::uint16_t port = 1, int length_error = 0) {
    Bytes list(24);
    put_be64(list.data(), 1);
    put_be64(list.data() + 8, 9);
    list[17] = 0x02;  // UNREG
    put_be16(list.data() + 18, port);
    put_be32(list.data() + 20, static_cast<std::uint32_t>(static_cast<int>(id.size()) + length_error));
    list.insert(list.end(), id.begin(), id.end());
    Request request{.cdb = {0x5f, kMove, 0, 0, 0, 0, 0, 0, 0, 0}, .data_out = list};
    put_be32(request.cdb.data() + 5, static_cast<std::uint32_t>(list.size()));
    return bench.run(request);
  };
  check_invalid_parameter(move(Bytes(24)), 24);
  check_invalid_parameter(move({}), 24);
  check_invalid_parameter(move(encode_transport_id("guest-b"), 2), 24);
  check_invalid_parameter(move(encode_transport_id("guest-a")), 24);
  check_sense(move(encode_transport_id("guest-b"), 1, 1), sense::kParameterListLength);
  Bytes unterminated = encode_transport_id("guest-b");
  std::replace(unterminated.begin() + 4, unterminated.end(), std::uint8_t{0}, std::uint8_t{'x'});
  check_invalid_parameter(move(unterminated), 24);
  check_good(move(encode_transport_id("guest-b")), 24 + encode_transport_id("guest-b").size());
  check_status(bench.run(write_block()), ScsiStatus::kReservationConflict);
  check_good(bench.run(write_block(), {1, 1}), 512);
  check_good(bench.run(out({kRelease, 9, 0, 1}), {1, 0}), 24);
}

BOOST_AUTO_TEST_CASE(reservations_outlive_the_guest_and_the_process_and_with_aptpl_the_power) {
  auto store = std::make_shared<TestStore>();
  {
    Bench bench({.store = store});
    check_good(bench.run(out({kRegister, 0, 1, 0, 0x01})), 24);
    check_good(bench.run(out({kReserve, 1, 0, 3})), 24);
    BOOST_TEST(store->saves == 2);
    BOOST_TEST((store->lasts == ReservationStore::Lasts::kOverPowerLoss));
    BOOST_TEST((bench.run(in(2)).data[3] & 0x01) == 1);
  }
  {
    Bench bench({.store = store});
    check_status(bench.run(read_block(), {1, 0}), ScsiStatus::kReservationConflict);
    check_good(bench.run(write_block(), {0, 1}), 512);
    // What cannot be made durable is not answered with GOOD.
    store->failing = true;
    check_sense(bench.run(out({kRelease, 1, 0, 3})), sense::kInternalTargetFailure);
    store->failing = false;
    // Registering without APTPL: kept for as long as the guest could not tell that the service was away.
    check_good(bench.run(out({kIgnore, 0, 1})), 24);
    BOOST_TEST((store->lasts == ReservationStore::Lasts::kUntilPowerLoss));
  }
  {
    Bench bench({.store = store});
    BOOST_TEST((bench.run(in(2)).data[3] & 0x01) == 0);
    BOOST_TEST(bench.run(in(0)).data[7] == 8);  // one key
    // The last registration takes what was kept with it.
    check_good(bench.run(out({kIgnore, 0, 0})), 24);
    BOOST_TEST(store->state.empty());
  }
  store->state = "nonsense";
  auto bdev = std::make_shared<TestBdev>(TestBdev::Options{});
  BOOST_TEST((LogicalUnit::make({.bdev = bdev, .reservations = store}).error().code == ErrorCode::kCorrupt));
}

// What becomes of a command whose answer died with the process: done before, it is not done again; else it is.
BOOST_AUTO_TEST_CASE(a_command_that_is_handed_in_again_is_done_once) {
  struct Step {
    Out command;
    std::uint64_t generation;  // after it
  };
  // Done twice, each but RESERVE would fail: the keys are others, or gone.
  const Step steps[] = {{{kRegister, 0, 1}, 2},
                        {{kRegister, 1, 2}, 3},
                        {{kReserve, 2, 0, 1}, 3},
                        {{kPreempt, 2, 7, 1}, 4},
                        {{kClear, 2}, 5}};
  auto store = std::make_shared<TestStore>();
  {
    Bench bench({.store = store});
    check_good(bench.run(out({kRegister, 0, 7}), {1, 0}), 24);  // the one to be preempted
  }
  std::uint64_t arrival = 100;
  for (const Step& step : steps) {
    Request request = out(step.command);
    request.arrival = {.number = ++arrival, .again = false};
    {
      // The process did not get to it: its successor does it.
      Bench bench({.store = store});
      request.arrival.again = true;
      check_good(bench.run(request), 24);
    }
    {
      // The process did it, and died before it could say so.
      Bench bench({.store = store});
      check_good(bench.run(request), 24);
      BOOST_TEST(get_be32(bench.run(in(0)).data.data()) == step.generation);
      // Nobody else is taken for it, nor any other command of the same guest.
      check_status(bench.run(request, {1, 0}), ScsiStatus::kReservationConflict);
    }
  }
  // CLEAR has left nothing but what was done.
  Bench bench({.store = store});
  BOOST_TEST(bench.run(in(0)).data[7] == 0);
}

BOOST_AUTO_TEST_CASE(what_was_done_is_remembered_for_the_last_few_commands_of_each_guest) {
  auto store = std::make_shared<TestStore>();
  const auto ignore = [](std::uint64_t key, std::uint64_t arrival, bool again = false) {
    Request request = out({kIgnore, 0, key});
    request.arrival = {.number = arrival, .again = again};
    return request;
  };
  {
    Bench bench({.store = store});
    check_good(bench.run(ignore(1, 1), {1, 0}), 24);
    for (std::uint64_t i = 1; i <= 3 * Reservations::kMaxDone; ++i) check_good(bench.run(ignore(i, i)), 24);
  }
  Bench bench({.store = store});
  const auto key = [&] { return get_be64(bench.run(in(0)).data.data() + 16); };
  constexpr std::uint64_t kLast = 3 * Reservations::kMaxDone;
  check_good(bench.run(ignore(99, kLast - Reservations::kMaxDone + 1, true)), 24);
  BOOST_TEST(key() == kLast);
  check_good(bench.run(ignore(99, kLast - Reservations::kMaxDone, true)), 24);
  BOOST_TEST(key() == 99U);
  // The other guest's is its own.
  check_good(bench.run(ignore(98, 1, true), {1, 0}), 24);
  BOOST_TEST(get_be64(bench.run(in(0)).data.data() + 8) == 1U);
}

BOOST_AUTO_TEST_CASE(reserve_and_release_of_old) {
  Bench bench;
  for (auto [reserve, release] :
       {std::pair{cdb6(0x16), cdb6(0x17)},
        std::pair{Bytes{0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0}, Bytes{0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0}}}) {
    check_good(bench.run({.cdb = reserve}), 0);
    check_good(bench.run({.cdb = reserve}, {0, 1}), 0);
    check_status(bench.run({.cdb = reserve}, {1, 0}), ScsiStatus::kReservationConflict);
    check_status(bench.run(read_block(), {1, 0}), ScsiStatus::kReservationConflict);
    check_status(bench.run({.cdb = cdb6(0x00)}, {1, 0}), ScsiStatus::kReservationConflict);
    check_status(bench.run(in(0), {1, 0}), ScsiStatus::kReservationConflict);
    check_good(bench.run({.cdb = cdb6(0x12, 0, 0, 0, 36), .data_in_bytes = 36}, {1, 0}), 36);
    check_good(bench.run({.cdb = cdb6(0x03, 0, 0, 0, 18), .data_in_bytes = 18}, {1, 0}), 18);
    // Releasing what another holds changes nothing.
    check_good(bench.run({.cdb = release}, {1, 1}), 0);
    check_status(bench.run(write_block(), {1, 0}), ScsiStatus::kReservationConflict);
    check_good(bench.run({.cdb = release}), 0);
    check_good(bench.run(write_block(), {1, 0}), 512);
  }
  // It ends with the nexus.
  check_good(bench.run({.cdb = cdb6(0x16)}), 0);
  for (std::size_t i : {0u, 1u}) bench.on_reactor(i, [&] { bench.guests[0].channels[i].reset(); });
  bench.guests[0].channels.clear();
  bench.guests[0].nexus.reset();
  check_good(bench.run(write_block(), {1, 0}), 512);
  // Not beside persistent ones.
  check_good(bench.run(out({kRegister, 0, 1}), {1, 0}), 24);
  check_status(bench.run({.cdb = cdb6(0x16)}, {1, 0}), ScsiStatus::kReservationConflict);
}
