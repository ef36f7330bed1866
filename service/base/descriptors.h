#pragma once
// The process's table of descriptors, which guests, data sockets and clients fill and nobody may fill to the end: who
// takes a descriptor from outside gives it back when it is one of the last, so that the control port still answers and
// an operator can see, and end, what uses them up.

#include <cstdint>

#include "base/result.h"

namespace pollux {

// Raises the soft limit to the hard one. The limit that holds then.
Result<std::uint64_t> raise_descriptor_limit();

// Whether `fd`, which a peer has just made us open, is one of the last: the kernel hands out the lowest free number, so
// the table is nearly full. Any thread.
bool is_last_descriptor(int fd);

}  // namespace pollux
