#pragma once
// The real vhost service in this process, on reactors that sleep when idle, with its sockets in a directory of its own.

#include <chrono>
#include <memory>
#include <string>

#include "bdev/ram.h"
#include "initiator/load.h"
#include "reactor/reactor.h"
#include "vhost/vhost_service.h"

namespace pollux::initiator {

class ServiceFixture {
 public:
  // How long removals wait for requests that do not end.
  static constexpr std::chrono::milliseconds kDrainPatience{500};

  explicit ServiceFixture(unsigned reactors = 2, std::chrono::milliseconds drain_patience = kDrainPatience);
  ~ServiceFixture();

  vhost::VhostService& service() { return *service_; }
  // As SIGTERM does it.
  void end_service() { service_.reset(); }
  reactor::ReactorGroup& reactors() { return *reactors_; }
  const std::string& directory() const { return directory_; }
  // Throw when the service refuses.
  std::string blk(const std::string& name, std::shared_ptr<bdev::Bdev> disk, std::uint32_t queues = 2,
                  bool read_only = false);
  std::string scsi(const std::string& name, std::uint32_t queues = 2);
  void add(const std::string& name, std::uint16_t target, std::shared_ptr<bdev::Bdev> disk, bool read_only = false);

  // With a disk by scsi, then with one by blk. Throws when that is refused.
  void another_guest_comes_and_goes();

  static std::shared_ptr<bdev::Bdev> ram(std::uint64_t bytes = 16 << 20, std::uint32_t block_bytes = 512);
  static Uuid uuid(std::uint8_t number);

 private:
  std::string directory_;
  std::unique_ptr<reactor::ReactorGroup> reactors_;
  std::unique_ptr<vhost::VhostService> service_;
};

}  // namespace pollux::initiator
