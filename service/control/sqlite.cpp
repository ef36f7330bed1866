#include "control/sqlite.h"

#include <utility>

#include "base/log.h"

namespace pollux::control::sqlite {

Result<std::unique_ptr<Database>> Database::open(const std::string& path) {
  std::unique_ptr<Database> database(new Database(path));
  sqlite3* handle = nullptr;
  const int result = sqlite3_open_v2(path.c_str(), &handle,
                                     SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, nullptr);
  database->handle_.reset(handle);
  if (handle == nullptr) return fail(ErrorCode::kInternal, "no memory for SQLite");
  if (result != SQLITE_OK) return fail(database->error("cannot open " + path));
  sqlite3_extended_result_codes(handle, 1);
  return database;
}

Status Database::run(const char* sql) {
  if (sqlite3_exec(get(), sql, nullptr, nullptr, nullptr) != SQLITE_OK) return fail(error("cannot write " + path_));
  return {};
}

Error Database::error(const std::string& what) const {
  ErrorCode code = ErrorCode::kInternal;
  switch (sqlite3_errcode(get()) & 0xff) {
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      code = ErrorCode::kIoError;
      break;
    case SQLITE_FULL:
      code = ErrorCode::kNoSpace;
      break;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      code = ErrorCode::kCorrupt;
      break;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      code = ErrorCode::kBusy;
      break;
    default:
      break;
  }
  return Error{code, what + ": " + sqlite3_errmsg(get())};
}

Statement::Statement(Database& database, const char* sql) : database_(database) {
  sqlite3_stmt* statement = nullptr;
  result_ = sqlite3_prepare_v2(database.get(), sql, -1, &statement, nullptr);
  statement_.reset(statement);
}

Statement& Statement::bind(int index, std::int64_t value) {
  if (result_ == SQLITE_OK) result_ = sqlite3_bind_int64(statement_.get(), index, value);
  return *this;
}

Statement& Statement::bind(int index, std::string_view value) {
  if (result_ == SQLITE_OK) {
    result_ = sqlite3_bind_text64(statement_.get(), index, value.data(), value.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
  }
  return *this;
}

Statement& Statement::bind_null(int index) {
  if (result_ == SQLITE_OK) result_ = sqlite3_bind_null(statement_.get(), index);
  return *this;
}

bool Statement::step() {
  if (result_ != SQLITE_OK && result_ != SQLITE_ROW) return false;
  result_ = sqlite3_step(statement_.get());
  return result_ == SQLITE_ROW;
}

Status Statement::finish() {
  while (step()) {
  }
  return status();
}

Status Statement::status() const {
  if (result_ == SQLITE_OK || result_ == SQLITE_ROW || result_ == SQLITE_DONE) return {};
  return fail(database_.error("cannot use " + database_.path()));
}

std::string Statement::text(int column) const {
  const auto* text = sqlite3_column_text(statement_.get(), column);
  const int length = sqlite3_column_bytes(statement_.get(), column);
  return text == nullptr ? std::string()
                         : std::string(reinterpret_cast<const char*>(text), static_cast<std::size_t>(length));
}

Transaction::~Transaction() {
  if (!begun_ || !open_ || !database_.in_transaction()) return;
  if (const auto status = database_.run("ROLLBACK"); !status) log::error("state: {}", status.error().message);
}

Status Transaction::commit() {
  POLLUX_TRY(database_.run("COMMIT"));
  open_ = false;
  return {};
}

}  // namespace pollux::control::sqlite
