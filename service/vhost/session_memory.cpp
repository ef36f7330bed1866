// The session's shared memory: the guest's regions, the dirty log and the in-flight region.

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "vhost/session.h"

namespace pollux::vhost {

using namespace protocol;

namespace {

virtio::RegionSpec to_spec(const MemoryRegion& payload) {
  return {.guest_addr = payload.guest_addr,
          .size_bytes = payload.size_bytes,
          .user_addr = payload.user_addr,
          .file_offset = payload.mmap_offset};
}

// Front ends send it with or without the padding at its end.
bool read_inflight(const Message& message, Inflight& payload) {
  if (message.size_bytes != sizeof(payload) && message.size_bytes != kInflightMinBytes) return false;
  std::memcpy(&payload, message.payload.data(), message.size_bytes);
  return true;
}

}  // namespace

Result<Verdict> Session::set_mem_table(Message& message) {
  MemTableHeader header{};
  if (message.size_bytes < sizeof(header)) return fail(ErrorCode::kInvalid, "wrong payload size");
  std::memcpy(&header, message.payload.data(), sizeof(header));
  if (header.count == 0 || header.count > kMaxMemTableRegions ||
      message.size_bytes < sizeof(header) + header.count * sizeof(MemoryRegion)) {
    return fail(ErrorCode::kInvalid, "a memory table of impossible size");
  }
  std::vector<MemoryRegion> table(header.count);
  std::memcpy(table.data(), message.payload.data() + sizeof(header), header.count * sizeof(MemoryRegion));
  std::vector<MemoryShare::Lease> leases;
  std::vector<std::shared_ptr<const virtio::Region>> regions;
  for (std::uint32_t i = 0; i < header.count; ++i) {
    auto lease = memory_share_.take(table[i].size_bytes);
    if (!lease) return fail(std::move(lease.error()));
    leases.push_back(std::move(*lease));
    auto region = virtio::map_region(to_spec(table[i]), message.fds[i]);
    if (!region) return fail(std::move(region.error()));
    regions.push_back(std::move(*region));
  }
  POLLUX_TRY(use_memory(std::move(regions)));
  memory_leases_ = std::move(leases);
  return Verdict::kDone;
}

Result<Verdict> Session::get_max_mem_slots(Message& message) {
  message.write(std::uint64_t{virtio::GuestMemory::kMaxRegions});
  return Verdict::kReply;
}

Result<Verdict> Session::add_mem_reg(Message& message) {
  MemReg payload{};
  if (!message.read(payload)) return fail(ErrorCode::kInvalid, "wrong payload size");
  auto lease = memory_share_.take(payload.region.size_bytes);
  if (!lease) return fail(std::move(lease.error()));
  auto region = virtio::map_region(to_spec(payload.region), message.fds[0]);
  if (!region) return fail(std::move(region.error()));
  std::vector<std::shared_ptr<const virtio::Region>> regions;
  if (memory_) regions = memory_->regions();
  regions.push_back(std::move(*region));
  POLLUX_TRY(use_memory(std::move(regions)));
  memory_leases_.push_back(std::move(*lease));
  return Verdict::kDone;
}

Result<Verdict> Session::rem_mem_reg(Message& message) {
  MemReg payload{};
  if (!message.read(payload)) return fail(ErrorCode::kInvalid, "wrong payload size");
  if (!memory_) return fail(ErrorCode::kInvalid, "a memory region that is not there");
  // The offset into the file is not part of a region's identity here.
  virtio::RegionSpec wanted = to_spec(payload.region);
  auto regions = memory_->regions();
  const auto found = std::find_if(regions.begin(), regions.end(), [&](const auto& region) {
    wanted.file_offset = region->spec.file_offset;
    return region->spec == wanted;
  });
  if (found == regions.end()) return fail(ErrorCode::kInvalid, "a memory region that is not there");
  const std::uint64_t bytes = (*found)->spec.size_bytes;
  regions.erase(found);
  POLLUX_TRY(use_memory(std::move(regions)));
  const auto lease = std::find_if(memory_leases_.begin(), memory_leases_.end(),
                                  [&](const auto& held) { return held.bytes() == bytes; });
  if (lease != memory_leases_.end()) memory_leases_.erase(lease);
  return Verdict::kDone;
}

Status Session::use_memory(std::vector<std::shared_ptr<const virtio::Region>> regions) {
  std::shared_ptr<const virtio::GuestMemory> memory;
  if (!regions.empty()) {
    auto made = virtio::GuestMemory::make(std::move(regions));
    if (!made) return fail(std::move(made.error()));
    memory = std::move(*made);
  }
  return change_at_rest([&]() -> Status {
    memory_ = std::move(memory);
    return {};
  });
}

Result<Verdict> Session::set_log_base(Message& message) {
  LogArea payload{};
  if (!message.read(payload)) return fail(ErrorCode::kInvalid, "wrong payload size");
  auto lease = memory_share_.take(payload.size_bytes);
  if (!lease) return fail(std::move(lease.error()));
  auto mapping = virtio::SharedMapping::map(message.fds[0].get(), payload.offset, payload.size_bytes);
  if (!mapping) return fail(std::move(mapping.error()));
  auto log = std::make_shared<virtio::DirtyLog>(std::move(*mapping));
  if (negotiated(kFeatureLogAll)) {
    POLLUX_TRY(change_at_rest([&]() -> Status {
      log_ = std::move(log);
      return {};
    }));
  } else {
    log_ = std::move(log);
  }
  log_lease_ = std::move(*lease);
  // With LOG_SHMFD the front end waits for an empty answer.
  message.size_bytes = 0;
  return Verdict::kReply;
}

Result<Verdict> Session::get_inflight_fd(Message& message) {
  Inflight payload{};
  if (!read_inflight(message, payload)) return fail(ErrorCode::kInvalid, "wrong payload size");
  if (payload.queues == 0 || payload.queues > vrings_.size() || payload.queue_size == 0 ||
      payload.queue_size > virtio::kMaxQueueSize) {
    return fail(ErrorCode::kInvalid, "in-flight tracking for queues that are not there");
  }
  const std::uint64_t size =
      virtio::InflightRegion::queue_bytes(payload.queue_size, negotiated(kFeatureRingPacked)) * payload.queues;
  UniqueFd fd(::memfd_create("pollux-inflight", MFD_CLOEXEC));
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
    return fail(ErrorCode::kInternal, "cannot make an in-flight region: " + std::string(std::strerror(errno)));
  }
  inflight_fd_ = std::move(fd);
  payload.mmap_size = size;
  payload.mmap_offset = 0;
  std::memcpy(message.payload.data(), &payload, message.size_bytes);
  message.reply_fd = inflight_fd_.get();
  return Verdict::kReply;
}

