// A disk that grows while a guest uses it: the guest is told, and can use what was added.

#include <boost/test/unit_test.hpp>
#include <cstring>

#include "initiator/growing_disk.h"
#include "initiator/service_fixture.h"

namespace pollux::initiator {
namespace {

constexpr std::uint64_t kSmall = 4 << 20;
constexpr std::uint64_t kLarge = 8 << 20;

BOOST_FIXTURE_TEST_SUITE(resize, ServiceFixture)

BOOST_AUTO_TEST_CASE(a_blk_guest_gets_a_configuration_change_and_the_new_capacity) {
  auto disk = std::make_shared<GrowingDisk>(ram(kLarge), kSmall);
  FrontEndOptions options;
  options.socket_path = blk("v", disk);
  FrontEnd front_end(options);
  front_end.start();
  const auto capacity = [&] {
    std::uint64_t sectors = 0;
    std::memcpy(&sectors, front_end.config(0, 8).data(), sizeof(sectors));
    return sectors * 512;
  };
  IoSlot slot(front_end.ram(), 4096);
  BOOST_TEST(capacity() == kSmall);
  BOOST_TEST(run_io(front_end, 0, BlkDisk(), slot, Op::kWrite, kSmall, 4096) == "virtio-blk status 1");
  disk->grow(kLarge);
  const auto message = front_end.wait_backend_message(20000);
  BOOST_REQUIRE(message);
  BOOST_TEST(*message == 2u);  // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG
  BOOST_TEST(capacity() == kLarge);
  BOOST_TEST(run_io(front_end, 1, BlkDisk(), slot, Op::kWrite, kSmall, 4096) == "");
  front_end.stop();
}

// The reactor that a volume grows on is also one that serves queues: telling the guest must not wait for it.
BOOST_AUTO_TEST_CASE(growing_on_a_reactor_does_not_hold_it_up) {
  auto disk = std::make_shared<GrowingDisk>(ram(kLarge), kSmall);
  FrontEndOptions options;
  options.socket_path = blk("v", disk);
  FrontEnd front_end(options);
  front_end.start();
  for (std::uint64_t step = 1; step <= 20; ++step) {
    reactors().at(step % 2).post([disk, step] { disk->grow(kSmall + step * 4096); });
    front_end.set_mem_table();
    BOOST_REQUIRE(front_end.wait_backend_message(20000));
  }
  front_end.stop();
}

BOOST_AUTO_TEST_CASE(a_scsi_guest_gets_a_parameter_change_and_a_unit_attention) {
  auto disk = std::make_shared<GrowingDisk>(ram(kLarge), kSmall);
  FrontEndOptions options;
  options.socket_path = scsi("g");
  options.queues = 4;
  options.features = bit(1) | bit(2);
  add("g", 6, disk);
  FrontEnd front_end(options);
  front_end.start();
  const ScsiDisk target(6, 0, 512);
  IoSlot slot(front_end.ram(), 4096);
  BOOST_TEST(run_io(front_end, 2, target, slot, Op::kWrite, 0, 4096) == "");
  std::byte* buffer = front_end.ram().allocate(16);
  const Segment lent{front_end.ram().guest_addr(buffer), 16, true};
  BOOST_REQUIRE(front_end.ring(1).add(std::span(&lent, 1), 0));
  if (front_end.ring(1).show()) front_end.kick(1);
  disk->grow(kLarge);
  std::optional<Completion> event;
  for (int i = 0; i < 400 && !event; ++i) {
    event = front_end.ring(1).take();
    if (!event && front_end.ring(1).want_call()) front_end.wait_call(1, 50);
  }
  BOOST_REQUIRE(event);
  std::uint32_t kind = 0, reason = 0;
  std::memcpy(&kind, buffer, 4);
  std::memcpy(&reason, buffer + 12, 4);
  BOOST_TEST(kind == 3u);
  BOOST_TEST(std::to_integer<int>(buffer[5]) == 6);
  BOOST_TEST(reason == (0x2au | 0x09u << 8));
  // CAPACITY DATA HAS CHANGED, once.
  BOOST_TEST(run_io(front_end, 2, target, slot, Op::kWrite, kSmall, 4096) ==
             "SCSI status 2, sense key 6 asc 42 ascq 9");
  BOOST_TEST(run_io(front_end, 2, target, slot, Op::kWrite, kSmall, 4096) == "");
  front_end.stop();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace pollux::initiator
