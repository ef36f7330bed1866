#include "control/state_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <system_error>
#include <utility>

namespace pollux::control {

namespace {

using sqlite::Statement;
using sqlite::Transaction;

// "PLUX": tells our file from any other SQLite file.
constexpr std::int64_t kApplicationId = 0x504C5558;
constexpr std::int64_t kSchemaVersion = 7;

constexpr const char* kSchema = R"sql(
CREATE TABLE pools (
  pool_id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind INTEGER NOT NULL, path TEXT NOT NULL, size_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE authorisations (
  volume_id TEXT NOT NULL, host TEXT NOT NULL, read_only INTEGER NOT NULL, PRIMARY KEY (volume_id, host)
) STRICT, WITHOUT ROWID;
CREATE TABLE controllers (client TEXT PRIMARY KEY, queues INTEGER NOT NULL, host TEXT NOT NULL) STRICT;
CREATE TABLE attachments (
  attachment_id TEXT PRIMARY KEY, volume_id TEXT NOT NULL, client TEXT NOT NULL, transport INTEGER NOT NULL,
  asked_queues INTEGER NOT NULL, asked_read_only INTEGER NOT NULL, queues INTEGER NOT NULL, read_only INTEGER NOT NULL,
  host TEXT NOT NULL, authorised INTEGER NOT NULL, target INTEGER,
  UNIQUE (client, volume_id), UNIQUE (client, target)
) STRICT;
CREATE TABLE targets (
  client TEXT NOT NULL, volume_id TEXT NOT NULL, target INTEGER NOT NULL, PRIMARY KEY (client, volume_id)
) STRICT, WITHOUT ROWID;
)sql";

// What version 2 has beside version 1.
constexpr const char* kSchemaOf2 =
    "CREATE TABLE reservations (volume_id TEXT PRIMARY KEY, state TEXT NOT NULL, boot_id TEXT NOT NULL) STRICT, "
    "WITHOUT ROWID;";

// Version 3 lets a host hold several grants of a volume.
constexpr const char* kSchemaOf3 = R"sql(
CREATE TABLE grants (
  volume_id TEXT NOT NULL, host TEXT NOT NULL, grant_id TEXT NOT NULL, read_only INTEGER NOT NULL,
  PRIMARY KEY (volume_id, host, grant_id)
) STRICT, WITHOUT ROWID;
INSERT INTO grants SELECT volume_id, host, '00000000-0000-0000-0000-000000000000', read_only FROM authorisations;
DROP TABLE authorisations;
)sql";

// What version 4 has beside version 3.
constexpr const char* kSchemaOf4 =
    "CREATE TABLE settings (volume_id TEXT NOT NULL, client TEXT NOT NULL, state TEXT NOT NULL, boot_id TEXT NOT NULL, "
    "PRIMARY KEY (volume_id, client)) STRICT, WITHOUT ROWID;";

// What version 5 has beside version 4.
constexpr const char* kSchemaOf5 = "ALTER TABLE attachments ADD COLUMN scsi_names INTEGER NOT NULL DEFAULT 1;";

// What version 6 has beside version 5.
constexpr const char* kSchemaOf6 =
    "CREATE TABLE losses (volume_id TEXT PRIMARY KEY, boot_id TEXT NOT NULL) STRICT, WITHOUT ROWID;";

// What version 7 has beside version 6: one row at most.
constexpr const char* kSchemaOf7 = "CREATE TABLE host (boot_id TEXT NOT NULL) STRICT;";

// From version 1 on, one version each.
constexpr const char* kUpgrades[] = {kSchemaOf2, kSchemaOf3, kSchemaOf4, kSchemaOf5, kSchemaOf6, kSchemaOf7};
static_assert(std::size(kUpgrades) == kSchemaVersion - 1);

constexpr const char* kAttachmentColumns =
    "attachment_id, volume_id, client, transport, asked_queues, asked_read_only, queues, read_only, host, authorised, "
    "target, scsi_names";

Result<std::int64_t> pragma(sqlite::Database& database, const char* sql) {
  Statement statement(database, sql);
  if (!statement.step()) {
    POLLUX_TRY(statement.status());
    return fail(ErrorCode::kCorrupt, database.path() + " does not answer " + sql);
  }
  return statement.integer(0);
}

Status make_folder(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return {};
  std::filesystem::create_directories(path, error);
  if (error) return fail(ErrorCode::kIoError, "cannot make the folder " + path + ": " + error.message());
  if (chmod(path.c_str(), 0750) != 0) {
    return fail(ErrorCode::kIoError, "cannot set the mode of " + path + ": " + std::strerror(errno));
  }
  return {};
}

// A record that does not parse was not written by this program.
Result<Uuid> read_uuid(const Statement& statement, int column, const sqlite::Database& database) {
  auto id = Uuid::parse(statement.text(column));
  if (!id) return fail(ErrorCode::kCorrupt, database.path() + " holds the id '" + statement.text(column) + "'");
  return id;
}

std::string file_in(const std::string& state_dir) {
  return state_dir + "/state.db";
}

}  // namespace

