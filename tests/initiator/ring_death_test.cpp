// A device that dies at any instruction leaves a ring that its successor can take over: every request is answered once,
// and no answer is seen before its request was done. The device is a process of its own that does nothing but serve
// one ring as fast as it can, so that kills land in the middle of taking, answering and showing.

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "initiator/driver_ring.h"
#include "virtio/inflight.h"
#include "virtio/virtqueue.h"

namespace pollux::initiator {
namespace {

using Clock = std::chrono::steady_clock;

struct Variant {
  const char* name;
  RingOptions ring;
  unsigned depth;
};
std::ostream& operator<<(std::ostream& out, const Variant& variant) {
  return out << variant.name;
}

const Variant kVariants[] = {
    {"split", {.size = 64}, 20},
    {"split, full, EVENT_IDX", {.size = 32, .event_idx = true, .indirect = true}, 32},
    {"packed", {.size = 100, .packed = true}, 20},
    {"packed, nearly full", {.size = 37, .packed = true, .event_idx = true}, 18},
    {"packed, indirect, full", {.size = 24, .packed = true, .indirect = true}, 24},
};

int kills() {
  const char* wanted = std::getenv("POLLUX_RESTARTS");
  return 40 * (wanted ? std::atoi(wanted) : 5);
}

// What the two sides have in common beside the ring: a number that the device copies.
struct Slot {
  std::uint64_t* question;
  std::uint64_t* answer;
};

// A ring, and what a device needs to take it over.
struct Shared {
  explicit Shared(const RingOptions& ring_options) : options(ring_options) {
    const auto& part = ram.parts().front();
    auto region = virtio::map_region({.guest_addr = part.region.guest_addr,
                                      .size_bytes = part.region.size_bytes,
                                      .user_addr = part.region.user_addr,
                                      .file_offset = part.region.mmap_offset},
                                     UniqueFd(::dup(part.fd)));
    memory = *virtio::GuestMemory::make({region.value()});
    const UniqueFd file(::memfd_create("inflight", MFD_CLOEXEC));
    const auto bytes = virtio::InflightRegion::queue_bytes(options.size, options.packed);
    BOOST_REQUIRE(::ftruncate(file.get(), static_cast<off_t>(bytes)) == 0);
    inflight = std::make_shared<virtio::InflightRegion>(virtio::SharedMapping::map(file.get(), 0, bytes).value(),
                                                        std::uint16_t{1}, options.size, options.packed);
  }
  virtio::QueueSetup setup() const {
    const VringAddr addresses = ring->addresses(0);
    return {.size = options.size,
            .packed = options.packed,
            .event_idx = options.event_idx,
            .indirect = options.indirect,
            .desc_user_addr = addresses.desc_user_addr,
            .driver_user_addr = addresses.avail_user_addr,
            .device_user_addr = addresses.used_user_addr,
            .base = ring->base(),
            .memory = memory,
            .inflight = inflight,
            .index = 0};
  }

