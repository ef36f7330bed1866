#include "control/state_store.h"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "control/disk_state_keeper.h"

using namespace pollux;
using namespace pollux::control;

namespace {

// SQLite's flushes, and how long each takes beside what the disk needs.
std::atomic<unsigned> flushes = 0;
std::atomic<unsigned> flush_ms = 0;

int counted_flush(long call, int fd) {
  ++flushes;
  std::this_thread::sleep_for(std::chrono::milliseconds(flush_ms));
  return static_cast<int>(syscall(call, fd));
}

}  // namespace

// In the place of the C library's, for all that this program has loaded.
extern "C" int fsync(int fd) {
  return counted_flush(SYS_fsync, fd);
}
extern "C" int fdatasync(int fd) {
  return counted_flush(SYS_fdatasync, fd);
}

namespace {

struct Folder {
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "pollux-state-XXXXXX").string();
    BOOST_REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string path;
};

std::unique_ptr<StateStore> open_store(const std::string& path) {
  auto store = StateStore::open(path);
  BOOST_REQUIRE_MESSAGE(store, store.error().message);
  return std::move(*store);
}

void must(const Status& status) {
  BOOST_REQUIRE_MESSAGE(status, status.error().message);
}

AttachmentRecord scsi_attachment(const std::string& client, std::uint16_t target) {
  AttachmentRecord record;
  record.id = Uuid::random();
  record.volume = Uuid::random();
  record.client = client;
  record.queues = 4;
  record.host = "compute-1";
  record.authorised = true;
  record.target = target;
  return record;
}

}  // namespace

BOOST_AUTO_TEST_CASE(what_was_stored_is_there_after_reopening) {
  Folder folder;
  const PoolRecord pool{Uuid::random(), "fast", {bdev::Spec::Kind::kUring, "/dev/nvme0n1", 0}};
  const AuthorisationRecord authorisation{Uuid::random(), "compute-1", true, Uuid::random()};
  const auto attachment = scsi_attachment("guest-1", 3);
  auto blk = scsi_attachment("guest-2", 0);
  blk.transport = TransportKind::kBlk;
  blk.asked_read_only = blk.read_only = true;
  blk.asked_queues = 2;
  {
    const auto store = open_store(folder.path);
    must(store->put_pool(pool));
    must(store->put_authorisation(authorisation));
    must(store->put_attachment(attachment, ControllerRecord{"guest-1", 4, "compute-1"}));
    must(store->put_attachment(blk, {}));
  }
  const auto store = open_store(folder.path);
  BOOST_TEST((store->pools().value() == std::vector<PoolRecord>{pool}));
  BOOST_TEST((store->authorisations({}).value() == std::vector<AuthorisationRecord>{authorisation}));
  BOOST_TEST((store->authorisation(authorisation.volume, "compute-1").value() == authorisation));
  BOOST_TEST(!store->authorisation(authorisation.volume, "compute-2").value());
  BOOST_TEST((store->controllers().value() == std::vector<ControllerRecord>{{"guest-1", 4, "compute-1"}}));
  BOOST_TEST((store->attachment(attachment.id).value() == attachment));
  BOOST_TEST((store->attachment(blk.id).value() == blk));
  BOOST_TEST(store->attachments().value().size() == 2U);
}

BOOST_AUTO_TEST_CASE(storing_again_and_dropping_twice_succeed) {
  Folder folder;
  const auto store = open_store(folder.path);
  PoolRecord pool{Uuid::random(), "fast", {bdev::Spec::Kind::kRam, "", 1 << 20}};
  must(store->put_pool(pool));
  must(store->put_pool(pool));
  BOOST_TEST(store->pools().value().size() == 1U);
  must(store->drop_pool(pool.id));
  must(store->drop_pool(pool.id));
  BOOST_TEST(store->pools().value().empty());
  const auto volume = Uuid::random();
  must(store->put_authorisation({volume, "a", false, {}}));
  must(store->put_authorisation({volume, "a", true, {}}));
  must(store->put_authorisation({volume, "b", false, {}}));
  BOOST_TEST(store->authorisations(volume).value().size() == 2U);
  must(store->drop_authorisations(volume, "a", std::nullopt));
  BOOST_TEST(store->authorisations(volume).value().size() == 1U);
  must(store->drop_authorisations(volume, "", std::nullopt));
  must(store->drop_authorisations(volume, "", std::nullopt));
  BOOST_TEST(store->authorisations({}).value().empty());
}

