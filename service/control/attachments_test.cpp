// What becomes of attachments when the process dies between any two steps of a change. Each case runs in two processes
// of its own: one that is killed at a named step, and one that restores and must find a state that the caller can go on
// from.
#include "control/attachments.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/units.h"
#include "control/pools.h"
#include "control/test_certificates.h"

using namespace pollux;
using namespace pollux::control;

namespace {

const Uuid kPool = *Uuid::parse("00000000-0000-4000-8000-000000000001");
const Uuid kVolume = *Uuid::parse("00000000-0000-4000-8000-000000000002");
const Uuid kOther = *Uuid::parse("00000000-0000-4000-8000-000000000003");
const Uuid kAttachment = *Uuid::parse("00000000-0000-4000-8000-000000000004");
const std::string kClient = "00000000-0000-4000-8000-000000000005";
const Caller kAdmin{Role::kAdmin, "admin-host", "test"};
const Caller kCompute{Role::kCompute, "compute-1", "test"};

Deadline soon() {
  return Deadline::after_s(60);
}

// In a child process an assertion is an exit status with a line on standard error.
void must(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "in the child: %s\n", what.c_str());
  _exit(99);
}
template <typename T>
T must(Result<T> result, const std::string& what) {
  must(result.has_value(), what + ": " + (result ? "" : result.error().message));
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

// Everything that a service has around its attachments.
struct Service {
  explicit Service(const std::string& folder, std::function<void(const char*)> on_step = {}) {
    store = must(StateStore::open(folder + "/state"), "state");
    reactors = must(reactor::ReactorGroup::start({{.id = 0}, {.id = 1}}), "reactors");
    volumes = std::make_unique<volume::VolumeService>(*reactors);
    vhost::Options options;
    options.socket_dir = folder + "/vhost";
    vhost = must(vhost::VhostService::start(*reactors, options), "vhost");
    pools = std::make_unique<Pools>(*store, *reactors, *volumes);
    must(pools->restore(), "pools");
    attachments = std::make_unique<Attachments>(
        *store, *reactors, *volumes, *vhost,
        Attachments::Options{.socket_dir = options.socket_dir, .on_step = std::move(on_step)});
    must(attachments->restore(pools->all_open()), "restore");
  }
  ~Service() {
    attachments.reset();
    vhost.reset();
    must(reactor::call(reactors->main(), volumes->close()), "close");
    volumes.reset();
    reactors->stop();
  }

  std::unique_ptr<StateStore> store;
  std::unique_ptr<reactor::ReactorGroup> reactors;
  std::unique_ptr<volume::VolumeService> volumes;
  std::unique_ptr<vhost::VhostService> vhost;
  std::unique_ptr<Pools> pools;
  std::unique_ptr<Attachments> attachments;
};

AttachRequest request(TransportKind transport = TransportKind::kScsi) {
  return {kAttachment, kVolume, kClient, transport, 0, false};
}

void prepare(Service& service, const std::string& folder) {
  volume::PoolSpec pool{kPool, "pool", {bdev::Spec::Kind::kUring, folder + "/pool", 256 * kMiB}, 0};
  must(service.pools->create(pool, false, soon()), "pool");
  for (const auto& id : {kVolume, kOther}) {
    volume::VolumeSpec spec{id, id.to_string(), 16 * kMiB, volume::Provisioning::kThin};
    must(reactor::call(service.reactors->main(), service.volumes->create_volume("pool", spec)), "volume");
  }
}

int in_child(const std::function<void()>& work) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(120);  // a child that hangs fails
    work();
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

bool is_socket(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode);
}

// `change` is killed when it reaches `step`; `check` then runs on a service that has restored.
void kill_at(const std::string& step, const std::function<void(Service&)>& before,
             const std::function<void(Service&)>& change, const std::function<void(Service&)>& check) {
  BOOST_TEST_CONTEXT(step) {
    test::Folder folder;
    const int killed = in_child([&] {
      bool armed = false;
      Service service(folder.path(), [&](const char* reached) {
        if (armed && step == reached) kill(getpid(), SIGKILL);
      });
      prepare(service, folder.path());
      before(service);
      armed = true;
      change(service);
    });
    BOOST_REQUIRE_MESSAGE(WIFSIGNALED(killed) && WTERMSIG(killed) == SIGKILL, "the step was not reached: " << killed);
    const int checked = in_child([&] {
      Service service(folder.path());
      check(service);
    });
    BOOST_TEST(checked == 0);
  }
}

void attach(Service& service, const Caller& caller = kAdmin, TransportKind transport = TransportKind::kScsi) {
  must(service.attachments->attach(caller, request(transport), soon()), "attach");
}
void nothing(Service&) {}

}  // namespace