StateStore::~StateStore() {
  commits_.reset();
  database_.reset();
  if (lock_fd_ >= 0) close(lock_fd_);
}

bool StateStore::is_new(const std::string& state_dir) {
  std::error_code error;
  return !std::filesystem::exists(file_in(state_dir), error) && !error;
}

Result<std::unique_ptr<StateStore>> StateStore::open(const std::string& state_dir) {
  POLLUX_TRY(make_folder(state_dir));
  std::unique_ptr<StateStore> store(new StateStore);
  const std::string lock_path = state_dir + "/lock";
  store->lock_fd_ = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640);
  if (store->lock_fd_ < 0) {
    return fail(ErrorCode::kIoError, "cannot open " + lock_path + ": " + std::strerror(errno));
  }
  if (flock(store->lock_fd_, LOCK_EX | LOCK_NB) != 0) {
    return fail(ErrorCode::kBusy, "another polluxd uses the state directory " + state_dir);
  }
  auto database = sqlite::Database::open(file_in(state_dir));
  if (!database) return fail(std::move(database.error()));
  store->database_ = std::move(*database);
  store->commits_ = std::make_unique<GroupCommit>(*store->database_, store->mutex_);
  POLLUX_TRY(store->prepare());
  return store;
}

Status StateStore::prepare() {
  auto& database = *database_;
  // EXCLUSIVE: one process by design, and no shared-memory file beside it.
  POLLUX_TRY(database.run("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"));
  {
    Statement check(database, "PRAGMA quick_check(1)");
    if (!check.step() || check.text(0) != "ok") {
      POLLUX_TRY(check.status());
      return fail(ErrorCode::kCorrupt, database.path() + " is damaged: " + check.text(0));
    }
  }
  const auto application = pragma(database, "PRAGMA application_id");
  if (!application) return fail(application.error());
  const auto version = pragma(database, "PRAGMA user_version");
  if (!version) return fail(version.error());
  const auto tables = pragma(database, "SELECT count(*) FROM sqlite_schema");
  if (!tables) return fail(tables.error());
  if (*application == 0 && *version == 0 && *tables == 0) {
    Transaction transaction(database);
    POLLUX_TRY(transaction.begun());
    POLLUX_TRY(database.run(kSchema));
    for (const char* upgrade : kUpgrades) POLLUX_TRY(database.run(upgrade));
    POLLUX_TRY(database.run(("PRAGMA application_id=" + std::to_string(kApplicationId)).c_str()));
    POLLUX_TRY(database.run(("PRAGMA user_version=" + std::to_string(kSchemaVersion)).c_str()));
    return transaction.commit();
  }
  if (*application != kApplicationId) {
    return fail(ErrorCode::kUnsupported, database.path() + " is an SQLite file, but not polluxd's state");
  }
  if (*version > kSchemaVersion) {
    return fail(ErrorCode::kUnsupported, database.path() + " has schema version " + std::to_string(*version) +
                                             ", this polluxd knows up to " + std::to_string(kSchemaVersion) +
                                             ": run the newer polluxd that wrote it");
  }
  if (*version == kSchemaVersion) return {};
  Transaction transaction(database);
  POLLUX_TRY(transaction.begun());
  for (std::int64_t from = std::max<std::int64_t>(*version, 1); from < kSchemaVersion; ++from) {
    POLLUX_TRY(database.run(kUpgrades[from - 1]));
  }
  POLLUX_TRY(database.run(("PRAGMA user_version=" + std::to_string(kSchemaVersion)).c_str()));
  return transaction.commit();
}

