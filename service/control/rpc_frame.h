#pragma once
// One request of the control port and its answer, without the connection that carries them: where Thrift reads what a
// peer has sent, and the bounds within which it does.

#include <cstdint>
#include <vector>

#include "base/result.h"

namespace apache::thrift {
class TProcessor;
}

namespace pollux::control {

// `frame` is what followed the request's length. The answer begins with its own length. kInvalid: no call, or a
// malformed one; the connection cannot go on.
Result<std::vector<std::uint8_t>> answer_frame(apache::thrift::TProcessor& processor, std::vector<std::uint8_t>& frame);

}  // namespace pollux::control
