#pragma once
// How a call in Pollux says that it failed.
//
// Result<T> holds a T or an Error. An Error is a code that programs act on and a message that people read: what failed,
// on which object, and what to do next. Nothing throws except at start-up and at the Thrift edge.
//
// The codes are those of the control contract (thrift/pollux.thrift, ErrorCode); one table at the control edge maps
// them. The data path uses bdev::IoStatus instead, which carries no text.

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace pollux {

enum class ErrorCode : unsigned char {
  kInvalid = 1,  // a parameter is malformed or out of range
  kNotFound,     // the object is not there
  kExists,       // the id or name is taken by something different
  kBusy,         // in use; the caller has to end that use first
  kNoSpace,      // the pool cannot hold it
  kUnsupported,  // this version, device or configuration cannot do it
  kDenied,       // role or authorisation forbids it
  kRetry,        // not now; the same request may succeed later
  kInternal,     // a fault of the service
  kIoError,      // the device failed a read, write or flush
  kCorrupt,      // what the device holds is not what was written: checksum, magic or range
};

// Stable lower-case name of the code, e.g. "no_space"; used in logs and metrics.
const char* to_string(ErrorCode code);

struct Error {
  ErrorCode code;
  std::string message;
};

template <typename T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

// return fail(ErrorCode::kNotFound, "volume 1234 does not exist");
inline tl::unexpected<Error> fail(ErrorCode code, std::string message) {
  return tl::unexpected<Error>(Error{code, std::move(message)});
}
inline tl::unexpected<Error> fail(Error error) {
  return tl::unexpected<Error>(std::move(error));
}

}  // namespace pollux

// POLLUX_TRY(status_expression): returns its error from the enclosing function. POLLUX_CO_TRY: the same in a coroutine.
#define POLLUX_TRY(expression)                               \
  do {                                                       \
    if (auto pollux_try_ = (expression); !pollux_try_) {     \
      return ::pollux::fail(std::move(pollux_try_.error())); \
    }                                                        \
  } while (false)
#define POLLUX_CO_TRY(expression)                               \
  do {                                                          \
    if (auto pollux_try_ = (expression); !pollux_try_) {        \
      co_return ::pollux::fail(std::move(pollux_try_.error())); \
    }                                                           \
  } while (false)
