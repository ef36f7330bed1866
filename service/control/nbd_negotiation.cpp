#include "control/nbd_negotiation.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <vector>

#include "control/nbd_protocol.h"

namespace pollux::control::nbd {

namespace {

// "Conventions": strings have at most 4096 bytes, so no option of ours needs more.
constexpr std::uint32_t kMaxOptionBytes = 64U << 10;
// A longer one is skipped and answered; this much in one option is an attack.
constexpr std::uint32_t kMaxSkippedBytes = 1U << 20;
// A client that only ever asks must not hold the thread for ever.
constexpr unsigned kMaxOptions = 64;

bool reply(int socket, std::uint32_t option, std::uint32_t type, const std::vector<std::uint8_t>& data = {}) {
  std::vector<std::uint8_t> message;
  append(message, kOptionReplyMagic);
  append(message, option);
  append(message, type);
  append(message, static_cast<std::uint32_t>(data.size()));
  message.insert(message.end(), data.begin(), data.end());
  return send_all(socket, message.data(), message.size());
}

// An empty name is the default export, and there is one.
bool names(const std::string& name, const Export& exported) {
  return name.empty() || name == exported.name;
}

// "NBD_OPT_INFO": name length, name, number of requests, requests.
bool parse_info(const std::vector<std::uint8_t>& data, std::string& name) {
  if (data.size() < 6) return false;
  const std::size_t name_length = get<std::uint32_t>(data.data());
  if (name_length > data.size() - 6) return false;
  name.assign(data.begin() + 4, data.begin() + 4 + static_cast<std::ptrdiff_t>(name_length));
  const std::uint8_t* rest = data.data() + 4 + name_length;
  const std::size_t count = get<std::uint16_t>(rest);
  return data.size() == 4 + name_length + 2 + 2 * count;
}

// "Transmission flags": DF is there for those that have structured replies. Ours come in one piece anyway.
std::uint16_t transmission_flags(const Export& exported, const Agreement& agreed) {
  return static_cast<std::uint16_t>(exported.transmission_flags | (agreed.structured_replies ? kSendDf : 0));
}

bool send_info(int socket, std::uint32_t option, const Export& exported, const Agreement& agreed) {
  std::vector<std::uint8_t> info;
  append(info, kInfoExport);
  append(info, exported.size_bytes);
  append(info, transmission_flags(exported, agreed));
  if (!reply(socket, option, kRepInfo, info)) return false;
  // Sent to all: a server may send what was not asked for, and clients that know it do better.
  std::vector<std::uint8_t> sizes;
  append(sizes, kInfoBlockSize);
  append(sizes, exported.block_bytes);
  append(sizes, exported.preferred_bytes);
  append(sizes, kMaxPayloadBytes);
  return reply(socket, option, kRepInfo, sizes) && reply(socket, option, kRepAck);
}

bool send_list(int socket, const Export& exported) {
  std::vector<std::uint8_t> entry;
  append(entry, static_cast<std::uint32_t>(exported.name.size()));
  entry.insert(entry.end(), exported.name.begin(), exported.name.end());
  return reply(socket, kOptList, kRepServer, entry) && reply(socket, kOptList, kRepAck);
}

bool send_export(int socket, const Export& exported, const Agreement& agreed, bool zeroes) {
  std::vector<std::uint8_t> answer;
  append(answer, exported.size_bytes);
  append(answer, transmission_flags(exported, agreed));
  if (zeroes) answer.resize(answer.size() + kExportNameZeroes);
  return send_all(socket, answer.data(), answer.size());
}

// "NBD_OPT_LIST_META_CONTEXT", "NBD_OPT_SET_META_CONTEXT": the export's name, and queries, each a length and a name.
bool parse_queries(const std::vector<std::uint8_t>& data, std::string& name, std::vector<std::string>& queries) {
  std::size_t at = 0;
  const auto take_number = [&](std::uint32_t& number) {
    if (data.size() - at < sizeof(number)) return false;
    number = get<std::uint32_t>(data.data() + at);
    at += sizeof(number);
    return true;
  };
  const auto take_text = [&](std::string& text) {
    std::uint32_t length = 0;
    if (!take_number(length) || length > data.size() - at) return false;
    text.assign(reinterpret_cast<const char*>(data.data() + at), length);
    at += length;
    return true;
  };
  std::uint32_t count = 0;
  if (!take_text(name) || !take_number(count)) return false;
  // Each has at least its length, so the loop ends with the data.
  for (std::uint32_t i = 0; i < count; ++i) {
    if (!take_text(queries.emplace_back())) return false;
  }
  return at == data.size();
}

bool answer_contexts(int socket, std::uint32_t option, const std::vector<std::uint8_t>& data, const Export& exported,
                     Agreement& agreed) {
  const bool set = option == kOptSetMetaContext;
  // "NBD_OPT_SET_META_CONTEXT": what was set before is replaced, also when the option fails.
  if (set) agreed.allocation = false;
  std::string name;
  std::vector<std::string> queries;
  if (!agreed.structured_replies || !parse_queries(data, name, queries)) {
    return reply(socket, option, kRepErrInvalid);
  }
  if (!names(name, exported)) return reply(socket, option, kRepErrUnknown);
  bool wanted = !set && queries.empty();
  for (const auto& query : queries) wanted = wanted || query == kAllocationContext || (!set && query == "base:");
  wanted = wanted && exported.reports_extents;
  if (set) agreed.allocation = wanted;
  if (wanted) {
    std::vector<std::uint8_t> context;
    append(context, set ? kAllocationContextId : 0);
    const std::string_view text = kAllocationContext;
    context.insert(context.end(), text.begin(), text.end());
    if (!reply(socket, option, kRepMetaContext, context)) return false;
  }
  return reply(socket, option, kRepAck);
}

enum class Next { kOption, kTransmission, kEnd };

Next answer_option(int socket, std::uint32_t option, const std::vector<std::uint8_t>& data, const Export& exported,
                   bool zeroes, Agreement& agreed, std::atomic<bool>& negotiating) {
  const auto go_on = [](bool sent) { return sent ? Next::kOption : Next::kEnd; };
  switch (option) {
    case kOptExportName: {
      // This option knows no error reply: an unknown name ends the connection.
      const std::string name(data.begin(), data.end());
      if (!names(name, exported)) return Next::kEnd;
      negotiating = false;
      return send_export(socket, exported, agreed, zeroes) ? Next::kTransmission : Next::kEnd;
    }
    case kOptAbort:
      reply(socket, option, kRepAck);  // the client may be gone already
      return Next::kEnd;
    case kOptList:
      if (!data.empty()) return go_on(reply(socket, option, kRepErrInvalid));
      return go_on(send_list(socket, exported));
    case kOptInfo:
    case kOptGo: {
      std::string name;
      if (!parse_info(data, name)) return go_on(reply(socket, option, kRepErrInvalid));
      if (!names(name, exported)) return go_on(reply(socket, option, kRepErrUnknown));
      if (option == kOptGo) negotiating = false;
      if (!send_info(socket, option, exported, agreed)) return Next::kEnd;
      return option == kOptGo ? Next::kTransmission : Next::kOption;
    }
    case kOptStructuredReply:
      if (!data.empty()) return go_on(reply(socket, option, kRepErrInvalid));
      agreed.structured_replies = true;
      return go_on(reply(socket, option, kRepAck));
    case kOptListMetaContext:
    case kOptSetMetaContext:
      return go_on(answer_contexts(socket, option, data, exported, agreed));
    default:
      return go_on(reply(socket, option, kRepErrUnsupported));
  }
}

}  // namespace

bool receive(int socket, void* data, std::size_t length) {
  auto* bytes = static_cast<std::uint8_t*>(data);
  while (length > 0) {
    const ssize_t got = recv(socket, bytes, length, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    bytes += got;
    length -= static_cast<std::size_t>(got);
  }
  return true;
}

bool send_all(int socket, const void* data, std::size_t length) {
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  while (length > 0) {
    const ssize_t put = send(socket, bytes, length, MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    bytes += put;
    length -= static_cast<std::size_t>(put);
  }
  return true;
}

bool skip(int socket, std::size_t length) {
  std::array<std::uint8_t, 4096> scrap{};
  while (length > 0) {
    const std::size_t part = std::min(length, scrap.size());
    if (!receive(socket, scrap.data(), part)) return false;
    length -= part;
  }
  return true;
}

Result<std::optional<Agreement>> negotiate(int socket, const Export& exported, std::atomic<bool>& negotiating) {
  const std::optional<Agreement> ended;
  Agreement agreed;
  std::vector<std::uint8_t> greeting;
  append(greeting, kServerMagic);
  append(greeting, kOptionMagic);
  append(greeting, static_cast<std::uint16_t>(kFlagFixedNewstyle | kFlagNoZeroes));
  std::array<std::uint8_t, 4> raw_flags{};
  if (!send_all(socket, greeting.data(), greeting.size()) || !receive(socket, raw_flags.data(), raw_flags.size())) {
    return ended;
  }
  const auto flags = get<std::uint32_t>(raw_flags.data());
  if ((flags & ~std::uint32_t{kFlagFixedNewstyle | kFlagNoZeroes}) != 0) {
    return fail(ErrorCode::kInvalid, "unknown client flags");
  }
  const bool zeroes = (flags & kFlagNoZeroes) == 0;
  for (unsigned options = 0; options < kMaxOptions; ++options) {
    std::array<std::uint8_t, 16> header{};
    if (!receive(socket, header.data(), header.size())) return ended;
    if (get<std::uint64_t>(header.data()) != kOptionMagic)
      return fail(ErrorCode::kInvalid, "an option without its magic");
    const auto option = get<std::uint32_t>(header.data() + 8);
    const auto length = get<std::uint32_t>(header.data() + 12);
    if (length > kMaxSkippedBytes) {
      return fail(ErrorCode::kInvalid, "an option of " + std::to_string(length) + " bytes");
    }
    if (length > kMaxOptionBytes) {
      if (option == kOptSetMetaContext) agreed.allocation = false;
      // This option knows no error reply.
      if (option == kOptExportName || !skip(socket, length) || !reply(socket, option, kRepErrTooBig)) return ended;
      continue;
    }
    std::vector<std::uint8_t> data(length);
    if (!receive(socket, data.data(), data.size())) return ended;
    switch (answer_option(socket, option, data, exported, zeroes, agreed, negotiating)) {
      case Next::kOption:
        break;
      case Next::kTransmission:
        return agreed;
      case Next::kEnd:
        return ended;
    }
  }
  return fail(ErrorCode::kInvalid, "more than " + std::to_string(kMaxOptions) + " options");
}

}  // namespace pollux::control::nbd