BOOST_AUTO_TEST_CASE(a_host_may_write_while_one_of_its_grants_allows_it_and_has_a_right_until_the_last_is_gone) {
  Folder folder;
  const auto store = open_store(folder.path);
  const auto volume = Uuid::random();
  const AuthorisationRecord reads{volume, "a", true, Uuid::random()};
  const AuthorisationRecord writes{volume, "a", false, Uuid::random()};
  const AuthorisationRecord other{volume, "b", false, writes.grant};
  for (const auto& one : {reads, writes, other}) must(store->put_authorisation(one));
  BOOST_TEST((store->authorisation(volume, "a").value() == writes));
  must(store->drop_authorisations(volume, "a", writes.grant));
  must(store->drop_authorisations(volume, "a", writes.grant));
  BOOST_TEST((store->authorisation(volume, "a").value() == reads));
  must(store->drop_authorisations(volume, "a", reads.grant));
  BOOST_TEST(!store->authorisation(volume, "a").value());
  BOOST_TEST((store->authorisation(volume, "b").value() == other));
}

BOOST_AUTO_TEST_CASE(an_attachment_that_conflicts_leaves_nothing_of_its_transaction) {
  Folder folder;
  const auto store = open_store(folder.path);
  const auto first = scsi_attachment("guest", 1);
  must(store->put_attachment(first, ControllerRecord{"guest", 4, "h"}));
  auto second = scsi_attachment("guest", 1);  // the same target
  BOOST_TEST(!store->put_attachment(second, {}));
  BOOST_TEST(!store->remembered_target("guest", second.volume).value());
  BOOST_TEST(store->remembered_target("guest", first.volume).value().value() == 1);
  BOOST_TEST(store->attachments().value().size() == 1U);
}

BOOST_AUTO_TEST_CASE(a_target_is_remembered_until_it_is_given_away_or_the_controller_goes) {
  Folder folder;
  const auto store = open_store(folder.path);
  const auto first = scsi_attachment("guest", 1);
  must(store->put_attachment(first, ControllerRecord{"guest", 4, "h"}));
  must(store->drop_attachment(first.id));
  BOOST_TEST(store->remembered_target("guest", first.volume).value().value() == 1);
  const auto second = scsi_attachment("guest", 1);
  must(store->put_attachment(second, {}));
  BOOST_TEST(!store->remembered_target("guest", first.volume).value());
  must(store->drop_attachment(second.id));
  must(store->drop_controller("guest"));
  BOOST_TEST(!store->remembered_target("guest", second.volume).value());
  BOOST_TEST(!store->controller("guest").value());
}

BOOST_AUTO_TEST_CASE(a_second_service_on_one_folder_is_refused) {
  Folder folder;
  const auto store = open_store(folder.path);
  const auto second = StateStore::open(folder.path);
  BOOST_REQUIRE(!second);
  BOOST_TEST(to_string(second.error().code) == "busy");
}

BOOST_AUTO_TEST_CASE(reservations_are_kept_replaced_and_forgotten) {
  Folder folder;
  const ReservationRecord record{*Uuid::parse("00000000-0000-4000-8000-000000000001"), "first line\nsecond", ""};
  ReservationRecord other = record;
  other.boot_id = "a start of the host";
  {
    const auto store = open_store(folder.path);
    BOOST_TEST(!store->reservation(record.volume).value());
    must(store->put_reservation(record));
    must(store->put_reservation(other));
  }
  const auto store = open_store(folder.path);
  BOOST_TEST((store->reservation(record.volume).value() == other));
  must(store->drop_reservation(record.volume));
  BOOST_TEST(!store->reservation(record.volume).value());
}

BOOST_AUTO_TEST_CASE(a_volume_that_is_deleted_takes_its_rights_and_reservations_with_it_and_no_others) {
  Folder folder;
  const auto store = open_store(folder.path);
  const Uuid gone = Uuid::random(), other = Uuid::random();
  for (const Uuid& volume : {gone, other}) {
    must(store->put_authorisation({volume, "compute-1", false, {}}));
    must(store->put_reservation({volume, "held", ""}));
  }
  must(store->forget_volume(gone));
  BOOST_TEST(store->authorisations(gone)->empty());
  BOOST_TEST(!store->reservation(gone).value());
  BOOST_TEST(store->authorisations(other)->size() == 1u);
  BOOST_TEST(store->reservation(other).value().has_value());
}