Result<Verdict> Session::set_inflight_fd(Message& message) {
  Inflight payload{};
  if (!read_inflight(message, payload)) return fail(ErrorCode::kInvalid, "wrong payload size");
  const bool packed = negotiated(kFeatureRingPacked);
  if (payload.queues == 0 || payload.queues > vrings_.size() || payload.queue_size == 0 ||
      payload.queue_size > virtio::kMaxQueueSize ||
      payload.mmap_size < virtio::InflightRegion::queue_bytes(payload.queue_size, packed) * payload.queues) {
    return fail(ErrorCode::kInvalid, "an in-flight region of impossible size");
  }
  auto lease = memory_share_.take(payload.mmap_size);
  if (!lease) return fail(std::move(lease.error()));
  auto mapping = virtio::SharedMapping::map(message.fds[0].get(), payload.mmap_offset, payload.mmap_size);
  if (!mapping) return fail(std::move(mapping.error()));
  if (reinterpret_cast<std::uintptr_t>((*mapping)->data()) % 64 != 0)
    return fail(ErrorCode::kInvalid, "a misaligned in-flight region");
  auto region =
      std::make_shared<virtio::InflightRegion>(std::move(*mapping), payload.queues, payload.queue_size, packed);
  POLLUX_TRY(change_at_rest([&]() -> Status {
    inflight_ = std::move(region);
    return {};
  }));
  inflight_lease_ = std::move(*lease);
  inflight_fd_.reset();
  return Verdict::kDone;
}

}  // namespace pollux::vhost
