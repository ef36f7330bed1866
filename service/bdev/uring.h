#pragma once
// UringBdev: a regular file or kernel block device through io_uring, with O_DIRECT.
//
// Each channel has a ring of its own, with deferred task work where the kernel has that (6.1 and newer). What one turn
// of the reactor submits goes to the kernel in one system call, and completions are taken from shared memory. flush is
// fdatasync; kFua is RWF_DSYNC; unmap punches a hole (files) or discards (block devices, see device_thread.h);
// write_zeroes asks the file system for zeros, and writes them where it cannot do that (tmpfs).
// Memory that does not meet the device's O_DIRECT alignment is bounced. The file is locked
// (flock; O_EXCL for block devices), so two services cannot serve one device; the kernel drops the lock when the
// process is dead and its last request has ended.

#include <memory>
#include <string>

#include "base/result.h"
#include "bdev/bdev.h"

namespace pollux::bdev {

// create_bytes != 0 makes a sparse file of this size when the path does not exist. See bdev::open for errors.
Result<std::shared_ptr<Bdev>> make_uring_bdev(const std::string& path, std::uint64_t create_bytes);

}  // namespace pollux::bdev
