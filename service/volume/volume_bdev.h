#pragma once
// VolumeBdev: an open volume as a block device. Shared by all who opened it; when the last reference goes, on any
// thread, the volume counts as closed. The store outlives it (VolumeService refuses to close a pool with open volumes).

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bdev/bdev.h"
#include "blob/store.h"
#include "volume/volume_channel.h"

namespace pollux::volume {

struct VolumeStats;

class VolumeBdev : public bdev::Bdev, public std::enable_shared_from_this<VolumeBdev> {
 public:
  // `record` was opened with Store::view(); this object gives that up again.
  VolumeBdev(blob::Store& store, blob::Volume& record);
  ~VolumeBdev() override;

  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return view_.size_bytes.load(std::memory_order_acquire); }
  std::uint32_t block_bytes() const override { return block_bytes_; }
  std::uint32_t optimal_io_bytes() const override { return sub_block_bytes_; }
  bool read_only() const override { return read_only_; }
  bool supports_unmap() const override { return true; }
  bool reports_extents() const override { return true; }
  // Sub-blocks add up: a cluster goes back when its last one is unmapped.
  std::uint32_t unmap_granularity_bytes() const override { return sub_block_bytes_; }
  std::uint32_t frame_bytes() const override;
  bdev::Opening open_channel(reactor::Reactor& reactor) override;

  // After the store has resized the volume.
  void resized() { notify_resized(); }
  // Adds up what all channels counted, those that are gone included. Any thread.
  void add_stats(VolumeStats& stats) const;

 private:
  friend class VolumeChannel;
  void add_channel(VolumeChannel& channel);
  void remove_channel(VolumeChannel& channel);

  blob::Store& store_;
  blob::Volume& record_;
  blob::VolumeView& view_;
  const std::string name_;
  const std::uint32_t block_bytes_;
  const std::uint32_t sub_block_bytes_;
  const bool read_only_;
  mutable std::mutex mutex_;  // channels and what the gone ones left; never on the data path
  std::vector<VolumeChannel*> channels_;
  std::unique_ptr<VolumeStats> gone_;
};

}  // namespace pollux::volume
