#pragma once
// The haggling before a data socket's client may read and write: the client names the export, the server says how large
// it is, which requests it takes and in which sizes.

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"

namespace pollux::control::nbd {

struct Export {
  std::string name;
  std::uint64_t size_bytes = 0;
  std::uint32_t block_bytes = 512;
  std::uint32_t preferred_bytes = 4096;
  std::uint16_t transmission_flags = 0;
  bool reports_extents = false;  // offer base:allocation
  std::uint8_t flush_flags = 0;  // of requests to the device
};

// What the client asked for, and gets.
struct Agreement {
  bool structured_replies = false;
  bool allocation = false;  // base:allocation
};

// An agreement: go on to transmission. None: the client ended the negotiation as the protocol allows, or hung up.
// kInvalid: it broke the protocol. The socket's own time-outs bound how long this takes. Any thread that may block.
// `negotiating` becomes false before the client hears that it has the export.
Result<std::optional<Agreement>> negotiate(int socket, const Export& exported, std::atomic<bool>& negotiating);

// The whole buffer, or false when the connection ended or timed out.
bool receive(int socket, void* data, std::size_t length);
bool send_all(int socket, const void* data, std::size_t length);
// Receives that many bytes and forgets them.
bool skip(int socket, std::size_t length);

}  // namespace pollux::control::nbd
