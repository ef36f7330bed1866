#pragma once
// Pool: an open store under its name, with the stacks of its open volumes. Belongs to the VolumeService; on the
// service's reactor.

#include <map>
#include <memory>

#include "bdev/bdev.h"
#include "blob/owner.h"
#include "blob/store.h"
#include "reactor/gate.h"
#include "volume/limits.h"
#include "volume/volume_bdev.h"
#include "volume/volume_service.h"

namespace pollux::volume {

struct Pool {
  explicit Pool(reactor::Reactor& home) : gate(home) {}

  // Calls on the pool and its volumes are inside, from finding it to their answer.
  reactor::Gate gate;
  Uuid id;
  std::string name;
  bdev::Spec spec;
  std::shared_ptr<bdev::Bdev> device;
  std::unique_ptr<blob::Store> store;
  // None for a pool in memory.
  std::unique_ptr<blob::Owner> owner;
  // An open volume is a stack: limits over the volume itself. Each layer lives as long as the one above it.
  struct Stack {
    std::weak_ptr<Limits> top;
    VolumeBdev* volume = nullptr;
  };
  std::map<Uuid, Stack> open;
  // Keeps the device's growth coming.
  bdev::Bdev::ResizeToken resize_token;

  Result<reactor::Gate::Holder> enter() { return gate.enter("pool '" + name + "' is being closed"); }
  // kBusy: a volume is open.
  Status check_unused() const;
  PoolInfo info() const;
  VolumeInfo info(const blob::Volume& volume) const;
  // With a top of null: the volume is not open.
  struct OpenStack {
    std::shared_ptr<Limits> top;
    VolumeBdev* volume = nullptr;
  };
  OpenStack opened(const Uuid& id) const;
};

blob::Qos to_store(const QosLimits& limits);
blob::Bursts bursts_to_store(const QosLimits& limits);
QosLimits from_store(const blob::Qos& qos, const blob::Bursts& bursts);

}  // namespace pollux::volume