BOOST_AUTO_TEST_CASE(folders_of_earlier_schemas_are_taken_over_with_what_they_hold) {
  // Each undoes what the next version brought.
  const std::string to_6 = "DROP TABLE host;";
  const std::string to_5 = to_6 + "DROP TABLE losses;";
  const std::string to_4 = to_5 + "ALTER TABLE attachments DROP COLUMN scsi_names;";
  const std::string to_3 = to_4 + "DROP TABLE settings;";
  const std::string to_2 = to_3 + R"sql(
DROP TABLE grants;
CREATE TABLE authorisations (
  volume_id TEXT NOT NULL, host TEXT NOT NULL, read_only INTEGER NOT NULL, PRIMARY KEY (volume_id, host)
) STRICT, WITHOUT ROWID;
INSERT INTO authorisations VALUES ('00000000-0000-4000-8000-000000000001', 'compute-1', 1);
)sql";
  const std::string to_1 = to_2 + "DROP TABLE reservations;";
  const AuthorisationRecord kept{*Uuid::parse("00000000-0000-4000-8000-000000000001"), "compute-1", true, {}};
  for (const auto& [version, earlier] : {std::pair{1, to_1}, std::pair{2, to_2}, std::pair{3, to_3},
                                          std::pair{4, to_4}, std::pair{5, to_5}, std::pair{6, to_6}}) {
    Folder folder;
    const auto attached = scsi_attachment("guest", 3);
    {
      const auto store = open_store(folder.path);
      must(store->put_attachment(attached, ControllerRecord{"guest", 4, "compute-1"}));
      if (version >= 3) must(store->put_authorisation(kept));
    }
    {
      auto database = sqlite::Database::open(folder.path + "/state.db");
      BOOST_REQUIRE(database);
      must((*database)->run((earlier + "PRAGMA user_version=" + std::to_string(version)).c_str()));
    }
    for (int round = 0; round < 2; ++round) {
      const auto store = open_store(folder.path);
      BOOST_TEST((store->attachment(attached.id).value() == attached));
      BOOST_TEST((store->authorisations({}).value() == std::vector<AuthorisationRecord>{kept}));
      must(store->put_reservation({kept.volume, "x", ""}));
      must(store->put_setting({kept.volume, "guest", "x", ""}));
      must(store->put_losses({attached.volume}, "boot"));
      BOOST_TEST(store->has_loss(attached.volume).value());
      BOOST_TEST(store->boot_id().value() == (round == 0 ? "" : "boot"));
      must(store->put_boot_id("another"));
      must(store->put_boot_id("boot"));
    }
  }
}

BOOST_AUTO_TEST_CASE(what_guests_have_set_ends_with_their_attachments) {
  Folder folder;
  auto store = open_store(folder.path);
  auto first = scsi_attachment("first", 0);
  auto second = scsi_attachment("second", 0);
  auto blk = scsi_attachment("third", 0);
  second.volume = blk.volume = first.volume;
  blk.transport = TransportKind::kBlk;
  for (const auto& record : {first, second, blk}) {
    must(store->put_attachment(record, ControllerRecord{record.client, 4, "compute-1"}));
  }
  const Uuid other = Uuid::random();
  for (const char* client : {"", "first", "second", "third"}) {
    must(store->put_setting({first.volume, client, std::string("set by ") + client, ""}));
    must(store->put_setting({other, client, "another volume's", ""}));
  }
  const auto set = [&](const char* client) { return store->setting(first.volume, client).value().has_value(); };
  must(store->drop_attachment(first.id));
  BOOST_TEST(!set("first"));
  BOOST_TEST(set("second"));
  // What they share stays with those that are left.
  BOOST_TEST(set(""));
  must(store->drop_attachment(second.id));
  BOOST_TEST(!set("second"));
  BOOST_TEST(!set(""));
  store.reset();
  store = open_store(folder.path);
  const SettingRecord thirds{first.volume, "third", "set by third", ""};
  BOOST_TEST((store->setting(first.volume, "third").value() == thirds));
  must(store->drop_attachment(blk.id));
  BOOST_TEST(!set("third"));
  for (const char* client : {"", "first", "second", "third"}) {
    BOOST_TEST(store->setting(other, client).value().has_value());
  }
}

