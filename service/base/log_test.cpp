#include "base/log.h"

#include <stdlib.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

namespace pollux {
namespace {

struct Folder {
  Folder() {
    char name[] = "/tmp/pollux-log-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~Folder() {
    // No later line goes to a file that is gone.
    (void)log::init("error", "");
    std::filesystem::remove_all(path);
  }
  std::filesystem::path path;
};

// What the lines say, by thread, in the order of the files and of the lines in them.
std::vector<std::vector<int>> numbers_in(const std::vector<std::filesystem::path>& files, std::size_t threads) {
  std::vector<std::vector<int>> found(threads);
  for (const auto& file : files) {
    std::ifstream lines(file);
    for (std::string line; std::getline(lines, line);) {
      std::size_t thread = 0;
      int number = 0;
      BOOST_REQUIRE(std::sscanf(line.c_str(), "%*s I thread %zu says %d", &thread, &number) == 2);
      found.at(thread).push_back(number);
    }
  }
  return found;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_log_that_is_rotated_while_threads_write_loses_no_line) {
  constexpr std::size_t kThreads = 3;
  constexpr int kRotations = 100;
  const Folder folder;
  const auto current = folder.path / "log";
  BOOST_REQUIRE(log::init("info", current.string()).has_value());
  std::atomic<bool> stop{false};
  std::vector<int> said(kThreads, 0);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&stop, &count = said[i], i] {
      while (!stop || count < kRotations) log::info("thread {} says {}", i, count++);
    });
  }
  std::vector<std::filesystem::path> files;
  bool reopened = true;
  for (int i = 0; i < kRotations; ++i) {
    files.push_back(folder.path / std::to_string(i));
    std::filesystem::rename(current, files.back());
    reopened = reopened && log::reopen().has_value();
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  files.push_back(current);
  BOOST_TEST(reopened);
  const auto found = numbers_in(files, kThreads);
  for (std::size_t i = 0; i < kThreads; ++i) {
    BOOST_TEST(found[i].size() == static_cast<std::size_t>(said[i]));
    for (std::size_t at = 0; at < found[i].size(); ++at) BOOST_REQUIRE(found[i][at] == static_cast<int>(at));
  }
}

BOOST_AUTO_TEST_CASE(a_log_that_cannot_be_opened_again_leaves_the_old_one) {
  const Folder folder;
  const auto inside = folder.path / "inside";
  std::filesystem::create_directory(inside);
  const auto file = inside / "log";
  BOOST_REQUIRE(log::init("info", file.string()).has_value());
  const auto moved = folder.path / "moved";
  std::filesystem::rename(inside, moved);
  // Something that is no directory is in its place.
  std::ofstream(inside) << "x";
  const Status again = log::reopen();
  BOOST_REQUIRE(!again.has_value());
  BOOST_TEST(again.error().message.find(file.string()) != std::string::npos);
  log::info("still here");
  std::ifstream lines(moved / "log");
  std::string line;
  BOOST_REQUIRE(std::getline(lines, line));
  BOOST_TEST(line.ends_with(" I still here"));
}

BOOST_AUTO_TEST_CASE(a_level_that_is_none_is_refused) {
  const Status status = log::init("loud", "");
  BOOST_REQUIRE(!status.has_value());
  BOOST_TEST((status.error().code == ErrorCode::kInvalid));
}

}  // namespace pollux
