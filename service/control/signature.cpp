#include "control/signature.h"

#include <blkid/blkid.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace pollux::control {

namespace {

struct Free {
  void operator()(blkid_probe probe) const { blkid_free_probe(probe); }
};
using Probe = std::unique_ptr<blkid_struct_probe, Free>;

// blkid_do_safeprobe()
constexpr int kNothing = 1;
constexpr int kAmbivalent = -2;

std::string value(const Probe& probe, const char* name) {
  const char* text = nullptr;
  return blkid_probe_lookup_value(probe.get(), name, &text, nullptr) == 0 ? text : "";
}

}  // namespace

Result<std::string> find_signature(const std::string& path) {
  errno = 0;
  const Probe probe(blkid_new_probe_from_filename(path.c_str()));
  if (!probe) {
    return fail(ErrorCode::kIoError,
                "cannot look at what " + path + " holds: " + std::strerror(errno == 0 ? EIO : errno));
  }
  blkid_probe_enable_superblocks(probe.get(), 1);
  blkid_probe_set_superblocks_flags(probe.get(), BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE | BLKID_SUBLKS_LABEL);
  blkid_probe_enable_partitions(probe.get(), 1);
  errno = 0;
  const int found = blkid_do_safeprobe(probe.get());
  if (found == kNothing) return std::string();
  if (found == kAmbivalent) return std::string("signatures of several file systems");
  if (found < 0) {
    return fail(ErrorCode::kIoError,
                "cannot look at what " + path + " holds: " + std::strerror(errno == 0 ? EIO : errno));
  }
  const std::string type = value(probe, "TYPE");
  if (type.empty()) return value(probe, "PTTYPE") + " partition table";
  const std::string label = value(probe, "LABEL");
  const std::string what = value(probe, "USAGE") == "filesystem" ? type + " file system" : type + " signature";
  return label.empty() ? what : what + " '" + label + "'";
}

}  // namespace pollux::control
