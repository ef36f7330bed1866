#pragma once
// Owner: which service has a pool open, written on the pool's own device.
//
// A lock in the kernel keeps two services from one file, but not from two views of one device: a file and a loop device
// over it, a LUN that two hosts see. So a service that opens a pool looks at a record in its first cluster, writes its
// own, and rewrites it every few seconds with a counter, the beat, for as long as the pool is open.
//
// Whose record is taken over:
//  - none, or one that says that the last owner closed the pool: at once;
//  - one of the same installation (state directory, which a service locks), or one made through the very file or device
//    that the caller has locked: that owner is dead, at once;
//  - any other: after its beat stood still for a few of its own intervals. If it goes on, the pool is refused, unless
//    the caller forces it.
// The record outlives its owner, so that a service which comes back finds out whether another had the pool meanwhile.
// An owner reads the record before each beat. When it finds another's there, it was stopped for long or the pool was
// taken by force: it changes nothing on the device any more. What it wrote between the other's first look and its own
// next beat cannot be helped without the storage's own fences.
//
// Home reactor only.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "bdev/bdev.h"
#include "blob/format.h"
#include "reactor/reactor.h"
#include "reactor/task.h"

namespace pollux::blob {

class Owner {
 public:
  struct Identity {
    std::string host;
    Uuid service;  // nil: one that nobody else has
    std::uint32_t beat_ms = 2000;
    // So many intervals without a beat, and the owner counts as dead.
    std::uint32_t silent_beats = 4;
  };
  enum class Force : bool { kNo, kYes };
  // A repair changes nothing that a guest sees: who used the pool last stays on record.
  enum class Purpose : bool { kUse, kRepair };

  // Waits until the pool is nobody's, or another's beat was seen. kBusy: another's. Writes nothing.
  static reactor::Task<Status> look(bdev::Bdev& device, bdev::Channel& channel, reactor::Reactor& home,
                                    const Superblock& super, const Identity& identity);
  // The same, then takes it; nothing else of the pool was written yet. kBusy, kIoError.
  static reactor::Task<Result<std::unique_ptr<Owner>>> claim(bdev::Bdev& device, bdev::Channel& channel,
                                                             reactor::Reactor& home, const Superblock& super,
                                                             const Identity& identity, Force force,
                                                             Purpose purpose = Purpose::kUse);
  // The service that had the pool open for use last, nil when there is no record. Writes nothing. kIoError.
  static reactor::Task<Result<Uuid>> last_user(bdev::Channel& channel, reactor::Reactor& home, const Superblock& super);
  ~Owner() { next_.cancel(); }
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;

  // Beats on this channel until stop(). When the record turns out to be another's, the beats end and on_lost is called
  // with who has the pool now.
  void start(bdev::Channel& channel, std::function<void(const std::string& who)> on_lost);
  // No beat is under way afterwards.
  reactor::Task<void> stop();
  // After stop(): says in the record that the pool is closed, if it is still this owner's.
  reactor::Task<Status> release(bdev::Channel& channel);
  bool lost() const { return lost_; }

 private:
  Owner(reactor::Reactor& home, OwnerRecord record);
  reactor::Task<void> beat();

  reactor::Reactor& home_;
  OwnerRecord record_;
  bdev::Channel* channel_ = nullptr;
  std::function<void(const std::string&)> on_lost_;
  reactor::Timer next_;
  bool beating_ = false;
  bool stopped_ = false;
  bool lost_ = false;
};

}  // namespace pollux::blob
