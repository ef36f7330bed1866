#pragma once
// A thin, checked layer over SQLite's C interface: a connection, prepared statements that reset themselves,
// transactions. Nothing here locks; the owner sees to it that one thread at a time uses a connection.

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace pollux::control::sqlite {

class Database {
 public:
  // Opens or makes the file. kIoError: the file cannot be opened; kCorrupt: it is no SQLite file.
  static Result<std::unique_ptr<Database>> open(const std::string& path);

  sqlite3* get() const { return handle_.get(); }
  const std::string& path() const { return path_; }
  // Statements without result or parameters.
  Status run(const char* sql);
  bool in_transaction() const { return sqlite3_get_autocommit(handle_.get()) == 0; }
  // The error of the last call, as ours: the disk's (kIoError), a full disk (kNoSpace), the file's (kCorrupt), else
  // kInternal.
  Error error(const std::string& what) const;

 private:
  explicit Database(std::string path) : path_(std::move(path)) {}
  struct Close {
    void operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }
  };
  std::string path_;
  std::unique_ptr<sqlite3, Close> handle_;
};

// One run of one statement:
//   Statement s(db, "SELECT a FROM t WHERE b = ?"); s.bind(1, b); while (s.step()) use(s.integer(0)); return
//   s.status();
class Statement {
 public:
  Statement(Database& database, const char* sql);

  Statement& bind(int index, std::int64_t value);
  Statement& bind(int index, std::string_view value);
  Statement& bind_null(int index);
  // True: a row is there. False: no more rows, or an error that status() tells.
  bool step();
  // Runs to its end.
  Status finish();
  Status status() const;

  std::int64_t integer(int column) const { return sqlite3_column_int64(statement_.get(), column); }
  std::string text(int column) const;
  bool is_null(int column) const { return sqlite3_column_type(statement_.get(), column) == SQLITE_NULL; }

 private:
  struct Finalise {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };
  Database& database_;
  std::unique_ptr<sqlite3_stmt, Finalise> statement_;
  int result_ = SQLITE_OK;
};

// Rolled back when it goes out of scope without commit().
class Transaction {
 public:
  explicit Transaction(Database& database) : database_(database), begun_(database.run("BEGIN IMMEDIATE")) {}
  ~Transaction();
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  // To be looked at first: without it every statement would be a transaction of its own.
  const Status& begun() const { return begun_; }
  // Durable when it succeeds.
  Status commit();

 private:
  Database& database_;
  Status begun_;
  bool open_ = true;
};

}  // namespace pollux::control::sqlite