Status StateStore::put_pool(const PoolRecord& pool) {
  return commits_->run([&]() -> Status {
    return Statement(*database_,
                     "INSERT INTO pools (pool_id, name, kind, path, size_bytes) VALUES (?, ?, ?, ?, ?) ON CONFLICT "
                     "(pool_id) DO "
                     "UPDATE SET name = excluded.name, kind = excluded.kind, path = excluded.path, size_bytes = "
                     "excluded.size_bytes")
        .bind(1, pool.id.to_string())
        .bind(2, pool.name)
        .bind(3, static_cast<std::int64_t>(pool.bdev.kind))
        .bind(4, pool.bdev.path)
        .bind(5, static_cast<std::int64_t>(pool.bdev.size_bytes))
        .finish();
  });
}

Status StateStore::drop_pool(const Uuid& id) {
  return commits_->run([&]() -> Status {
    return Statement(*database_, "DELETE FROM pools WHERE pool_id = ?").bind(1, id.to_string()).finish();
  });
}

Result<std::vector<PoolRecord>> StateStore::pools() {
  const std::lock_guard lock(mutex_);
  std::vector<PoolRecord> pools;
  Statement statement(*database_, "SELECT pool_id, name, kind, path, size_bytes FROM pools ORDER BY rowid");
  while (statement.step()) {
    const auto id = read_uuid(statement, 0, *database_);
    if (!id) return fail(id.error());
    PoolRecord pool{*id, statement.text(1), {}};
    pool.bdev.kind = static_cast<bdev::Spec::Kind>(statement.integer(2));
    pool.bdev.path = statement.text(3);
    pool.bdev.size_bytes = static_cast<std::uint64_t>(statement.integer(4));
    pools.push_back(std::move(pool));
  }
  POLLUX_TRY(statement.status());
  return pools;
}

Status StateStore::put_authorisation(const AuthorisationRecord& authorisation) {
  return commits_->run([&]() -> Status {
    return Statement(*database_,
                     "INSERT OR REPLACE INTO grants (volume_id, host, grant_id, read_only) VALUES (?, ?, ?, ?)")
        .bind(1, authorisation.volume.to_string())
        .bind(2, authorisation.host)
        .bind(3, authorisation.grant.to_string())
        .bind(4, std::int64_t{authorisation.read_only})
        .finish();
  });
}

Status StateStore::drop_authorisations(const Uuid& volume, const std::string& host, const std::optional<Uuid>& grant) {
  return commits_->run([&]() -> Status {
    return Statement(*database_,
                     "DELETE FROM grants WHERE volume_id = ?1 AND (?2 = '' OR host = ?2) AND "
                     "(?3 = '' OR grant_id = ?3)")
        .bind(1, volume.to_string())
        .bind(2, host)
        .bind(3, grant ? grant->to_string() : std::string())
        .finish();
  });
}

Result<std::optional<AuthorisationRecord>> StateStore::authorisation(const Uuid& volume, const std::string& host) {
  const std::lock_guard lock(mutex_);
  Statement statement(
      *database_, "SELECT grant_id, read_only FROM grants WHERE volume_id = ? AND host = ? ORDER BY read_only LIMIT 1");
  statement.bind(1, volume.to_string()).bind(2, host);
  std::optional<AuthorisationRecord> found;
  if (statement.step()) {
    const auto grant = read_uuid(statement, 0, *database_);
    if (!grant) return fail(grant.error());
    found = AuthorisationRecord{volume, host, statement.integer(1) != 0, *grant};
  }
  POLLUX_TRY(statement.status());
  return found;
}

Result<std::vector<AuthorisationRecord>> StateStore::authorisations(const std::optional<Uuid>& volume) {
  const std::lock_guard lock(mutex_);
  std::vector<AuthorisationRecord> found;
  Statement statement(
      *database_,
      "SELECT volume_id, host, read_only, grant_id FROM grants WHERE ?1 = '' OR volume_id = ?1 ORDER BY 1, 2, 4");
  statement.bind(1, volume ? volume->to_string() : std::string());
  while (statement.step()) {
    const auto id = read_uuid(statement, 0, *database_);
    if (!id) return fail(id.error());
    const auto grant = read_uuid(statement, 3, *database_);
    if (!grant) return fail(grant.error());
    found.push_back({*id, statement.text(1), statement.integer(2) != 0, *grant});
  }
  POLLUX_TRY(statement.status());
  return found;
}