  const RingOptions options;
  GuestRam ram{1 << 20};
  std::unique_ptr<DriverRing> ring = DriverRing::make(ram, options);
  std::shared_ptr<const virtio::GuestMemory> memory;
  std::shared_ptr<virtio::InflightRegion> inflight;
};

// In the child; ends with it. Answers come in any order and in batches of any size.
[[noreturn]] void serve(virtio::QueueSetup setup, unsigned seed) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::mt19937 random(seed);
  auto created = virtio::Virtqueue::create(std::move(setup));
  if (!created) ::_exit(2);
  virtio::Virtqueue& queue = **created;
  struct Taken {
    std::uint16_t id;
    std::uint16_t entries;
    const void* question;
    void* answer;
  };
  std::vector<Taken> taken;
  std::vector<bool> busy(queue.size());
  iovec items[16];
  while (!queue.broken()) {
    for (unsigned ready = queue.look(); ready > 0; --ready) {
      virtio::Chain chain;
      virtio::IovecList pieces{items, 16, 0};
      if (!queue.pop(chain, pieces)) break;
      if (chain.readable != 1 || chain.writable != 1 || busy[chain.id]) ::_exit(3);
      busy[chain.id] = true;
      taken.push_back({chain.id, chain.entries, items[0].iov_base, items[1].iov_base});
    }
    for (std::size_t answers = random() % (taken.size() + 1); answers > 0; --answers) {
      std::swap(taken[random() % taken.size()], taken.back());
      const Taken& done = taken.back();
      std::memcpy(done.answer, done.question, sizeof(std::uint64_t));
      busy[done.id] = false;
      queue.push(done.id, done.entries, sizeof(std::uint64_t));
      taken.pop_back();
    }
    queue.publish();
    // As if a disk had to be waited for: the driver sees what is shown so far.
    if (random() % 8 == 0) {
      const auto until = Clock::now() + std::chrono::microseconds(20);
      while (Clock::now() < until) continue;
    }
  }
  ::_exit(4);
}

BOOST_DATA_TEST_CASE(every_request_is_answered_once_whenever_the_device_dies, boost::unit_test::data::make(kVariants),
                     variant) {
  const unsigned seed = std::random_device{}();
  BOOST_TEST_MESSAGE("seed " << seed);
  std::mt19937 random(seed);
  Shared shared(variant.ring);
  GuestRam& ram = shared.ram;
  const auto& ring = shared.ring;
  std::vector<Slot> slots;
  for (unsigned i = 0; i < variant.depth; ++i) {
    slots.push_back({reinterpret_cast<std::uint64_t*>(ram.allocate(sizeof(std::uint64_t))),
                     reinterpret_cast<std::uint64_t*>(ram.allocate(sizeof(std::uint64_t)))});
  }

  std::vector<std::uint64_t> asked(slots.size(), 0);
  std::uint64_t number = 0, answered = 0;
  std::string wrong;
  const auto ask = [&](std::uint64_t slot) {
    asked[slot] = ++number;
    *slots[slot].question = number;
    const Segment segments[] = {{ram.guest_addr(slots[slot].question), sizeof(std::uint64_t), false},
                                {ram.guest_addr(slots[slot].answer), sizeof(std::uint64_t), true}};
    if (!ring->add(segments, slot)) wrong = "the ring has no room";
  };
  // Takes what there is, asks again. Returns the number of answers.
  const auto drive = [&](bool ask_again) {
    std::uint64_t taken = 0;
    while (const auto done = ring->take()) {
      ++taken;
      const std::uint64_t slot = done->cookie;
      if (asked[slot] == 0) wrong = "a request was answered twice";
      if (__atomic_load_n(slots[slot].answer, __ATOMIC_ACQUIRE) != asked[slot]) wrong = "an answer came too early";
      asked[slot] = 0;
      if (ask_again) ask(slot);
    }
    ring->show();
    answered += taken;
    return taken;
  };
  for (std::size_t i = 0; i < slots.size(); ++i) ask(i);
  const int lives = kills();
  for (int life = 0; life <= lives && wrong.empty(); ++life) {
    const bool last = life == lives;
    const pid_t child = ::fork();
    if (child == 0) {
      serve(shared.setup(), random());
    }
    // Not before it has done something, which is how a stall is found.
    const auto patience = Clock::now() + std::chrono::seconds(20);
    while (drive(!last) == 0 && wrong.empty()) {
      if (Clock::now() > patience) wrong = "no request was answered for long";
    }
    const auto end = Clock::now() + std::chrono::microseconds(random() % 2000);
    while (wrong.empty() && (last ? ring->in_flight() != 0 && Clock::now() < patience : Clock::now() < end))
      drive(!last);
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    if (WIFEXITED(status)) wrong = "the device gave up with " + std::to_string(WEXITSTATUS(status));
    if (!wrong.empty()) wrong += ", in life " + std::to_string(life);
    // What the driver does while there is no device.
    if (!last && random() % 2 == 0) drive(true);
  }
  BOOST_TEST(wrong == "");
  BOOST_TEST(ring->in_flight() == 0u);
  BOOST_TEST_MESSAGE(answered << " answers over " << lives << " deaths");
}

// Takes all there is; the ids in the order in which they came.
std::vector<virtio::Chain> take_all(virtio::Virtqueue& queue) {
  std::vector<virtio::Chain> chains;
  iovec items[16];
  while (queue.look() > 0) {
    chains.emplace_back();
    virtio::IovecList pieces{items, 16, 0};
    BOOST_REQUIRE(queue.pop(chains.back(), pieces));
  }
  return chains;
}

BOOST_DATA_TEST_CASE(answers_that_were_never_shown_are_not_seen_after_a_death,
                     boost::unit_test::data::make({false, true}), packed) {
  Shared shared({.size = 8, .packed = packed});
  const Segment segments[] = {{shared.ram.guest_addr(shared.ram.allocate(64)), 64, true}};
  for (std::uint64_t cookie = 0; cookie < 4; ++cookie) BOOST_REQUIRE(shared.ring->add(segments, cookie));
  shared.ring->show();
  {
    auto dead = virtio::Virtqueue::create(shared.setup()).value();
    const auto chains = take_all(*dead);
    BOOST_REQUIRE(chains.size() == 4u);
    for (const auto& chain : chains) dead->push(chain.id, chain.entries, 64);
  }
  auto heir = virtio::Virtqueue::create(shared.setup()).value();
  const auto chains = take_all(*heir);
  BOOST_REQUIRE(chains.size() == 4u);
  BOOST_TEST(!shared.ring->take().has_value());
  for (const auto& chain : chains) {
    heir->push(chain.id, chain.entries, 64);
    heir->publish();
    BOOST_TEST(shared.ring->take().has_value());
    BOOST_TEST(!shared.ring->take().has_value());
  }
}

// The driver may fill the ring again with what it got back, before anybody looks what the dead device had shown.
BOOST_DATA_TEST_CASE(answers_that_were_shown_count_although_their_places_are_used_again,
                     boost::unit_test::data::make({false, true}), packed) {
  Shared shared({.size = 4, .packed = packed});
  const Segment segments[] = {{shared.ram.guest_addr(shared.ram.allocate(64)), 64, true}};
  for (std::uint64_t cookie = 0; cookie < 4; ++cookie) BOOST_REQUIRE(shared.ring->add(segments, cookie));
  shared.ring->show();
  std::vector<std::byte> before_commit(virtio::InflightRegion::queue_bytes(4, packed));
  {
    auto dead = virtio::Virtqueue::create(shared.setup()).value();
    const auto chains = take_all(*dead);
    BOOST_REQUIRE(chains.size() == 4u);
    for (std::size_t i = 0; i < 2; ++i) dead->push(chains[i].id, chains[i].entries, 64);
    std::memcpy(before_commit.data(), shared.inflight->queue(0), before_commit.size());
    dead->publish();
    // As a death right after the first answer became visible leaves it: only the position, of a packed ring, was noted.
    if (packed) {
      auto* header = reinterpret_cast<virtio::InflightPackedHeader*>(before_commit.data());
      header->position.used_idx = 2;
    }
    std::memcpy(shared.inflight->queue(0), before_commit.data(), before_commit.size());
  }
  for (std::uint64_t cookie = 4; cookie < 6; ++cookie) {
    BOOST_REQUIRE(shared.ring->take().has_value());
    BOOST_REQUIRE(shared.ring->add(segments, cookie));
  }
  shared.ring->show();
  auto heir = virtio::Virtqueue::create(shared.setup()).value();
  const auto chains = take_all(*heir);
  BOOST_TEST(chains.size() == 4u);
  for (const auto& chain : chains) heir->push(chain.id, chain.entries, 64);
  heir->publish();
  for (int i = 0; i < 4; ++i) BOOST_TEST(shared.ring->take().has_value());
  BOOST_TEST(shared.ring->in_flight() == 0u);
}

}  // namespace
}  // namespace pollux::initiator