BOOST_AUTO_TEST_CASE(settings_are_written_in_order_and_lapse_with_the_host_when_they_are_to) {
  Folder folder;
  const auto store = open_store(folder.path);
  const Uuid volume = Uuid::random();
  std::string answers;
  {
    DiskStateKeeper keeper(*store, "boot 1");
    const auto answered = [&](const char* name) {
      return [&answers, name](const Status& status) { answers += status ? name : "failed"; };
    };
    keeper.save(volume, "", "a", true, answered("a"));
    keeper.save(volume, "guest", "b", false, answered("b"));
    keeper.save(volume, "", "c", true, answered("c"));
    keeper.save(volume, "gone", "d", true, answered("d"));
    keeper.save(volume, "gone", "", true, answered("e"));
  }
  BOOST_TEST(answers == "abcde");
  BOOST_TEST(DiskStateKeeper(*store, "boot 1").load(volume, "guest").value() == "b");
  DiskStateKeeper keeper(*store, "boot 2");
  BOOST_TEST(keeper.load(volume, "").value() == "c");
  BOOST_TEST(keeper.load(volume, "guest").value() == "");
  BOOST_TEST(keeper.load(volume, "gone").value() == "");
  BOOST_TEST(!store->setting(volume, "guest").value());
}

BOOST_AUTO_TEST_CASE(a_loss_is_owed_over_restarts_until_told_detached_or_the_host_starts_anew) {
  Folder folder;
  const auto told = scsi_attachment("first", 0), untold = scsi_attachment("second", 0);
  const Uuid never_attached = Uuid::random();
  // Attached twice.
  auto shared = scsi_attachment("third", 0);
  shared.volume = untold.volume;
  {
    const auto store = open_store(folder.path);
    for (const auto& record : {told, untold, shared}) {
      must(store->put_attachment(record, ControllerRecord{record.client, 4, "compute-1"}));
    }
    // What is handed over is written, in its order, before the keeper ends.
    DiskStateKeeper keeper(*store, "boot 1");
    keeper.told(untold.volume);
    keeper.owe({told.volume, untold.volume, never_attached});
    keeper.told(told.volume);
    keeper.owe({untold.volume});
  }
  auto store = open_store(folder.path);
  must(store->drop_losses_before("boot 1"));
  BOOST_TEST(!store->has_loss(told.volume).value());
  BOOST_TEST(store->has_loss(untold.volume).value());
  BOOST_TEST(!store->has_loss(never_attached).value());
  // With the last attachment, and not before; no other volume's.
  must(store->put_losses({told.volume}, "boot 1"));
  must(store->drop_attachment(shared.id));
  BOOST_TEST(store->has_loss(untold.volume).value());
  must(store->drop_attachment(untold.id));
  BOOST_TEST(!store->has_loss(untold.volume).value());
  BOOST_TEST(store->has_loss(told.volume).value());
  must(store->drop_losses_before("boot 2"));
  BOOST_TEST(!store->has_loss(told.volume).value());
}

BOOST_AUTO_TEST_CASE(reservations_end_with_a_power_loss_unless_they_were_to_outlive_it) {
  Folder folder;
  const auto store = open_store(folder.path);
  const Uuid lasting = *Uuid::parse("00000000-0000-4000-8000-000000000001");
  const Uuid passing = *Uuid::parse("00000000-0000-4000-8000-000000000002");
  int answers = 0;
  const auto answered = [&answers](Status status) { answers += status.has_value(); };
  {
    DiskStateKeeper keeper(*store, "boot 1");
    keeper.save(lasting, "a", true, answered);
    keeper.save(passing, "b", false, answered);
  }
  BOOST_TEST(answers == 2);
  {
    DiskStateKeeper keeper(*store, "boot 1");
    BOOST_TEST(keeper.load(lasting).value() == "a");
    BOOST_TEST(keeper.load(passing).value() == "b");
  }
  DiskStateKeeper keeper(*store, "boot 2");
  BOOST_TEST(keeper.load(lasting).value() == "a");
  BOOST_TEST(keeper.load(passing).value() == "");
  BOOST_TEST(!store->reservation(passing).value());
}

