// What a peer of the control port sends once TLS is off it: frames, one after the other, answered by the gate of roles
// and the handler on a service with a pool in memory.
//
// An input is one byte that picks the caller's role, then frames: two bytes of length, the bytes. Not the role admin:
// it may open any file of the machine as a pool, and an input must not find a disk by chance.

#include <thrift/TProcessor.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/units.h"
#include "control/access_log.h"
#include "control/attachments.h"
#include "control/data_sockets.h"
#include "control/dispatch.h"
#include "control/handler.h"
#include "control/pools.h"
#include "control/rpc_frame.h"
#include "control/state_store.h"
#include "fuzz/input.h"
#include "reactor/reactor.h"
#include "vhost/vhost_service.h"
#include "volume/volume_service.h"

namespace {

using namespace pollux;
using namespace pollux::control;
using fuzz::Input;
using fuzz::require;

constexpr unsigned kMaxFrames = 16;
constexpr unsigned kInputsOfAWorld = 1000;
const Uuid kPool = *Uuid::parse("00000000-0000-4000-8000-000000000001");
// The volume that the inputs of the corpus know.
const Uuid kVolume = *Uuid::parse("00000000-0000-4000-8000-000000000002");

template <typename T>
T must(Result<T> result) {
  require(result.has_value(), result ? "" : result.error().message.c_str());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

// Everything that a daemon has but its port. What an input made stays for those that follow.
class World {
 public:
  World() {
    static const Status logging = log::init("critical", "");
    must(logging);
    char name[] = "/tmp/pollux-fuzz-XXXXXX";
    require(::mkdtemp(name) != nullptr, "a directory");
    folder_ = name;
    store_ = must(StateStore::open(folder_ + "/state"));
    reactors_ = must(reactor::ReactorGroup::start({{.id = 0}}));
    volumes_ = std::make_unique<volume::VolumeService>(*reactors_);
    vhost_ = must(vhost::VhostService::start(*reactors_, {.socket_dir = folder_ + "/vhost"}));
    pools_ = std::make_unique<Pools>(*store_, *reactors_, *volumes_);
    Attachments::Options options;
    options.socket_dir = folder_ + "/vhost";
    attachments_ = std::make_unique<Attachments>(*store_, *reactors_, *volumes_, *vhost_, options);
    DataSockets::Options data;
    data.dir = folder_ + "/data";
    std::filesystem::create_directories(data.dir);
    data_ = must(DataSockets::start(*reactors_, *volumes_, data));
    const volume::PoolSpec pool{kPool, "pool", {bdev::Spec::Kind::kRam, "", 64 * kMiB}, 0};
    must(pools_->create(pool, /*overwrite=*/false, Deadline::after_s(60)));
    pool_checks_ = std::make_unique<PoolChecks>(*reactors_, *volumes_, *pools_, *attachments_);
    backend_ = std::make_unique<Backend>(Backend{*reactors_, *volumes_, *vhost_, *store_, *pools_, *attachments_,
                                                 *data_, *pool_checks_, "host", "0", 0, 5'000, 10'000});
    make_volume();
  }
  ~World() {
    backend_.reset();
    pool_checks_.reset();
    data_.reset();
    attachments_.reset();
    pools_.reset();
    vhost_.reset();
    must(reactor::call(reactors_->main(), volumes_->close()));
    volumes_.reset();
    reactors_.reset();
    store_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::shared_ptr<apache::thrift::TProcessor> connect(Role role) {
    const Caller caller{role, "host", "fuzz"};
    return std::make_shared<GuardedProcessor>(std::make_shared<Handler>(*backend_, caller), caller, access_log_);
  }

 private:
  void make_volume() {
    const volume::VolumeSpec spec{kVolume, "volume", kMiB, volume::Provisioning::kThin};
    must(reactor::call(reactors_->main(), volumes_->create_volume("pool", spec)));
  }

  std::string folder_;
  AccessLog access_log_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<reactor::ReactorGroup> reactors_;
  std::unique_ptr<volume::VolumeService> volumes_;
  std::unique_ptr<vhost::VhostService> vhost_;
  std::unique_ptr<Pools> pools_;
  std::unique_ptr<Attachments> attachments_;
  std::unique_ptr<DataSockets> data_;
  std::unique_ptr<PoolChecks> pool_checks_;
  std::unique_ptr<Backend> backend_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static std::unique_ptr<World> world;
  static unsigned inputs = 0;
  // What inputs leave behind is bounded by beginning anew.
  if (inputs++ % kInputsOfAWorld == 0) {
    world.reset();
    world = std::make_unique<World>();
  }
  Input input(data, size);
  static constexpr Role kRoles[] = {Role::kCinder, Role::kCompute, Role::kReader, Role::kNone};
  const auto processor = world->connect(kRoles[input.byte() % 4]);
  for (unsigned i = 0; i < kMaxFrames && !input.empty(); ++i) {
    std::vector<std::uint8_t> frame(std::min<std::size_t>(input.word(), input.left()));
    if (frame.empty()) return 0;
    input.bytes(frame.data(), frame.size());
    const auto answer = answer_frame(*processor, frame);
    // The connection would have been dropped.
    if (!answer) return 0;
    require(answer->size() > 4, "an answer holds more than its length");
  }
  return 0;
}
