// The data sockets' protocol on a RAM device with two reactors: well-behaved clients, and hostile bytes.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#include <boost/test/unit_test.hpp>
#include <csignal>
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <thread>

#include "base/units.h"
#include "bdev/deep_stack.h"
#include "bdev/held_opening.h"
#include "bdev/losing_path.h"
#include "bdev/layer.h"
#include "bdev/ram.h"
#include "control/nbd_protocol.h"
#include "control/nbd_server.h"
#include "control/test_certificates.h"

using namespace pollux;
using namespace pollux::control;
namespace nbd = pollux::control::nbd;

namespace {

constexpr std::uint64_t kDeviceBytes = 64 * kMiB;

class NbdClient {
 public:
  explicit NbdClient(const std::string& path) : fd_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const timeval limit{30, 0};
    setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    BOOST_REQUIRE(connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    std::vector<std::uint8_t> greeting(18);
    BOOST_REQUIRE(nbd::receive(fd_.get(), greeting.data(), greeting.size()));
    BOOST_REQUIRE(nbd::get<std::uint64_t>(greeting.data()) == nbd::kServerMagic);
  }

  bool send(const std::vector<std::uint8_t>& bytes) { return nbd::send_all(fd_.get(), bytes.data(), bytes.size()); }
  bool receive(void* data, std::size_t length) { return nbd::receive(fd_.get(), data, length); }
  // True when the server ended the connection.
  bool closed() {
    std::uint8_t byte = 0;
    return !receive(&byte, 1);
  }
  void hang_up() { shutdown(fd_.get(), SHUT_RDWR); }

  bool send_flags(std::uint32_t flags) {
    std::vector<std::uint8_t> bytes;
    nbd::append(bytes, flags);
    return send(bytes);
  }
  bool send_option(std::uint32_t option, const std::vector<std::uint8_t>& data) {
    std::vector<std::uint8_t> bytes;
    nbd::append(bytes, nbd::kOptionMagic);
    nbd::append(bytes, option);
    nbd::append(bytes, static_cast<std::uint32_t>(data.size()));
    bytes.insert(bytes.end(), data.begin(), data.end());
    return send(bytes);
  }
  // The type of the next option reply; its data in `data`.
  std::uint32_t option_reply(std::vector<std::uint8_t>* data = nullptr) {
    std::vector<std::uint8_t> header(20);
    if (!receive(header.data(), header.size())) return 0;
    BOOST_REQUIRE(nbd::get<std::uint64_t>(header.data()) == nbd::kOptionReplyMagic);
    std::vector<std::uint8_t> payload(nbd::get<std::uint32_t>(header.data() + 16));
    BOOST_REQUIRE(receive(payload.data(), payload.size()));
    if (data != nullptr) *data = payload;
    return nbd::get<std::uint32_t>(header.data() + 12);
  }
  static std::vector<std::uint8_t> go(const std::string& name) {
    std::vector<std::uint8_t> data;
    nbd::append(data, static_cast<std::uint32_t>(name.size()));
    data.insert(data.end(), name.begin(), name.end());
    nbd::append(data, std::uint16_t{0});
    return data;
  }
  // Into transmission; the transmission flags.
  std::uint16_t go_to(const std::string& name) {
    BOOST_REQUIRE(send_flags(3));
    return enter(name);
  }
  // The same, after flags and other options.
  std::uint16_t enter(const std::string& name) {
    BOOST_REQUIRE(send_option(nbd::kOptGo, go(name)));
    std::uint16_t flags = 0;
    std::vector<std::uint8_t> info;
    std::uint32_t type = 0;
    while ((type = option_reply(&info)) == nbd::kRepInfo) {
      if (nbd::get<std::uint16_t>(info.data()) == nbd::kInfoExport) {
        BOOST_TEST(nbd::get<std::uint64_t>(info.data() + 2) == kDeviceBytes);
        flags = nbd::get<std::uint16_t>(info.data() + 10);
      }
    }
    BOOST_REQUIRE(type == nbd::kRepAck);
    return flags;
  }
  bool request(std::uint16_t type, std::uint64_t offset, std::uint32_t length, std::uint16_t flags = 0,
               std::uint64_t cookie = 1) {
    std::vector<std::uint8_t> bytes;
    nbd::append(bytes, nbd::kRequestMagic);
    nbd::append(bytes, flags);
    nbd::append(bytes, type);
    nbd::append(bytes, cookie);
    nbd::append(bytes, offset);
    nbd::append(bytes, length);
    return send(bytes);
  }
  std::uint32_t reply(std::uint64_t* cookie = nullptr) {
    std::vector<std::uint8_t> header(nbd::kSimpleReplyBytes);
    BOOST_REQUIRE(receive(header.data(), header.size()));
    BOOST_REQUIRE(nbd::get<std::uint32_t>(header.data()) == nbd::kSimpleReplyMagic);
    if (cookie != nullptr) *cookie = nbd::get<std::uint64_t>(header.data() + 8);
    return nbd::get<std::uint32_t>(header.data() + 4);
  }
  struct Chunk {
    std::uint16_t type = 0;
    std::vector<std::uint8_t> data;
  };
  // A structured reply of one chunk.
  Chunk chunk(std::uint64_t cookie) {
    std::vector<std::uint8_t> header(nbd::kChunkHeaderBytes);
    BOOST_REQUIRE(receive(header.data(), header.size()));
    BOOST_REQUIRE(nbd::get<std::uint32_t>(header.data()) == nbd::kStructuredReplyMagic);
    BOOST_TEST(nbd::get<std::uint16_t>(header.data() + 4) == nbd::kChunkDone);
    BOOST_TEST(nbd::get<std::uint64_t>(header.data() + 8) == cookie);
    Chunk chunk{nbd::get<std::uint16_t>(header.data() + 6),
                std::vector<std::uint8_t>(nbd::get<std::uint32_t>(header.data() + 16))};
    BOOST_REQUIRE(receive(chunk.data.data(), chunk.data.size()));
    return chunk;
  }
  std::uint32_t ask(std::uint16_t type, std::uint64_t offset, std::uint32_t length, std::uint16_t flags = 0) {
    BOOST_REQUIRE(request(type, offset, length, flags));
    return reply();
  }
  std::uint32_t write(std::uint64_t offset, const std::vector<std::uint8_t>& data, std::uint16_t flags = 0) {
    BOOST_REQUIRE(request(nbd::kCmdWrite, offset, static_cast<std::uint32_t>(data.size()), flags));
    BOOST_REQUIRE(send(data));
    return reply();
  }
  std::vector<std::uint8_t> read(std::uint64_t offset, std::uint32_t length) {
    BOOST_REQUIRE(ask(nbd::kCmdRead, offset, length) == nbd::kOk);
    std::vector<std::uint8_t> data(length);
    BOOST_REQUIRE(receive(data.data(), data.size()));
    return data;
  }

