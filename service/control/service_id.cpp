#include "control/service_id.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/unique_fd.h"

namespace pollux::control {

namespace {

Error system_error(const std::string& what) {
  return {ErrorCode::kIoError, what + ": " + std::strerror(errno)};
}

// The file appears whole or not at all: a crash before the rename leaves the next start to make another.
Status write_durably(const std::string& dir, const std::string& path, const std::string& text) {
  const std::string fresh = path + ".new";
  const UniqueFd file(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640));
  if (file.get() < 0 || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      fsync(file.get()) != 0 || rename(fresh.c_str(), path.c_str()) != 0) {
    return fail(system_error("cannot write " + path));
  }
  const UniqueFd folder(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0 || fsync(folder.get()) != 0) return fail(system_error("cannot write " + dir));
  return {};
}

}  // namespace

Result<Uuid> service_id(const std::string& state_dir) {
  const std::string path = state_dir + "/service-id";
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) {
    const Uuid id = Uuid::random();
    POLLUX_TRY(write_durably(state_dir, path, id.to_string() + "\n"));
    return id;
  }
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return fail(ErrorCode::kIoError, "cannot read " + path);
  const auto id = Uuid::parse(line);
  if (!id) return fail(ErrorCode::kCorrupt, path + " holds '" + line + "' instead of an id; remove it for a new one");
  return *id;
}

}  // namespace pollux::control