BOOST_AUTO_TEST_CASE(an_attach_that_was_killed_can_be_repeated_and_gives_one_attachment) {
  for (const auto transport : {TransportKind::kScsi, TransportKind::kBlk}) {
    for (const char* step : {"attach.planned", "attach.recorded", "place.controller", "attach.placed"}) {
      if (transport == TransportKind::kBlk && std::string(step) == "place.controller") continue;
      kill_at(
          step, nothing, [&](Service& service) { attach(service, kAdmin, transport); },
          [&](Service& service) {
            const auto restored = must(service.attachments->list({}, ""), "list");
            const bool recorded = std::string(step) != "attach.planned";
            must(restored.size() == (recorded ? 1U : 0U), "what was recorded is restored, and nothing else");
            for (const auto& one : restored) must(is_socket(one.socket_path), "the socket is back");
            const auto again = must(service.attachments->attach(kAdmin, request(transport), soon()), "repeat");
            must(is_socket(again.socket_path), "the socket is there");
            must(again.record.target == 0, "the first target");
            must(must(service.attachments->list({}, ""), "list").size() == 1U, "one attachment");
            must(service.attachments->detach(kAdmin, kAttachment, soon()), "detach");
            if (transport == TransportKind::kBlk) must(!is_socket(again.socket_path), "the socket is gone");
          });
    }
  }
}

BOOST_AUTO_TEST_CASE(a_detach_that_was_killed_leaves_all_or_nothing_and_can_be_repeated) {
  for (const char* step : {"drop.unplaced", "drop.forgotten"}) {
    kill_at(
        step, [](Service& service) { attach(service); },
        [](Service& service) { must(service.attachments->detach(kAdmin, kAttachment, soon()), "detach"); },
        [&](Service& service) {
          const auto left = must(service.attachments->list({}, ""), "list");
          must(left.size() == (std::string(step) == "drop.unplaced" ? 1U : 0U), "recorded until forgotten");
          must(service.attachments->detach(kAdmin, kAttachment, soon()), "repeat");
          must(service.attachments->detach(kAdmin, kAttachment, soon()), "repeat again");
          must(must(service.attachments->list({}, ""), "list").empty(), "gone");
          must(reactor::call(service.reactors->main(), service.volumes->delete_volume(kVolume)),
               "nobody holds the volume");
        });
  }
}

BOOST_AUTO_TEST_CASE(a_controller_outlives_a_kill_before_and_after_its_socket_was_placed) {
  for (const char* step : {"controller.recorded", "controller.placed"}) {
    kill_at(
        step, nothing,
        [](Service& service) { must(service.attachments->ensure_controller(kAdmin, kClient, 3, soon()), "ensure"); },
        [](Service& service) {
          const auto path = must(service.attachments->ensure_controller(kAdmin, kClient, 3, soon()), "repeat");
          must(is_socket(path), "the socket is there");
          must(service.attachments->delete_controller(kAdmin, kClient, soon()), "delete");
          must(!is_socket(path), "the socket is gone");
        });
  }
  kill_at(
      "controller.removed",
      [](Service& service) { must(service.attachments->ensure_controller(kAdmin, kClient, 3, soon()), "ensure"); },
      [](Service& service) { must(service.attachments->delete_controller(kAdmin, kClient, soon()), "delete"); },
      [](Service& service) {
        must(service.attachments->delete_controller(kAdmin, kClient, soon()), "repeat");
        must(must(service.store->controllers(), "controllers").empty(), "gone");
      });
}

BOOST_AUTO_TEST_CASE(a_right_that_was_taken_back_is_gone_with_its_attachments_even_after_a_kill) {
  kill_at(
      "unauthorise.forgotten",
      [](Service& service) {
        must(service.attachments->authorise({kVolume, kCompute.host, false, {}}, soon()), "authorise");
        attach(service, kCompute);
      },
      [](Service& service) { must(service.attachments->unauthorise(kVolume, kCompute.host, {}, soon()), "unauthorise"); },
      [](Service& service) {
        must(must(service.attachments->list({}, ""), "list").empty(), "the attachment fell with its right");
        const auto denied = service.attachments->attach(kCompute, request(), soon());
        must(!denied && denied.error().code == ErrorCode::kDenied, "no right, no attachment");
      });
}

BOOST_AUTO_TEST_CASE(a_volume_deletion_that_was_killed_can_be_repeated_and_forgets_its_rights) {
  const auto remove = [](Service& service) {
    const auto deletion = [&]() -> Status {
      auto deleted = reactor::call(service.reactors->main(), service.volumes->delete_volume(kVolume));
      if (!deleted && deleted.error().code == ErrorCode::kNotFound) return {};
      return deleted;
    };
    must(service.attachments->delete_volume(kVolume, deletion, soon()), "delete");
  };
  kill_at(
      "volume.deleted",
      [](Service& service) {
        must(service.attachments->authorise({kVolume, "compute-1", false, {}}, soon()), "authorise");
      },
      remove,
      [&](Service& service) {
        remove(service);
        must(must(service.store->authorisations(kVolume), "authorisations").empty(), "forgotten");
      });
}

