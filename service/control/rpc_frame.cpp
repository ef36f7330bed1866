#include "control/rpc_frame.h"

#include <arpa/inet.h>
#include <thrift/TProcessor.h>
#include <thrift/protocol/TBinaryProtocol.h>
#include <thrift/transport/TBufferTransports.h>

#include <cstring>
#include <memory>
#include <string>

namespace pollux::control {

namespace {

using apache::thrift::TConfiguration;
using apache::thrift::protocol::TBinaryProtocol;
using apache::thrift::transport::TMemoryBuffer;

// No structure of the contract nests deeper than 4; unknown fields may, within reason.
constexpr int kMaxNesting = 16;
constexpr int kMaxContainerEntries = 64 * 1024;

}  // namespace

Result<std::vector<std::uint8_t>> answer_frame(apache::thrift::TProcessor& processor,
                                               std::vector<std::uint8_t>& frame) {
  const auto length = static_cast<std::uint32_t>(frame.size());
  const auto limits = std::make_shared<TConfiguration>(static_cast<int>(length), static_cast<int>(length), kMaxNesting);
  const auto input = std::make_shared<TMemoryBuffer>(frame.data(), length, TMemoryBuffer::OBSERVE, limits);
  const auto output = std::make_shared<TMemoryBuffer>();
  // The answer's length goes in front of it when it is known.
  const std::uint32_t room = 0;
  output->write(reinterpret_cast<const std::uint8_t*>(&room), sizeof(room));
  try {
    const auto in = std::make_shared<TBinaryProtocol>(input, static_cast<std::int32_t>(length), kMaxContainerEntries,
                                                      /*strict_read=*/true, /*strict_write=*/true);
    const auto out = std::make_shared<TBinaryProtocol>(output, 0, 0, true, true);
    if (!processor.process(in, out, nullptr)) return fail(ErrorCode::kInvalid, "a message that is no call");
  } catch (const std::exception& e) {
    return fail(ErrorCode::kInvalid, std::string("a malformed request: ") + e.what());
  }
  std::uint8_t* bytes = nullptr;
  std::uint32_t count = 0;
  output->getBuffer(&bytes, &count);
  std::vector<std::uint8_t> answer(bytes, bytes + count);
  const std::uint32_t wire_length = htonl(count - static_cast<std::uint32_t>(sizeof(room)));
  std::memcpy(answer.data(), &wire_length, sizeof(wire_length));
  return answer;
}

}  // namespace pollux::control