 private:
  UniqueFd fd_;
};

// Limits that let nothing but flushes through until somebody is in a hurry. To who asks, it holds data everywhere.
class HeldDevice final : public bdev::Layer {
 public:
  explicit HeldDevice(std::shared_ptr<bdev::Bdev> below) : Layer(std::move(below), 0) {}
  bool reports_extents() const override { return true; }
  bdev::Opening open_channel(reactor::Reactor& reactor) override {
    auto channel = co_await below().open_channel(reactor);
    if (!channel) co_return fail(std::move(channel.error()));
    co_return std::make_unique<HeldChannel>(held, std::move(*channel));
  }
  std::atomic<unsigned> held{0};

 private:
  class HeldChannel final : public bdev::Channel {
   public:
    HeldChannel(std::atomic<unsigned>& held, std::unique_ptr<bdev::Channel> below)
        : held_(held), below_(std::move(below)) {}
    void submit(bdev::IoRequest& request) override {
      if (request.op == bdev::IoOp::kFlush) return below_->submit(request);
      if (request.op == bdev::IoOp::kExtent) {
        request.flags |= bdev::IoRequest::kMapped;
        request.status = bdev::IoStatus::kOk;
        return request.complete(request);
      }
      waiting_.push_back(&request);
      ++held_;
    }
    void expedite() override {
      for (auto* request : std::exchange(waiting_, {})) {
        --held_;
        below_->submit(*request);
      }
    }

   private:
    std::atomic<unsigned>& held_;
    std::unique_ptr<bdev::Channel> below_;
    std::vector<bdev::IoRequest*> waiting_;
  };
};

struct Fixture {
  Fixture() {
    std::signal(SIGPIPE, SIG_IGN);
    auto group = reactor::ReactorGroup::start({{.id = 0}, {.id = 1}});
    BOOST_REQUIRE(group);
    reactors = std::move(*group);
    auto ram = bdev::make_ram_bdev("ram", kDeviceBytes);
    BOOST_REQUIRE(ram);
    device = *ram;
    start({});
  }
  ~Fixture() {
    server.reset();
    device.reset();
    reactors->stop();
  }
  void start(NbdServer::Options options) {
    server.reset();
    options.path = path();
    options.export_name = "volume";
    auto started = NbdServer::start(*reactors, device, options);
    BOOST_REQUIRE_MESSAGE(started, started.error().message);
    server = std::move(*started);
  }
  std::string path() const { return folder.path() + "/nbd.sock"; }
  // A hostile client hurt nobody else.
  void still_serves() {
    NbdClient client(path());
    client.go_to("volume");
    BOOST_TEST(client.read(0, 4096).size() == 4096U);
  }