BOOST_AUTO_TEST_CASE(changes_that_come_together_share_their_flushes_and_fail_alone) {
  Folder folder;
  auto store = open_store(folder.path);
  constexpr unsigned kThreads = 16;
  constexpr unsigned kEach = 10;
  const auto taken = scsi_attachment("taken", 1);
  must(store->put_attachment(taken, ControllerRecord{"taken", 4, "compute-1"}));
  const unsigned before = flushes;
  flush_ms = 2;
  std::vector<std::thread> threads;
  std::atomic<unsigned> refused = 0;
  for (unsigned i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, host = "host-" + std::to_string(i)] {
      for (unsigned each = 0; each < kEach; ++each) {
        if (!store->put_authorisation({Uuid::random(), host, false, {}})) ++refused;
        // The id is in use.
        if (!store->put_attachment(taken, std::nullopt)) ++refused;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  flush_ms = 0;
  BOOST_TEST(refused == kThreads * kEach);
  BOOST_TEST(store->authorisations({})->size() == kThreads * kEach);
  BOOST_TEST(store->attachments()->size() == 1u);
  // Alone, each of those that succeed has one.
  BOOST_TEST(flushes - before < kThreads * kEach / 2);
  store.reset();
  store = open_store(folder.path);
  BOOST_TEST(store->authorisations({})->size() == kThreads * kEach);
}

BOOST_AUTO_TEST_CASE(a_newer_schema_a_foreign_file_and_garbage_are_refused_by_name) {
  Folder folder;
  open_store(folder.path).reset();
  const std::string file = folder.path + "/state.db";
  {
    auto database = sqlite::Database::open(file);
    BOOST_REQUIRE(database);
    must((*database)->run("PRAGMA user_version=99"));
  }
  auto newer = StateStore::open(folder.path);
  BOOST_REQUIRE(!newer);
  BOOST_TEST(to_string(newer.error().code) == "unsupported");
  BOOST_TEST(newer.error().message.find(file) != std::string::npos);
  BOOST_TEST(newer.error().message.find("version 99") != std::string::npos);
  {
    auto database = sqlite::Database::open(file);
    must((*database)->run("PRAGMA user_version=1; PRAGMA application_id=7"));
  }
  auto foreign = StateStore::open(folder.path);
  BOOST_REQUIRE(!foreign);
  BOOST_TEST(to_string(foreign.error().code) == "unsupported");
  std::filesystem::remove(file);
  std::filesystem::remove(file + "-wal");
  std::ofstream(file) << std::string(8192, 'x');
  auto garbage = StateStore::open(folder.path);
  BOOST_REQUIRE(!garbage);
  BOOST_TEST(to_string(garbage.error().code) == "corrupt");
  BOOST_TEST(garbage.error().message.find(file) != std::string::npos);
}

// A child stores attachments and says so after each; it is killed in the middle of that. Whatever it said is there.
BOOST_AUTO_TEST_CASE(a_stored_record_survives_the_death_of_the_process) {
  Folder folder;
  int said[2];
  BOOST_REQUIRE(pipe(said) == 0);
  const pid_t child = fork();
  BOOST_REQUIRE(child >= 0);
  if (child == 0) {
    auto store = StateStore::open(folder.path);
    if (!store) _exit(1);
    for (std::uint16_t i = 0;; ++i) {
      const auto client = "guest-" + std::to_string(i);
      const auto record = scsi_attachment(client, i);
      if (!(*store)->put_attachment(record, ControllerRecord{client, 4, "h"})) _exit(2);
      if (write(said[1], record.id.bytes.data(), 16) != 16) _exit(3);
    }
  }
  close(said[1]);
  std::vector<Uuid> stored;
  Uuid id;
  while (stored.size() < 20 && read(said[0], id.bytes.data(), 16) == 16) stored.push_back(id);
  kill(child, SIGKILL);
  while (read(said[0], id.bytes.data(), 16) == 16) stored.push_back(id);
  close(said[0]);
  int status = 0;
  BOOST_REQUIRE(waitpid(child, &status, 0) == child);
  BOOST_REQUIRE(WIFSIGNALED(status));
  BOOST_TEST(stored.size() >= 20U);
  const auto store = open_store(folder.path);
  for (const auto& known : stored) {
    const auto record = store->attachment(known).value();
    BOOST_REQUIRE(record);
    BOOST_TEST(store->controller(record->client).value().has_value());
    BOOST_TEST(store->remembered_target(record->client, record->volume).value().value() == record->target);
  }
  // One more at most: stored, and killed before it could say so.
  BOOST_TEST(store->attachments().value().size() <= stored.size() + 1);
}
