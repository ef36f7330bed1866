#include "control/fsck.h"

#include <unistd.h>

#include <filesystem>
#include <ostream>

#include "reactor/reactor.h"
#include "volume/volume_service.h"

namespace pollux::control {

namespace {

void print(const volume::PoolCheck& check, std::ostream& out) {
  for (const std::string& finding : check.findings) out << finding << '\n';
  const std::uint64_t found = check.lost + check.doubly_used + check.leaked + check.damaged;
  if (found > check.findings.size()) out << "... and " << found - check.findings.size() << " more\n";
  out << "pool " << check.name << " (" << check.id.to_string() << "): " << check.volumes << " volumes and snapshots, "
      << check.data_clusters << " clusters of data, " << check.metadata_pages << " pages of metadata, "
      << check.replayed_records << " journal records since the last checkpoint\n"
      << check.lost << " lost, " << check.doubly_used << " doubly used, " << check.leaked << " leaked, "
      << check.damaged << " damaged";
  if (check.repaired != 0) out << "; " << check.repaired << " repaired";
  out << '\n';
}

}  // namespace

int run_fsck(const std::string& device, bool repair, std::ostream& out) {
  auto reactors = reactor::ReactorGroup::start({{.id = 0}});
  if (!reactors) {
    out << reactors.error().message << '\n';
    return kFsckFailed;
  }
  std::error_code error;
  const std::string path = std::filesystem::absolute(device, error).string();
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  volume::VolumeService volumes(**reactors, {.host = std::string(host) + " (fsck)"});
  const bdev::Spec spec{.kind = bdev::Spec::Kind::kUring, .path = path, .size_bytes = 0};
  const auto check = reactor::call((*reactors)->main(), volumes.check_pool(spec, Uuid{}, repair));
  if (!check) {
    out << check.error().message << '\n';
    // A pool is there and so rotten that it cannot be loaded.
    return check.error().code == ErrorCode::kCorrupt ? kFsckErrorsLeft : kFsckFailed;
  }
  print(*check, out);
  if (check->clean()) return kFsckClean;
  return check->all_repaired() ? kFsckRepaired : kFsckErrorsLeft;
}

}  // namespace pollux::control