  test::Folder folder;
  std::unique_ptr<reactor::ReactorGroup> reactors;
  std::shared_ptr<bdev::Bdev> device;
  std::unique_ptr<NbdServer> server;
};

bool wait_for(const std::function<bool()>& holds) {
  const auto deadline = Deadline::after_s(20);
  while (!deadline.passed()) {
    if (holds()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

UniqueFd connect_to(const std::string& path) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  BOOST_REQUIRE(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  return fd;
}

// Whether a new client is served, as opposed to turned away.
bool greets(const std::string& path) {
  const UniqueFd fd = connect_to(path);
  std::uint8_t byte = 0;
  return nbd::receive(fd.get(), &byte, 1);
}

std::vector<std::uint8_t> pattern(std::size_t length, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> bytes(length);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

// The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
std::vector<std::uint8_t> query(const std::string& name, std::uint32_t count, const std::vector<std::string>& queries) {
  std::vector<std::uint8_t> bytes;
  const auto add = [&](const std::string& text) {
    nbd::append(bytes, static_cast<std::uint32_t>(text.size()));
    bytes.insert(bytes.end(), text.begin(), text.end());
  };
  add(name);
  nbd::append(bytes, count);
  for (const auto& one : queries) add(one);
  return bytes;
}

}  // namespace

BOOST_FIXTURE_TEST_CASE(the_socket_is_for_owner_and_group_alone_and_goes_on_stop, Fixture) {
  struct stat info {};
  BOOST_REQUIRE(stat(path().c_str(), &info) == 0);
  BOOST_TEST((info.st_mode & 07777) == 0660U);
  BOOST_TEST(server->stop(Deadline::after_s(20)).has_value());
  BOOST_TEST(stat(path().c_str(), &info) == -1);
  BOOST_TEST(server->stop(Deadline::after_s(20)).has_value());
}

BOOST_FIXTURE_TEST_CASE(a_device_whose_layers_need_more_than_a_request_has_is_refused, Fixture) {
  const auto refused = NbdServer::start(*reactors, bdev::test::make_too_deep(device), {.path = path() + "-deep"});
  BOOST_REQUIRE(!refused);
  BOOST_CHECK(refused.error().code == ErrorCode::kUnsupported);
}

BOOST_FIXTURE_TEST_CASE(a_socket_closes_while_a_connection_waits_for_the_device_to_open, Fixture) {
  const auto held = std::make_shared<bdev::test::HeldOpening>(device);
  auto started = NbdServer::start(*reactors, held, {.path = path() + "-held", .read_only = true});
  BOOST_REQUIRE(started);
  NbdClient client(path() + "-held");
  client.go_to("");
  BOOST_REQUIRE(wait_for([&] { return held->begun == 1; }));
  BOOST_TEST((*started)->stop(Deadline::after_s(20)).has_value());
  started->reset();
  // The channel that opens later goes at once, and the device with it.
  BOOST_TEST(held.use_count() > 1);
  held->held = false;
  BOOST_TEST(wait_for([&] { return held.use_count() == 1; }));
}

BOOST_FIXTURE_TEST_CASE(a_request_waits_for_a_path_that_comes_back_but_not_for_a_client_that_does_not, Fixture) {
  const auto losing = std::make_shared<bdev::test::LosingPath>(device);
  auto started = NbdServer::start(*reactors, losing, {.path = path() + "-path"});
  BOOST_REQUIRE(started);
  const auto data = pattern(8192, 5);
  {
    NbdClient client(path() + "-path");
    client.go_to("");
    BOOST_REQUIRE(client.request(nbd::kCmdWrite, 4096, 8192));
    BOOST_REQUIRE(client.send(data));
    BOOST_REQUIRE(wait_for([&] { return losing->lost >= 2; }));
    losing->answer = bdev::IoStatus::kOk;
    BOOST_TEST(client.reply() == nbd::kOk);
    BOOST_TEST((client.read(4096, 8192) == data));
    losing->answer = bdev::IoStatus::kPathLost;
    const unsigned before = losing->lost;
    BOOST_REQUIRE(client.request(nbd::kCmdRead, 4096, 8192));
    BOOST_REQUIRE(wait_for([&] { return losing->lost > before; }));
  }
  // In less time than the path would be waited for.
  BOOST_TEST((*started)->stop(Deadline::after_s(15)).has_value());
}

BOOST_FIXTURE_TEST_CASE(what_was_written_is_read_on_every_connection, Fixture) {
  NbdClient first(path());
  const auto flags = first.go_to("volume");
  BOOST_TEST((flags & nbd::kSendFlush) != 0);
  BOOST_TEST((flags & nbd::kSendFua) != 0);
  BOOST_TEST((flags & nbd::kCanMultiConn) != 0);
  BOOST_TEST((flags & nbd::kReadOnly) == 0);
  NbdClient second(path());
  second.go_to("");
  const auto data = pattern(1 << 20, 1);
  BOOST_TEST(first.write(4096, data) == nbd::kOk);
  BOOST_TEST((second.read(4096, data.size()) == data));
  BOOST_TEST(second.write(512, pattern(512, 2), nbd::kCmdFlagFua) == nbd::kOk);
  BOOST_TEST((first.read(512, 512) == pattern(512, 2)));
  BOOST_TEST(first.ask(nbd::kCmdFlush, 0, 0) == nbd::kOk);
  BOOST_TEST(first.ask(nbd::kCmdWriteZeroes, 4096, 8192, nbd::kCmdFlagNoHole | nbd::kCmdFlagFua) == nbd::kOk);
  BOOST_TEST((second.read(4096, 8192) == std::vector<std::uint8_t>(8192)));
  BOOST_TEST(first.ask(nbd::kCmdTrim, 0, 4096, nbd::kCmdFlagFua) == nbd::kOk);
  BOOST_TEST(first.ask(nbd::kCmdWriteZeroes, 0, kDeviceBytes) == nbd::kOk);
  BOOST_TEST((second.read(16384, 4096) == std::vector<std::uint8_t>(4096)));
}

BOOST_FIXTURE_TEST_CASE(the_largest_request_passes_and_requests_may_be_many, Fixture) {
  NbdClient client(path());
  client.go_to("volume");
  const auto large = pattern(nbd::kMaxPayloadBytes, 3);
  std::thread writer([&] {
    client.request(nbd::kCmdWrite, 0, static_cast<std::uint32_t>(large.size()), 0, 7);
    client.send(large);
    for (std::uint64_t i = 0; i < 200; ++i) client.request(nbd::kCmdRead, i * 4096, 4096, 0, 100 + i);
  });
  BOOST_TEST(client.reply() == nbd::kOk);
  std::set<std::uint64_t> cookies;
  for (int i = 0; i < 200; ++i) {
    std::uint64_t cookie = 0;
    BOOST_REQUIRE(client.reply(&cookie) == nbd::kOk);
    std::vector<std::uint8_t> data(4096);
    BOOST_REQUIRE(client.receive(data.data(), data.size()));
    // Reads that overtook the write see zeros; the order is the client's business, so it waits in earnest elsewhere.
    cookies.insert(cookie);
  }
  writer.join();
  BOOST_TEST(cookies.size() == 200U);
  BOOST_TEST((client.read(0, 1 << 20) == std::vector<std::uint8_t>(large.begin(), large.begin() + (1 << 20))));
}

BOOST_FIXTURE_TEST_CASE(requests_that_are_wrong_fail_alone, Fixture) {
  NbdClient client(path());
  client.go_to("volume");
  BOOST_TEST(client.ask(nbd::kCmdRead, kDeviceBytes, 512) == nbd::kEinval);
  BOOST_TEST(client.ask(nbd::kCmdRead, kDeviceBytes - 512, 1024) == nbd::kEinval);
  BOOST_TEST(client.ask(nbd::kCmdRead, ~std::uint64_t{511}, 1024) == nbd::kEinval);
  BOOST_TEST(client.ask(nbd::kCmdRead, 1, 512) == nbd::kEinval);
  BOOST_TEST(client.ask(nbd::kCmdRead, 0, 511) == nbd::kEinval);
  BOOST_TEST(client.ask(nbd::kCmdRead, 0, 0) == nbd::kEinval);
  BOOST_TEST(client.ask(nbd::kCmdRead, 0, nbd::kMaxPayloadBytes + 512) == nbd::kEinval);
  BOOST_TEST(client.ask(nbd::kCmdRead, 0, 512, 1 << 9) == nbd::kEinval);
  BOOST_TEST(client.ask(nbd::kCmdTrim, kDeviceBytes, 512) == nbd::kEinval);
  BOOST_TEST(client.ask(nbd::kCmdWriteZeroes, 0, 0xfffffe00) == nbd::kEnospc);
  BOOST_TEST(client.ask(nbd::kCmdFlush, 4096, 0) == nbd::kEinval);
  BOOST_TEST(client.ask(77, 0, 0) == nbd::kEinval);
  // The data of a refused write is skipped, not taken for requests.
  BOOST_TEST(client.write(kDeviceBytes - 512, pattern(1024, 1)) == nbd::kEnospc);
  BOOST_TEST(client.write(3, pattern(512, 1)) == nbd::kEinval);
  BOOST_TEST(client.write(0, pattern(512, 1), 1 << 5) == nbd::kEinval);
  BOOST_TEST((client.read(0, 512) == std::vector<std::uint8_t>(512)));
}

BOOST_FIXTURE_TEST_CASE(a_read_only_socket_takes_no_writes, Fixture) {
  start({.read_only = true});
  NbdClient client(path());
  const auto flags = client.go_to("volume");
  BOOST_TEST((flags & nbd::kReadOnly) != 0);
  BOOST_TEST((flags & nbd::kSendTrim) == 0);
  BOOST_TEST(client.write(0, pattern(512, 1)) == nbd::kEperm);
  BOOST_TEST(client.ask(nbd::kCmdTrim, 0, 512) == nbd::kEperm);
  BOOST_TEST(client.ask(nbd::kCmdWriteZeroes, 0, 512) == nbd::kEperm);
  BOOST_TEST((client.read(0, 512) == std::vector<std::uint8_t>(512)));
}

BOOST_FIXTURE_TEST_CASE(options_are_answered_as_the_protocol_says, Fixture) {
  NbdClient client(path());
  BOOST_REQUIRE(client.send_flags(3));
  std::vector<std::uint8_t> data;
  BOOST_REQUIRE(client.send_option(nbd::kOptList, {}));
  BOOST_TEST(client.option_reply(&data) == nbd::kRepServer);
  BOOST_TEST(std::string(data.begin() + 4, data.end()) == "volume");
  BOOST_TEST(client.option_reply() == nbd::kRepAck);
  BOOST_REQUIRE(client.send_option(nbd::kOptList, {1}));
  BOOST_TEST(client.option_reply() == nbd::kRepErrInvalid);
  BOOST_REQUIRE(client.send_option(5, {}));  // STARTTLS
  BOOST_TEST(client.option_reply() == nbd::kRepErrUnsupported);
  BOOST_REQUIRE(client.send_option(nbd::kOptGo, NbdClient::go("other")));
  BOOST_TEST(client.option_reply() == nbd::kRepErrUnknown);
  for (const std::vector<std::uint8_t>& malformed : {std::vector<std::uint8_t>{},
                                                     {0, 0, 0},
                                                     {0xff, 0xff, 0xff, 0xff, 0, 0},
                                                     {0, 0, 0, 0, 0, 9},
                                                     {0, 0, 0, 1, 0, 0}}) {
    BOOST_REQUIRE(client.send_option(nbd::kOptInfo, malformed));
    BOOST_TEST(client.option_reply() == nbd::kRepErrInvalid);
  }
  BOOST_REQUIRE(client.send_option(nbd::kOptInfo, NbdClient::go("volume")));
  BOOST_TEST(client.option_reply() == nbd::kRepInfo);
  BOOST_TEST(client.option_reply(&data) == nbd::kRepInfo);
  BOOST_TEST(nbd::get<std::uint16_t>(data.data()) == nbd::kInfoBlockSize);
  BOOST_TEST(nbd::get<std::uint32_t>(data.data() + 2) == 512U);
  BOOST_TEST(client.option_reply() == nbd::kRepAck);
  BOOST_REQUIRE(client.send_option(nbd::kOptAbort, {}));
  BOOST_TEST(client.option_reply() == nbd::kRepAck);
  BOOST_TEST(client.closed());
}

BOOST_FIXTURE_TEST_CASE(the_old_way_of_naming_an_export_works_with_and_without_zeroes, Fixture) {
  for (const std::uint32_t flags : {1U, 3U}) {
    NbdClient client(path());
    BOOST_REQUIRE(client.send_flags(flags));
    BOOST_REQUIRE(client.send_option(nbd::kOptExportName, {'v', 'o', 'l', 'u', 'm', 'e'}));
    std::vector<std::uint8_t> answer(10 + (flags == 1 ? nbd::kExportNameZeroes : 0));
    BOOST_REQUIRE(client.receive(answer.data(), answer.size()));
    BOOST_TEST(nbd::get<std::uint64_t>(answer.data()) == kDeviceBytes);
    BOOST_TEST((client.read(0, 512) == std::vector<std::uint8_t>(512)));
  }
  NbdClient client(path());
  BOOST_REQUIRE(client.send_flags(3));
  BOOST_REQUIRE(client.send_option(nbd::kOptExportName, {'x'}));
  BOOST_TEST(client.closed());
}

BOOST_FIXTURE_TEST_CASE(breaches_of_the_protocol_end_the_connection_alone, Fixture) {
  {
    NbdClient client(path());
    client.send_flags(0xffffffff);
    BOOST_TEST(client.closed());
  }
  {
    NbdClient client(path());
    client.send_flags(3);
    client.send(pattern(64, 9));
    BOOST_TEST(client.closed());
  }
  {
    NbdClient client(path());
    client.send_flags(3);
    std::vector<std::uint8_t> option;
    nbd::append(option, nbd::kOptionMagic);
    nbd::append(option, nbd::kOptGo);
    nbd::append(option, std::uint32_t{0xffffffff});
    client.send(option);
    BOOST_TEST(client.closed());
  }
  {
    NbdClient client(path());
    client.send_flags(3);
    bool open = true;
    for (int i = 0; i < 100 && open; ++i) open = client.send_option(200, {}) && client.option_reply() != 0;
    BOOST_TEST(!open);
  }
  {
    NbdClient client(path());
    client.go_to("volume");
    client.send(pattern(28, 10));
    BOOST_TEST(client.closed());
  }
  {
    NbdClient client(path());
    client.go_to("volume");
    client.request(nbd::kCmdWrite, 0, 0xffffffff);
    BOOST_TEST(client.closed());
  }
  {
    NbdClient client(path());
    client.go_to("volume");
    client.request(nbd::kCmdWrite, 0, 1 << 20);
    client.send(pattern(1000, 11));
    client.hang_up();
  }
  still_serves();
}

BOOST_FIXTURE_TEST_CASE(random_bytes_never_hurt_the_next_client, Fixture) {
  const unsigned seed = std::random_device{}();
  BOOST_TEST_MESSAGE("seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 60; ++round) {
    NbdClient client(path());
    if (round % 3 != 0) client.send_flags(3);
    if (round % 3 == 2) {
      client.send_option(nbd::kOptGo, NbdClient::go("volume"));
      while (client.option_reply() == nbd::kRepInfo) {
      }
      for (int i = 0; i < 20; ++i) {
        client.request(static_cast<std::uint16_t>(random() % 9), random() % (2 * kDeviceBytes), random() % (1 << 16),
                       static_cast<std::uint16_t>(random() % 4));
      }
    }
    client.send(pattern(random() % 4096, random()));
    client.hang_up();
  }
  still_serves();
  BOOST_TEST(server->stop(Deadline::after_s(30)).has_value());
}

BOOST_FIXTURE_TEST_CASE(a_client_that_does_not_read_its_answers_does_not_hold_up_stop, Fixture) {
  NbdClient client(path());
  client.go_to("volume");
  // More than the socket's buffers hold: the sending thread is stuck in the middle of an answer.
  for (int i = 0; i < 4; ++i) client.request(nbd::kCmdRead, 0, 4 << 20);
  still_serves();
  BOOST_TEST(server->stop(Deadline::after_s(20)).has_value());
}

BOOST_FIXTURE_TEST_CASE(closing_does_not_wait_for_the_limits_of_the_volume, Fixture) {
  const auto held = std::make_shared<HeldDevice>(std::exchange(device, nullptr));
  device = held;
  start({});
  NbdClient client(path());
  client.go_to("volume");
  // More than a connection has slots, so that the reading thread waits for one when the end comes; what is left fits
  // the socket's buffers.
  for (unsigned i = 0; i < 48; ++i) {
    client.request(nbd::kCmdWrite, i * 4096, 4096, 0, i);
    client.send(pattern(4096, i));
  }
  BOOST_REQUIRE(wait_for([&] { return held->held == 32; }));
  client.hang_up();
  const auto status = server->stop(Deadline::after_s(20));
  BOOST_TEST(status.has_value(), (status ? "" : status.error().message));
  BOOST_TEST(held->held == 0U);
}

BOOST_FIXTURE_TEST_CASE(a_client_that_is_gone_leaves_its_place_though_limits_hold_its_requests, Fixture) {
  const auto held = std::make_shared<HeldDevice>(std::exchange(device, nullptr));
  device = held;
  start({.max_connections = 1});
  {
    NbdClient client(path());
    client.go_to("volume");
    for (unsigned i = 0; i < 100; ++i) client.request(nbd::kCmdWriteZeroes, i * 4096, 4096, 0, i);
    BOOST_REQUIRE(wait_for([&] { return held->held == 32; }));
  }
  BOOST_TEST(wait_for([&] { return greets(path()); }));
  BOOST_TEST(held->held == 0U);
}

BOOST_FIXTURE_TEST_CASE(connections_beyond_the_limit_are_closed, Fixture) {
  start({.max_connections = 1});
  NbdClient first(path());
  first.go_to("volume");
  BOOST_TEST(!greets(path()));
  BOOST_TEST(first.read(0, 512).size() == 512U);
}

BOOST_FIXTURE_TEST_CASE(clients_that_do_not_ask_for_the_export_keep_no_place, Fixture) {
  start({.max_connections = 2});
  NbdClient first(path());
  first.go_to("volume");
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 20; ++i) silent.push_back(connect_to(path()));
  NbdClient second(path());
  second.go_to("volume");
  BOOST_TEST(first.read(0, 512).size() == 512U);
  BOOST_TEST(second.read(0, 512).size() == 512U);
  BOOST_TEST(!greets(path()));
}

BOOST_FIXTURE_TEST_CASE(fua_is_taken_with_every_command_where_it_is_offered, Fixture) {
  NbdClient client(path());
  BOOST_REQUIRE((client.go_to("volume") & nbd::kSendFua) != 0);
  const auto data = pattern(4096, 5);
  BOOST_TEST(client.write(0, data, nbd::kCmdFlagFua) == nbd::kOk);
  BOOST_REQUIRE(client.ask(nbd::kCmdRead, 0, 4096, nbd::kCmdFlagFua) == nbd::kOk);
  std::vector<std::uint8_t> read(4096);
  BOOST_REQUIRE(client.receive(read.data(), read.size()));
  BOOST_TEST((read == data));
  BOOST_TEST(client.ask(nbd::kCmdFlush, 0, 0, nbd::kCmdFlagFua) == nbd::kOk);
  BOOST_TEST(client.ask(nbd::kCmdTrim, 0, 4096, nbd::kCmdFlagFua) == nbd::kOk);
  BOOST_TEST(client.ask(nbd::kCmdWriteZeroes, 0, 4096, nbd::kCmdFlagFua) == nbd::kOk);
  // "Error values": a flag that is not documented for the request is EINVAL.
  for (const auto& [type, flag] : {std::pair{nbd::kCmdRead, nbd::kCmdFlagNoHole},
                                   {nbd::kCmdRead, nbd::kCmdFlagDf},
                                   {nbd::kCmdRead, nbd::kCmdFlagReqOne},
                                   {nbd::kCmdTrim, nbd::kCmdFlagNoHole},
                                   {nbd::kCmdFlush, nbd::kCmdFlagDf},
                                   {nbd::kCmdWriteZeroes, std::uint16_t{1 << 4}},   // FAST_ZERO, not offered
                                   {nbd::kCmdWriteZeroes, std::uint16_t{1 << 5}}})  // PAYLOAD_LEN, not negotiated
  {
    const std::uint32_t length = type == nbd::kCmdFlush ? 0 : 4096;
    BOOST_TEST(client.ask(type, 0, length, flag) == nbd::kEinval, type << " with " << flag);
  }
}

BOOST_FIXTURE_TEST_CASE(what_may_be_sent_in_one_request_is_what_was_announced, Fixture) {
  NbdClient client(path());
  BOOST_REQUIRE(client.send_flags(3));
  BOOST_REQUIRE(client.send_option(nbd::kOptInfo, NbdClient::go("volume")));
  std::vector<std::uint8_t> info;
  std::uint32_t announced = 0;
  while (client.option_reply(&info) == nbd::kRepInfo) {
    if (nbd::get<std::uint16_t>(info.data()) == nbd::kInfoBlockSize)
      announced = nbd::get<std::uint32_t>(info.data() + 10);
  }
  BOOST_REQUIRE(announced >= 1U << 20);
  client.enter("volume");
  BOOST_TEST(client.read(0, announced).size() == announced);
  BOOST_TEST(client.ask(nbd::kCmdRead, 0, announced + 512) == nbd::kEinval);
}

BOOST_FIXTURE_TEST_CASE(options_that_are_too_long_are_skipped_and_answered, Fixture) {
  NbdClient client(path());
  BOOST_REQUIRE(client.send_flags(3));
  for (const std::uint32_t option : {nbd::kOptGo, nbd::kOptSetMetaContext, std::uint32_t{77}}) {
    BOOST_REQUIRE(client.send_option(option, pattern(200'000, option)));
    BOOST_TEST(client.option_reply() == nbd::kRepErrTooBig);
  }
  client.enter("volume");
  BOOST_TEST(client.read(0, 512).size() == 512U);
}

BOOST_FIXTURE_TEST_CASE(structured_replies_carry_reads_and_their_errors, Fixture) {
  NbdClient client(path());
  BOOST_REQUIRE(client.send_flags(3));
  BOOST_REQUIRE(client.send_option(nbd::kOptStructuredReply, {1}));
  BOOST_TEST(client.option_reply() == nbd::kRepErrInvalid);
  BOOST_REQUIRE(client.send_option(nbd::kOptStructuredReply, {}));
  BOOST_TEST(client.option_reply() == nbd::kRepAck);
  BOOST_TEST((client.enter("volume") & nbd::kSendDf) != 0);
  const auto data = pattern(8192, 1);
  BOOST_TEST(client.write(4096, data) == nbd::kOk);
  BOOST_REQUIRE(client.request(nbd::kCmdRead, 4096, 8192, nbd::kCmdFlagDf, 7));
  const auto read = client.chunk(7);
  BOOST_TEST(read.type == nbd::kChunkOffsetData);
  BOOST_REQUIRE(read.data.size() == 8 + data.size());
  BOOST_TEST(nbd::get<std::uint64_t>(read.data.data()) == 4096U);
  BOOST_TEST(std::equal(data.begin(), data.end(), read.data.begin() + 8));
  BOOST_REQUIRE(client.request(nbd::kCmdRead, kDeviceBytes, 4096, 0, 8));
  const auto beyond = client.chunk(8);
  BOOST_TEST(beyond.type == nbd::kChunkError);
  BOOST_REQUIRE(beyond.data.size() == 6U);
  BOOST_TEST(nbd::get<std::uint32_t>(beyond.data.data()) == nbd::kEinval);
  BOOST_REQUIRE(client.request(nbd::kCmdRead, 0, nbd::kMaxPayloadBytes + 512, nbd::kCmdFlagFua, 10));
  const auto large = client.chunk(10);
  BOOST_REQUIRE(large.data.size() == 6U);
  BOOST_TEST(nbd::get<std::uint32_t>(large.data.data()) == nbd::kEoverflow);
  // A device that cannot tell has no extents to ask for.
  BOOST_REQUIRE(client.request(nbd::kCmdBlockStatus, 0, 4096, 0, 9));
  BOOST_TEST(client.chunk(9).type == nbd::kChunkError);
}

BOOST_FIXTURE_TEST_CASE(queries_for_contexts_are_checked, Fixture) {
  NbdClient client(path());
  BOOST_REQUIRE(client.send_flags(3));
  const auto asked = [&](const std::vector<std::uint8_t>& bytes) {
    BOOST_REQUIRE(client.send_option(nbd::kOptSetMetaContext, bytes));
    return client.option_reply();
  };
  const auto good = query("volume", 1, {nbd::kAllocationContext});
  // "NBD_OPT_SET_META_CONTEXT": only with structured replies.
  BOOST_TEST(asked(good) == nbd::kRepErrInvalid);
  BOOST_REQUIRE(client.send_option(nbd::kOptStructuredReply, {}));
  BOOST_TEST(client.option_reply() == nbd::kRepAck);
  BOOST_TEST(asked(query("other", 1, {nbd::kAllocationContext})) == nbd::kRepErrUnknown);
  BOOST_TEST(asked(query("volume", 2, {nbd::kAllocationContext})) == nbd::kRepErrInvalid);
  BOOST_TEST(asked(query("volume", UINT32_MAX, {})) == nbd::kRepErrInvalid);
  BOOST_TEST(asked(query("volume", 0, {nbd::kAllocationContext})) == nbd::kRepErrInvalid);
  BOOST_TEST(asked({}) == nbd::kRepErrInvalid);
  BOOST_TEST(asked({0xff, 0xff, 0xff, 0xff, 'v'}) == nbd::kRepErrInvalid);
  BOOST_TEST(asked(query("volume", 1, {"qemu:dirty-bitmap:x"})) == nbd::kRepAck);
  client.enter("volume");
  BOOST_REQUIRE(client.request(nbd::kCmdBlockStatus, 0, 4096, 0, 3));
  BOOST_TEST(client.chunk(3).type == nbd::kChunkError);
  still_serves();
}

BOOST_FIXTURE_TEST_CASE(a_selection_of_contexts_that_fails_drops_the_one_before, Fixture) {
  device = std::make_shared<HeldDevice>(std::exchange(device, nullptr));
  start({});
  const auto good = query("volume", 1, {nbd::kAllocationContext});
  for (const auto& last : {good, query("other", 1, {nbd::kAllocationContext}), query("volume", 2, {"base:allocation"}),
                           query("volume", 1, {"base:"}), pattern(200'000, 6)}) {
    NbdClient client(path());
    BOOST_REQUIRE(client.send_flags(3));
    BOOST_REQUIRE(client.send_option(nbd::kOptStructuredReply, {}));
    BOOST_TEST(client.option_reply() == nbd::kRepAck);
    BOOST_REQUIRE(client.send_option(nbd::kOptSetMetaContext, good));
    BOOST_TEST(client.option_reply() == nbd::kRepMetaContext);
    BOOST_TEST(client.option_reply() == nbd::kRepAck);
    BOOST_REQUIRE(client.send_option(nbd::kOptSetMetaContext, last));
    for (auto type = client.option_reply(); type == nbd::kRepMetaContext;) type = client.option_reply();
    client.enter("volume");
    BOOST_REQUIRE(client.request(nbd::kCmdBlockStatus, 0, 4096, nbd::kCmdFlagFua | nbd::kCmdFlagReqOne, 4));
    const auto answer = client.chunk(4);
    BOOST_TEST((answer.type == nbd::kChunkBlockStatus) == (last == good), "type " << answer.type);
  }
}
