#include "initiator/null_disk.h"

#include <string>

namespace pollux::initiator {
namespace {

class NullChannel final : public bdev::Channel {
 public:
  void submit(bdev::IoRequest& request) override {
    request.status = bdev::IoStatus::kOk;
    request.complete(request);
  }
};

class NullDisk final : public bdev::Bdev {
 public:
  explicit NullDisk(std::uint64_t size_bytes) : size_bytes_(size_bytes) {}
  const std::string& name() const override { return name_; }
  std::uint64_t size_bytes() const override { return size_bytes_; }
  std::uint32_t block_bytes() const override { return 512; }
  bdev::Opening open_channel(reactor::Reactor&) override {
    co_return std::make_unique<NullChannel>();
  }

 private:
  const std::string name_ = "null";
  const std::uint64_t size_bytes_;
};

}  // namespace

std::shared_ptr<bdev::Bdev> make_null_disk(std::uint64_t size_bytes) {
  return std::make_shared<NullDisk>(size_bytes);
}

}  // namespace pollux::initiator