Status StateStore::put_controller(const ControllerRecord& controller) {
  return commits_->run([&]() -> Status {
    return Statement(*database_, "INSERT OR REPLACE INTO controllers (client, queues, host) VALUES (?, ?, ?)")
        .bind(1, controller.client)
        .bind(2, std::int64_t{controller.queues})
        .bind(3, controller.host)
        .finish();
  });
}

Status StateStore::drop_controller(const std::string& client) {
  return commits_->run([&]() -> Status {
    POLLUX_TRY(Statement(*database_, "DELETE FROM controllers WHERE client = ?").bind(1, client).finish());
    POLLUX_TRY(Statement(*database_, "DELETE FROM targets WHERE client = ?").bind(1, client).finish());
    return {};
  });
}

Result<std::optional<ControllerRecord>> StateStore::controller(const std::string& client) {
  const std::lock_guard lock(mutex_);
  Statement statement(*database_, "SELECT queues, host FROM controllers WHERE client = ?");
  statement.bind(1, client);
  std::optional<ControllerRecord> found;
  if (statement.step()) {
    found = ControllerRecord{client, static_cast<std::uint32_t>(statement.integer(0)), statement.text(1)};
  }
  POLLUX_TRY(statement.status());
  return found;
}

Result<std::vector<ControllerRecord>> StateStore::controllers() {
  const std::lock_guard lock(mutex_);
  std::vector<ControllerRecord> found;
  Statement statement(*database_, "SELECT client, queues, host FROM controllers ORDER BY client");
  while (statement.step()) {
    found.push_back({statement.text(0), static_cast<std::uint32_t>(statement.integer(1)), statement.text(2)});
  }
  POLLUX_TRY(statement.status());
  return found;
}

Status StateStore::put_attachment(const AttachmentRecord& attachment,
                                  const std::optional<ControllerRecord>& controller) {
  return commits_->run([&]() -> Status {
    const bool scsi = attachment.transport == TransportKind::kScsi;
    if (controller) {
      POLLUX_TRY(Statement(*database_, "INSERT INTO controllers (client, queues, host) VALUES (?, ?, ?)")
                     .bind(1, controller->client)
                     .bind(2, std::int64_t{controller->queues})
                     .bind(3, controller->host)
                     .finish());
    }
    if (scsi) {
      POLLUX_TRY(Statement(*database_, "INSERT OR REPLACE INTO targets (client, volume_id, target) VALUES (?, ?, ?)")
                     .bind(1, attachment.client)
                     .bind(2, attachment.volume.to_string())
                     .bind(3, std::int64_t{attachment.target})
                     .finish());
      // The place of a volume that is no longer attached may have been given away.
      POLLUX_TRY(Statement(*database_, "DELETE FROM targets WHERE client = ? AND target = ? AND volume_id <> ?")
                     .bind(1, attachment.client)
                     .bind(2, std::int64_t{attachment.target})
                     .bind(3, attachment.volume.to_string())
                     .finish());
    }
    const std::string sql =
        "INSERT INTO attachments (" + std::string(kAttachmentColumns) + ") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    Statement insert(*database_, sql.c_str());
    insert.bind(1, attachment.id.to_string())
        .bind(2, attachment.volume.to_string())
        .bind(3, attachment.client)
        .bind(4, static_cast<std::int64_t>(attachment.transport))
        .bind(5, std::int64_t{attachment.asked_queues})
        .bind(6, std::int64_t{attachment.asked_read_only})
        .bind(7, std::int64_t{attachment.queues})
        .bind(8, std::int64_t{attachment.read_only})
        .bind(9, attachment.host)
        .bind(10, std::int64_t{attachment.authorised})
        .bind(12, static_cast<std::int64_t>(attachment.scsi_names));
    if (scsi) {
      insert.bind(11, std::int64_t{attachment.target});
    } else {
      insert.bind_null(11);
    }
    POLLUX_TRY(insert.finish());
    return {};
  });
}

