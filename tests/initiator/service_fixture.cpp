#include "initiator/service_fixture.h"

#include <stdlib.h>

#include <filesystem>
#include <stdexcept>
#include <vector>

#include "base/log.h"

namespace pollux::initiator {
namespace {

template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

}  // namespace

ServiceFixture::ServiceFixture(unsigned reactors, std::chrono::milliseconds drain_patience) {
  // Hostile front ends are reported as they should be, and would drown the test's own output.
  must(log::init("error", ""));
  char name[] = "/tmp/pollux-initiator-XXXXXX";
  if (!::mkdtemp(name)) throw std::runtime_error("mkdtemp");
  directory_ = name;
  std::vector<reactor::Reactor::Options> each(reactors);
  for (unsigned i = 0; i < reactors; ++i) each[i].id = i;
  reactors_ = must(reactor::ReactorGroup::start(each));
  service_ = must(vhost::VhostService::start(*reactors_, {.socket_dir = directory_, .max_queues = 64, .drain_patience = drain_patience}));
}

ServiceFixture::~ServiceFixture() {
  service_.reset();
  reactors_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

std::string ServiceFixture::blk(const std::string& name, std::shared_ptr<bdev::Bdev> disk, std::uint32_t queues,
                                bool read_only) {
  return must(service_->create_blk(name, queues, {std::move(disk), uuid(1), read_only}));
}

std::string ServiceFixture::scsi(const std::string& name, std::uint32_t queues) {
  return must(service_->ensure_scsi_controller(name, queues));
}

void ServiceFixture::add(const std::string& name, std::uint16_t target, std::shared_ptr<bdev::Bdev> disk,
                         bool read_only) {
  must(service_->add_scsi_target(name, {target, 0},
                                 {std::move(disk), uuid(static_cast<std::uint8_t>(target)), read_only}));
}

void ServiceFixture::another_guest_comes_and_goes() {
  scsi("other", 1);
  add("other", 7, ram());
  must(service().remove_scsi_target("other", {7, 0}));
  must(service().remove_scsi_controller("other"));
  blk("other", ram(), 1);
  must(service().remove_blk("other"));
}

std::shared_ptr<bdev::Bdev> ServiceFixture::ram(std::uint64_t bytes, std::uint32_t block_bytes) {
  return must(bdev::make_ram_bdev("ram", bytes, block_bytes));
}

Uuid ServiceFixture::uuid(std::uint8_t number) {
  Uuid uuid;
  uuid.bytes.fill(number);
  return uuid;
}

}  // namespace pollux::initiator