BOOST_AUTO_TEST_CASE(rights_targets_and_conflicts) {
  test::Folder folder;
  const int status = in_child([&] {
    Service service(folder.path());
    prepare(service, folder.path());
    auto& attachments = *service.attachments;
    const auto code = [](const auto& result) { return result ? std::string("ok") : to_string(result.error().code); };

    must(code(attachments.attach(kCompute, request(), soon())) == "denied", "compute needs a right");
    must(attachments.authorise({kVolume, kCompute.host, true, {}}, soon()), "authorise");
    const auto first = must(attachments.attach(kCompute, request(), soon()), "attach");
    must(first.record.read_only && first.record.authorised && first.record.target == 0,
         "read-only as allowed, first target");
    must(must(attachments.attach(kCompute, request(), soon()), "repeat").record == first.record, "the same answer");
    auto different = request();
    different.queues = 2;
    must(code(attachments.attach(kCompute, different, soon())) == "exists", "the same id with other parameters");
    auto twice = request();
    twice.id = Uuid::random();
    must(code(attachments.attach(kCompute, twice, soon())) == "exists", "the same volume twice in one guest");
    const Caller elsewhere{Role::kCompute, "compute-2", "test"};
    must(code(attachments.detach(elsewhere, kAttachment, soon())) == "denied", "another host's attachment");
    must(code(attachments.delete_controller(elsewhere, kClient, soon())) == "denied", "another host's controller");
    must(code(attachments.delete_controller(kCompute, kClient, soon())) == "busy", "a controller with a volume");
    must(code(attachments.delete_volume(
             kVolume, [] { return Status(); }, soon())) == "busy",
         "an attached volume");

    auto second = request();
    second.id = Uuid::random();
    second.volume = kOther;
    must(must(attachments.attach(kAdmin, second, soon()), "second").record.target == 1, "the next target");
    // A volume that comes back gets the place it had, though a lower one is free.
    must(attachments.detach(kAdmin, second.id, soon()), "detach second");
    must(attachments.detach(kCompute, kAttachment, soon()), "detach first");
    must(must(attachments.attach(kAdmin, second, soon()), "second again").record.target == 1, "the place it had");
    auto missing = request();
    missing.volume = Uuid::random();
    must(code(attachments.attach(kAdmin, missing, soon())) == "not_found", "a volume that is not there");
    must(must(attachments.list({}, ""), "list").size() == 1U, "a failed attach leaves nothing");
    must(attachments.unauthorise(kOther, "", {}, soon()), "every host");
    must(must(attachments.list({}, ""), "list").empty(), "every attachment of the volume");

    const auto one = Uuid::random(), other = Uuid::random();
    for (const auto& grant : {one, other}) {
      must(attachments.authorise({kOther, kCompute.host, false, grant}, soon()), "a grant for each guest");
    }
    second.id = Uuid::random();
    must(attachments.attach(kCompute, second, soon()), "attach under two grants");
    for (int round = 0; round < 2; ++round) {
      must(attachments.unauthorise(kOther, kCompute.host, one, soon()), "one grant, however often");
      must(must(attachments.list({}, ""), "list").size() == 1U, "the other grant goes on");
    }
    must(attachments.unauthorise(kOther, kCompute.host, other, soon()), "the last grant");
    must(must(attachments.list({}, ""), "list").empty(), "nothing is left without a grant");
  });
  BOOST_TEST(status == 0);
}

BOOST_AUTO_TEST_CASE(a_call_whose_time_is_over_does_not_wait_for_a_reactor) {
  test::Folder folder;
  const int status = in_child([&] {
    Service service(folder.path());
    prepare(service, folder.path());
    std::promise<void> release;
    service.reactors->main().post([busy = release.get_future().share()] { busy.wait(); });
    const auto none = Deadline::after_ms(0);
    std::atomic<unsigned> answered = 0;
    std::vector<std::thread> callers;
    const auto call = [&](const char* what, const std::function<ErrorCode()>& make) {
      callers.emplace_back([what, make, &answered] {
        must(make() == ErrorCode::kRetry, what);
        ++answered;
      });
    };
    const auto code = [](const auto& result) { return result ? ErrorCode::kInternal : result.error().code; };
    call("attach", [&] { return code(service.attachments->attach(kAdmin, request(), none)); });
    call("authorise", [&] { return code(service.attachments->authorise({kOther, kCompute.host, false, {}}, none)); });
    call("import", [&] {
      return code(service.pools->import({bdev::Spec::Kind::kUring, folder.path() + "/pool", 0}, false, none));
    });
    const auto patience = soon();
    while (answered < callers.size() && !patience.passed()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    must(answered == callers.size(), "all calls ended while the reactor was busy");
    release.set_value();
    for (auto& caller : callers) caller.join();
  });
  BOOST_TEST(status == 0);
}

BOOST_AUTO_TEST_CASE(a_blk_socket_has_the_same_name_on_every_host_and_one_for_each_guest) {
  BOOST_TEST(Attachments::blk_name(kVolume, kClient) == Attachments::blk_name(kVolume, kClient));
  BOOST_TEST(Attachments::blk_name(kVolume, kClient) != Attachments::blk_name(kVolume, "other"));
  BOOST_TEST(Attachments::blk_name(kVolume, kClient) != Attachments::blk_name(kOther, kClient));
  BOOST_TEST(Attachments::blk_name(kVolume, kClient).size() == 33U);
}