Status StateStore::drop_attachment(const Uuid& id) {
  return commits_->run([&]() -> Status {
    POLLUX_TRY(Statement(*database_,
                         "DELETE FROM settings WHERE (volume_id, client) IN "
                         "(SELECT volume_id, client FROM attachments WHERE attachment_id = ?)")
                   .bind(1, id.to_string())
                   .finish());
    POLLUX_TRY(Statement(*database_,
                         "DELETE FROM settings WHERE client = '' AND "
                         "volume_id = (SELECT volume_id FROM attachments WHERE attachment_id = ?1) AND NOT EXISTS "
                         "(SELECT 1 FROM attachments other WHERE other.volume_id = settings.volume_id AND "
                         "other.transport = ?2 AND other.attachment_id <> ?1)")
                   .bind(1, id.to_string())
                   .bind(2, static_cast<std::int64_t>(TransportKind::kScsi))
                   .finish());
    POLLUX_TRY(Statement(*database_,
                         "DELETE FROM losses WHERE "
                         "volume_id = (SELECT volume_id FROM attachments WHERE attachment_id = ?1) AND NOT EXISTS "
                         "(SELECT 1 FROM attachments other WHERE other.volume_id = losses.volume_id AND "
                         "other.attachment_id <> ?1)")
                   .bind(1, id.to_string())
                   .finish());
    return Statement(*database_, "DELETE FROM attachments WHERE attachment_id = ?").bind(1, id.to_string()).finish();
  });
}

Result<std::vector<AttachmentRecord>> StateStore::read_attachments(Statement& statement) {
  std::vector<AttachmentRecord> found;
  while (statement.step()) {
    const auto id = read_uuid(statement, 0, *database_);
    if (!id) return fail(id.error());
    const auto volume = read_uuid(statement, 1, *database_);
    if (!volume) return fail(volume.error());
    AttachmentRecord record;
    record.id = *id;
    record.volume = *volume;
    record.client = statement.text(2);
    record.transport = static_cast<TransportKind>(statement.integer(3));
    record.asked_queues = static_cast<std::uint32_t>(statement.integer(4));
    record.asked_read_only = statement.integer(5) != 0;
    record.queues = static_cast<std::uint32_t>(statement.integer(6));
    record.read_only = statement.integer(7) != 0;
    record.host = statement.text(8);
    record.authorised = statement.integer(9) != 0;
    record.target = static_cast<std::uint16_t>(statement.integer(10));
    record.scsi_names = static_cast<ScsiNames>(statement.integer(11));
    found.push_back(std::move(record));
  }
  POLLUX_TRY(statement.status());
  return found;
}

Result<std::optional<AttachmentRecord>> StateStore::attachment(const Uuid& id) {
  const std::lock_guard lock(mutex_);
  const std::string sql = "SELECT " + std::string(kAttachmentColumns) + " FROM attachments WHERE attachment_id = ?";
  Statement statement(*database_, sql.c_str());
  statement.bind(1, id.to_string());
  auto found = read_attachments(statement);
  if (!found) return fail(std::move(found.error()));
  if (found->empty()) return std::optional<AttachmentRecord>();
  return std::optional<AttachmentRecord>(std::move(found->front()));
}

Result<std::vector<AttachmentRecord>> StateStore::attachments() {
  const std::lock_guard lock(mutex_);
  const std::string sql = "SELECT " + std::string(kAttachmentColumns) + " FROM attachments ORDER BY attachment_id";
  Statement statement(*database_, sql.c_str());
  return read_attachments(statement);
}

Result<std::optional<std::uint16_t>> StateStore::remembered_target(const std::string& client, const Uuid& volume) {
  const std::lock_guard lock(mutex_);
  Statement statement(*database_, "SELECT target FROM targets WHERE client = ? AND volume_id = ?");
  statement.bind(1, client).bind(2, volume.to_string());
  std::optional<std::uint16_t> found;
  if (statement.step()) found = static_cast<std::uint16_t>(statement.integer(0));
  POLLUX_TRY(statement.status());
  return found;
}

Result<std::vector<std::uint16_t>> StateStore::remembered_targets(const std::string& client) {
  const std::lock_guard lock(mutex_);
  std::vector<std::uint16_t> found;
  Statement statement(*database_, "SELECT target FROM targets WHERE client = ? ORDER BY target");
  statement.bind(1, client);
  while (statement.step()) found.push_back(static_cast<std::uint16_t>(statement.integer(0)));
  POLLUX_TRY(statement.status());
  return found;
}

Status StateStore::put_reservation(const ReservationRecord& reservation) {
  return commits_->run([&]() -> Status {
    return Statement(*database_, "INSERT OR REPLACE INTO reservations (volume_id, state, boot_id) VALUES (?, ?, ?)")
        .bind(1, reservation.volume.to_string())
        .bind(2, reservation.state)
        .bind(3, reservation.boot_id)
        .finish();
  });
}

