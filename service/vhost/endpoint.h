#pragma once
// Endpoint: one socket, the device behind it and the sessions of the front ends that are connected to it.

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "vhost/device.h"
#include "vhost/mapped_memory.h"
#include "vhost/queue_poller.h"
#include "vhost/session.h"
#include "vhost/transport.h"
#include "vhost/vhost_service.h"

namespace pollux::vhost {

class Endpoint final : public Acceptor {
 public:
  Endpoint(std::string path, std::unique_ptr<Device> device, Placement& placement, std::shared_ptr<MappedMemory> mapped)
      : path_(std::move(path)),
        device_(std::move(device)),
        placement_(placement),
        memory_share_(std::move(mapped)) {}

  std::shared_ptr<Connection> on_connect() override;

  // Any thread but a reactor or the transport's.
  void config_changed();
  void rebalance();
  SessionInfo info() const;

  const std::string& path() const { return path_; }
  Device& device() const { return *device_; }

 private:
  std::vector<std::shared_ptr<Session>> living() const;

  const std::string path_;
  const std::unique_ptr<Device> device_;
  Placement& placement_;
  MemoryShare memory_share_;
  LogLimiter limiter_;
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Session>> sessions_;
};

}  // namespace pollux::vhost
