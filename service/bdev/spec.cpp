#include "bdev/spec.h"

#include "bdev/ram.h"
#include "bdev/uring.h"

namespace pollux::bdev {

Result<std::shared_ptr<Bdev>> open(const Spec& spec) {
  switch (spec.kind) {
    case Spec::Kind::kRam:
      return make_ram_bdev("ram", spec.size_bytes);
    case Spec::Kind::kUring:
      return make_uring_bdev(spec.path, spec.size_bytes);
  }
  return fail(ErrorCode::kInvalid, "unknown kind of block device");
}

}  // namespace pollux::bdev