Status StateStore::drop_reservation(const Uuid& volume) {
  return commits_->run([&]() -> Status {
    return Statement(*database_, "DELETE FROM reservations WHERE volume_id = ?").bind(1, volume.to_string()).finish();
  });
}

Result<std::optional<ReservationRecord>> StateStore::reservation(const Uuid& volume) {
  const std::lock_guard lock(mutex_);
  Statement statement(*database_, "SELECT state, boot_id FROM reservations WHERE volume_id = ?");
  statement.bind(1, volume.to_string());
  std::optional<ReservationRecord> found;
  if (statement.step()) found = ReservationRecord{volume, statement.text(0), statement.text(1)};
  POLLUX_TRY(statement.status());
  return found;
}

Status StateStore::forget_volume(const Uuid& volume) {
  return commits_->run([&]() -> Status {
    for (const char* sql : {"DELETE FROM grants WHERE volume_id = ?", "DELETE FROM reservations WHERE volume_id = ?"}) {
      POLLUX_TRY(Statement(*database_, sql).bind(1, volume.to_string()).finish());
    }
    return {};
  });
}

Status StateStore::put_losses(const std::vector<Uuid>& volumes, const std::string& boot_id) {
  return commits_->run([&]() -> Status {
    for (const Uuid& volume : volumes) {
      POLLUX_TRY(Statement(*database_,
                           "INSERT OR REPLACE INTO losses (volume_id, boot_id) SELECT ?1, ?2 WHERE EXISTS "
                           "(SELECT 1 FROM attachments WHERE volume_id = ?1)")
                     .bind(1, volume.to_string())
                     .bind(2, boot_id)
                     .finish());
    }
    return {};
  });
}

Status StateStore::put_boot_id(const std::string& boot_id) {
  return commits_->run([&]() -> Status {
    POLLUX_TRY(Statement(*database_, "DELETE FROM host").finish());
    POLLUX_TRY(Statement(*database_, "INSERT INTO host (boot_id) VALUES (?)").bind(1, boot_id).finish());
    return {};
  });
}

Result<std::string> StateStore::boot_id() {
  const std::lock_guard lock(mutex_);
  Statement statement(*database_, "SELECT boot_id FROM host");
  std::string found;
  if (statement.step()) found = statement.text(0);
  POLLUX_TRY(statement.status());
  return found;
}

Status StateStore::drop_loss(const Uuid& volume) {
  return commits_->run([&]() -> Status {
    return Statement(*database_, "DELETE FROM losses WHERE volume_id = ?").bind(1, volume.to_string()).finish();
  });
}

Status StateStore::drop_losses_before(const std::string& boot_id) {
  return commits_->run([&]() -> Status {
    return Statement(*database_, "DELETE FROM losses WHERE boot_id <> ?").bind(1, boot_id).finish();
  });
}

Result<bool> StateStore::has_loss(const Uuid& volume) {
  const std::lock_guard lock(mutex_);
  Statement statement(*database_, "SELECT 1 FROM losses WHERE volume_id = ?");
  statement.bind(1, volume.to_string());
  const bool found = statement.step();
  POLLUX_TRY(statement.status());
  return found;
}

Status StateStore::put_setting(const SettingRecord& setting) {
  return commits_->run([&]() -> Status {
    return Statement(*database_,
                     "INSERT OR REPLACE INTO settings (volume_id, client, state, boot_id) VALUES (?, ?, ?, ?)")
        .bind(1, setting.volume.to_string())
        .bind(2, setting.client)
        .bind(3, setting.state)
        .bind(4, setting.boot_id)
        .finish();
  });
}

Status StateStore::drop_setting(const Uuid& volume, const std::string& client) {
  return commits_->run([&]() -> Status {
    return Statement(*database_, "DELETE FROM settings WHERE volume_id = ? AND client = ?")
        .bind(1, volume.to_string())
        .bind(2, client)
        .finish();
  });
}

Result<std::optional<SettingRecord>> StateStore::setting(const Uuid& volume, const std::string& client) {
  const std::lock_guard lock(mutex_);
  Statement statement(*database_, "SELECT state, boot_id FROM settings WHERE volume_id = ? AND client = ?");
  statement.bind(1, volume.to_string()).bind(2, client);
  std::optional<SettingRecord> found;
  if (statement.step()) found = SettingRecord{volume, client, statement.text(0), statement.text(1)};
  POLLUX_TRY(statement.status());
  return found;
}

}  // namespace pollux::control
