// The real polluxd binary, as an operator and a client see it: what a restart keeps, what a wrong start says, how it
// ends.
#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <thrift/protocol/TBinaryProtocol.h>
#include <thrift/transport/TBufferTransports.h>
#include <thrift/transport/TSSLSocket.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "PolluxService.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "base/uuid.h"
#include "control/test_certificates.h"
#include "control/test_client.h"

extern char** environ;

using namespace pollux;
using namespace pollux::control;
using test::Holder;

namespace {

using apache::thrift::transport::AccessManager;

// The tests' certificates name no address; who the service is, is not what is tested here.
struct Trusting : AccessManager {
  Decision verify(const sockaddr_storage&) noexcept override { return ALLOW; }
};

// A client as Thrift itself makes one.
struct Rpc {
  Rpc(std::uint16_t port, const TlsFiles& files) {
    using namespace apache::thrift;
    factory.authenticate(true);
    factory.loadTrustedCertificates(files.ca.c_str());
    factory.loadCertificate(files.certificate.c_str());
    factory.loadPrivateKey(files.key.c_str());
    factory.access(std::make_shared<Trusting>());
    auto socket = factory.createSocket("127.0.0.1", port);
    socket->setRecvTimeout(60'000);
    transport = std::make_shared<transport::TFramedTransport>(socket);
    service = std::make_unique<rpc::PolluxServiceClient>(std::make_shared<protocol::TBinaryProtocol>(transport));
    transport->open();
  }
  rpc::PolluxServiceClient* operator->() { return service.get(); }

  apache::thrift::transport::TSSLSocketFactory factory;
  std::shared_ptr<apache::thrift::transport::TTransport> transport;
  std::unique_ptr<rpc::PolluxServiceClient> service;
};

rpc::ErrorCode::type code_of(const std::function<void()>& call, std::string* message = nullptr) {
  try {
    call();
  } catch (const rpc::PolluxError& e) {
    if (message != nullptr) *message = e.message;
    return e.code;
  }
  return static_cast<rpc::ErrorCode::type>(0);
}

bool wait_for(const std::function<bool()>& holds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (std::chrono::steady_clock::now() < deadline) {
    if (holds()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

bool accepts(const std::string& path) {
  const UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  return connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// A port that was free a moment ago.
std::uint16_t free_port() {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  BOOST_REQUIRE(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  BOOST_REQUIRE(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
  return ntohs(address.sin_port);
}

struct Fixture {
  Fixture() : authority(folder, "ca"), port(free_port()), metrics_port(free_port()) {
    std::signal(SIGPIPE, SIG_IGN);
    apache::thrift::transport::TSSLSocketFactory::setManualOpenSSLInitialization(true);
    server = authority.issue("server", {"server", {"server"}});
    admin = authority.issue("admin", {"host-1", {"admin"}});
    compute = authority.issue("compute", {"compute-1", {"compute"}});
    write_config("");
  }
  ~Fixture() {
    if (pid > 0) end(SIGKILL);
  }

  void write_config(const std::string& more) {
    std::ofstream(config()) << "[service]\nhost_id = \"host-1\"\nstate_dir = \"" << path("state")
                            << "\"\nruntime_dir = \"" << path("run") << "\"\nlog_file = \"" << log() << "\"\n"
                            << "[reactors]\ncount = 2\n[control]\nlisten = \"127.0.0.1:" << port << "\"\nca = \""
                            << server.ca << "\"\ncertificate = \"" << server.certificate << "\"\nkey = \"" << server.key
                            << "\"\n[metrics]\nlisten = \"127.0.0.1:" << metrics_port << "\"\n"
                            << more;
  }
  std::string path(const std::string& name) const { return folder.path() + "/" + name; }
  std::string config() const { return path("polluxd.toml"); }
  std::string log() const { return path("log"); }

  void spawn(const std::vector<std::string>& arguments, const std::string& output) {
    std::vector<std::string> words = {POLLUXD_BINARY};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    BOOST_REQUIRE(posix_spawn(&pid, POLLUXD_BINARY, &actions, nullptr, argv.data(), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  int wait_exit() {
    int status = -1;
    BOOST_REQUIRE(waitpid(pid, &status, 0) == pid);
    pid = -1;
    return status;
  }
  int end(int signal) {
    kill(pid, signal);
    return wait_exit();
  }
  // Exit status and output of a run that is expected to end by itself.
  int run(const std::vector<std::string>& arguments, std::string& output) {
    spawn(arguments, path("output"));
    const int status = wait_exit();
    output = read_file(path("output"));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  bool port_is_open() const {
    try {
      close(test::connect_to(port));
      return true;
    } catch (const std::runtime_error&) {
      return false;
    }
  }
  void start() {
    spawn({"--config", config()}, path("output"));
    BOOST_REQUIRE_MESSAGE(wait_for([this] { return port_is_open(); }), read_file(log()) << read_file(path("output")));
  }

  test::Folder folder;
  test::Authority authority;
  std::uint16_t port;
  std::uint16_t metrics_port;
  TlsFiles server;
  TlsFiles admin;
  TlsFiles compute;
  pid_t pid = -1;
};

const rpc::RequestContext kContext;

rpc::PoolSpec file_pool(const std::string& path) {
  rpc::PoolSpec spec;
  spec.pool_id = Uuid::random().to_string();
  spec.name = "disk";
  spec.bdev.kind = rpc::BdevKind::URING;
  spec.bdev.__set_path(path);
  spec.bdev.__set_size_bytes(256 * kMiB);
  return spec;
}

rpc::VolumeSpec volume(const std::string& name) {
  rpc::VolumeSpec spec;
  spec.volume_id = Uuid::random().to_string();
  spec.name = name;
  spec.size_bytes = 16 * kMiB;
  spec.provisioning = rpc::Provisioning::THIN;
  return spec;
}

rpc::AttachSpec attachment(const rpc::VolumeSpec& volume, const std::string& client, rpc::Transport::type transport) {
  rpc::AttachSpec spec;
  spec.attachment_id = Uuid::random().to_string();
  spec.volume_id = volume.volume_id;
  spec.client_id = client;
  spec.transport = transport;
  return spec;
}

}  // namespace

BOOST_FIXTURE_TEST_CASE(a_restart_after_a_kill_brings_every_socket_back_before_the_port_opens, Fixture) {
  start();
  const auto pool = file_pool(path("pool"));
  auto ram = pool;
  ram.pool_id = Uuid::random().to_string();
  ram.name = "memory";
  ram.bdev = {};
  ram.bdev.kind = rpc::BdevKind::RAM;
  ram.bdev.__set_size_bytes(64 * kMiB);
  const auto boot = volume("boot");
  const auto data = volume("data");
  const auto scratch = volume("scratch");
  const std::string guest = Uuid::random().to_string();
  const auto scsi = attachment(boot, guest, rpc::Transport::SCSI);
  const auto blk = attachment(data, guest, rpc::Transport::BLK);
  rpc::AttachmentInfo scsi_info;
  rpc::AttachmentInfo blk_info;
  rpc::DataSocketInfo socket_info;
  {
    Rpc rpc(port, admin);
    rpc::PoolInfo info;
    rpc->pool_create(info, kContext, pool);
    rpc->pool_create(info, kContext, pool);  // the same request, the same answer
    BOOST_TEST(info.pool_id == pool.pool_id);
    rpc->pool_create(info, kContext, ram);
    rpc::VolumeInfo created;
    rpc->volume_create(created, kContext, "disk", boot);
    rpc->volume_create(created, kContext, "disk", data);
    rpc->volume_create(created, kContext, "memory", scratch);
    Rpc host(port, compute);
    std::string message;
    BOOST_TEST(code_of([&] { host->attach(scsi_info, kContext, scsi); }, &message) == rpc::ErrorCode::DENIED);
    BOOST_TEST(contains(message, "compute-1 is not authorised"), message);
    rpc::Authorisation right;
    right.volume_id = boot.volume_id;
    right.host = "compute-1";
    right.__set_read_only(true);
    rpc->authorise(kContext, right);
    host->attach(scsi_info, kContext, scsi);
    BOOST_TEST(scsi_info.read_only);
    rpc->attach(blk_info, kContext, blk);
    BOOST_TEST(blk_info.serial == data.volume_id.substr(0, 20));
    rpc::AttachmentInfo gone;
    rpc->attach(gone, kContext, attachment(scratch, guest, rpc::Transport::SCSI));
    BOOST_TEST(gone.target == 1);
    rpc::DataSocketSpec spec;
    spec.socket_id = Uuid::random().to_string();
    spec.volume_id = data.volume_id;
    // The guest writes it as well.
    spec.__set_shared(true);
    rpc->data_open(socket_info, kContext, spec);
    BOOST_TEST(accepts(socket_info.path));
    BOOST_TEST(code_of([&] { rpc->volume_delete(kContext, boot.volume_id); }) == rpc::ErrorCode::BUSY);
  }
  end(SIGKILL);
  BOOST_TEST(!accepts(scsi_info.socket_path));
  for (int round = 0; round < 3; ++round) {
    start();
    // The port has just opened, and nobody has asked for anything.
    BOOST_TEST(accepts(scsi_info.socket_path));
    BOOST_TEST(accepts(blk_info.socket_path));
    BOOST_TEST(!std::filesystem::exists(socket_info.path));
    Rpc rpc(port, admin);
    rpc::AttachmentInfo again;
    rpc->attach(again, kContext, blk);
    BOOST_TEST((again.socket_path == blk_info.socket_path));
    std::vector<rpc::AttachmentInfo> list;
    rpc->attachment_list(list, kContext, "", "");
    BOOST_TEST(list.size() == 2U);
    std::vector<rpc::PoolInfo> pools;
    rpc->pool_list(pools, kContext);
    BOOST_REQUIRE(pools.size() == 1U);
    BOOST_TEST(pools[0].name == "disk");
    BOOST_TEST(pools[0].volumes == 2);
    BOOST_TEST(contains(read_file(log()), "pool memory was in memory and is gone"));
    end(SIGKILL);
  }
  start();
  Rpc rpc(port, admin);
  rpc->unauthorise(kContext, boot.volume_id, "compute-1", "");
  rpc->detach(kContext, blk.attachment_id);
  rpc->controller_delete(kContext, guest);
  BOOST_TEST(!accepts(scsi_info.socket_path));
  BOOST_TEST(!accepts(blk_info.socket_path));
  rpc->volume_delete(kContext, boot.volume_id);
  rpc->volume_delete(kContext, data.volume_id);
  rpc->volume_delete(kContext, data.volume_id);
  rpc->pool_export(kContext, "disk");
  rpc->pool_export(kContext, "disk");
}

BOOST_FIXTURE_TEST_CASE(a_pool_that_does_not_open_stops_nobody_and_its_volumes_are_not_taken_for_deleted, Fixture) {
  start();
  const auto pool = file_pool(path("pool"));
  const auto boot = volume("boot");
  const auto scsi = attachment(boot, "guest", rpc::Transport::SCSI);
  {
    Rpc rpc(port, admin);
    rpc::PoolInfo info;
    rpc->pool_create(info, kContext, pool);
    rpc::VolumeInfo created;
    rpc->volume_create(created, kContext, "disk", boot);
    rpc::AttachmentInfo attached;
    rpc->attach(attached, kContext, scsi);
  }
  end(SIGKILL);
  std::filesystem::rename(path("pool"), path("elsewhere"));
  start();
  Rpc rpc(port, admin);
  std::string message;
  rpc::VolumeInfo found;
  BOOST_TEST(code_of([&] { rpc->volume_describe(found, kContext, boot.volume_id); }, &message) ==
             rpc::ErrorCode::RETRY);
  BOOST_TEST(contains(message, "disk"), message);
  BOOST_TEST(contains(message, path("pool")), message);
  rpc::AttachmentInfo attached;
  BOOST_TEST(code_of([&] { rpc->attach(attached, kContext, scsi); }) == rpc::ErrorCode::RETRY);
  BOOST_TEST(code_of([&] { rpc->volume_delete(kContext, Uuid::random().to_string()); }) == rpc::ErrorCode::RETRY);
  BOOST_TEST(!std::filesystem::exists(path("pool")));  // no empty file was made in its place
  std::filesystem::rename(path("elsewhere"), path("pool"));
  rpc::PoolInfo info;
  rpc->pool_import(info, kContext, pool.bdev, false);
  BOOST_TEST(info.pool_id == pool.pool_id);
  rpc->attach(attached, kContext, scsi);
  BOOST_TEST(accepts(attached.socket_path));
  rpc->volume_describe(found, kContext, boot.volume_id);
  BOOST_TEST(found.attachments == 1);
}

BOOST_FIXTURE_TEST_CASE(sigterm_ends_it_cleanly_and_says_so_to_the_manager, Fixture) {
  const std::string notify = path("notify");
  const UniqueFd manager(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, notify.c_str(), sizeof(address.sun_path) - 1);
  BOOST_REQUIRE(bind(manager.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  const timeval limit{60, 0};
  setsockopt(manager.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  const auto told = [&] {
    std::string text(64, '\0');
    const auto got = recv(manager.get(), text.data(), text.size(), 0);
    return text.substr(0, static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  };
  setenv("NOTIFY_SOCKET", notify.c_str(), 1);
  start();
  unsetenv("NOTIFY_SOCKET");
  BOOST_TEST(told() == "READY=1");
  const auto pool = file_pool(path("pool"));
  const auto data = volume("data");
  rpc::DataSocketInfo socket_info;
  std::unique_ptr<Rpc> idle = std::make_unique<Rpc>(port, admin);
  rpc::PoolInfo info;
  (*idle)->pool_create(info, kContext, pool);
  rpc::VolumeInfo created;
  (*idle)->volume_create(created, kContext, "disk", data);
  rpc::DataSocketSpec spec;
  spec.socket_id = Uuid::random().to_string();
  spec.volume_id = data.volume_id;
  (*idle)->data_open(socket_info, kContext, spec);
  const int status = end(SIGTERM);
  BOOST_TEST(WIFEXITED(status));
  BOOST_TEST(WEXITSTATUS(status) == 0);
  BOOST_TEST(told() == "STOPPING=1");
  BOOST_TEST(!std::filesystem::exists(socket_info.path));
  BOOST_TEST(contains(read_file(log()), "stop: pools closed"));
  start();
  Rpc rpc(port, admin);
  rpc->volume_describe(created, kContext, data.volume_id);
  BOOST_TEST(created.name == "data");
}

BOOST_FIXTURE_TEST_CASE(sighup_opens_the_log_again, Fixture) {
  start();
  std::filesystem::rename(log(), path("log.1"));
  kill(pid, SIGHUP);
  BOOST_TEST(wait_for([this] { return contains(read_file(log()), "reload: log reopened, certificates read"); }));
  Rpc rpc(port, admin);
  rpc::ServiceInfo info;
  rpc->describe(info, kContext);
  BOOST_TEST(info.host_id == "host-1");
  BOOST_TEST(info.reactors == 2);
}

BOOST_FIXTURE_TEST_CASE(a_wrong_command_line_or_configuration_says_what_is_wrong, Fixture) {
  std::string output;
  BOOST_TEST(run({"--config", config(), "--check"}, output) == 0);
  BOOST_TEST(run({"--version"}, output) == 0);
  BOOST_TEST(contains(output, "polluxd "), output);
  BOOST_TEST(run({"--help"}, output) == 0);
  BOOST_TEST(contains(output, "--check"), output);
  BOOST_TEST(run({}, output) != 0);
  BOOST_TEST(run({"--config", path("none")}, output) == 2);
  BOOST_TEST(contains(output, path("none")), output);
  write_config("[vhost]\nqueues = 3\n");
  BOOST_TEST(run({"--config", config(), "--check"}, output) == 2);
  BOOST_TEST(contains(output, config() + ":16: unknown key 'queues' in [vhost]"), output);
}

BOOST_FIXTURE_TEST_CASE(what_keeps_it_from_starting_is_named, Fixture) {
  start();
  const pid_t first = pid;
  std::string output;
  BOOST_TEST(run({"--config", config()}, output) == 1);
  BOOST_TEST(contains(read_file(log()), "another polluxd uses the state directory " + path("state")));
  // Another state directory, but the same port.
  std::string text = read_file(config());
  for (const std::string name : {"/state", "/run"}) text.replace(text.find(name + "\""), name.size(), name + "2");
  text.replace(text.find(std::to_string(metrics_port)), std::to_string(metrics_port).size(),
               std::to_string(free_port()));
  std::ofstream(path("second.toml")) << text;
  BOOST_TEST(run({"--config", path("second.toml")}, output) == 1);
  BOOST_TEST(contains(read_file(log()), "cannot listen on 127.0.0.1:" + std::to_string(port)));
  pid = first;
  BOOST_TEST(end(SIGTERM) == 0);
  std::ofstream(server.key, std::ios::trunc) << "rubbish";
  BOOST_TEST(run({"--config", config()}, output) == 1);
  BOOST_TEST(contains(read_file(log()), server.key));
}
