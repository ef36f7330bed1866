#pragma once
// LossLog: remembers over a restart of the service which volumes have users who must still be told that a flush has
// failed and may have lost what they wrote. Without it a restart before their next flush would let that flush succeed.
//
// A store tells it of a loss before any flush is answered with the error, and that a volume's user was told after that
// answer has been given. Killed in between, the service tells twice, which is harmless.

#include <cstdint>
#include <vector>

#include "base/uuid.h"

namespace pollux::blob {

// What the log says of a volume that is opened.
enum class LossUntold : bool { kNo, kYes };

class LossLog {
 public:
  virtual ~LossLog() = default;
  // Both on a store's home reactor, which they must not block, and lasting a little later, in the order of the calls.
  // Volumes without a user who outlives the service need not be remembered.
  virtual void owe(std::vector<Uuid> volumes) = 0;
  virtual void told(const Uuid& volume) = 0;
};

}  // namespace pollux::blob
