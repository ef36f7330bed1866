#include "blob/page_codec.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "base/crc32c.h"

namespace pollux::blob {

namespace {

std::uint32_t page_crc(const void* page, std::uint32_t seed) {
  PageHeader header;
  std::memcpy(&header, page, sizeof(header));
  header.crc = 0;
  const std::uint32_t crc = crc32c(&header, sizeof(header), seed);
  return crc32c(static_cast<const std::byte*>(page) + sizeof(header), kPagePayloadBytes, crc);
}

bool intact(const void* page, PageType type, std::uint64_t number, std::uint32_t seed) {
  PageHeader header;
  std::memcpy(&header, page, sizeof(header));
  return header.magic == kPageMagic && header.type == type && header.number == number &&
         header.crc == page_crc(page, seed);
}

std::uint64_t generation_of(const void* page) {
  PageHeader header;
  std::memcpy(&header, page, sizeof(header));
  return header.generation;
}

std::uint32_t super_crc(const Superblock& super) {
  return crc32c(&super, offsetof(Superblock, crc));
}

Status corrupt(const char* what) {
  return fail(ErrorCode::kCorrupt, std::string("superblock: ") + what);
}

}  // namespace

std::uint32_t checksum_seed(const Uuid& pool_id) {
  return crc32c(pool_id.bytes.data(), pool_id.bytes.size());
}

void seal_page(void* page, PageType type, std::uint64_t number, std::uint64_t generation, std::uint32_t seed) {
  const PageHeader header{.magic = kPageMagic,
                          .type = type,
                          .reserved0 = 0,
                          .number = number,
                          .generation = generation,
                          .crc = 0,
                          .reserved1 = 0};
  std::memcpy(page, &header, sizeof(header));
  const std::uint32_t crc = page_crc(page, seed);
  std::memcpy(static_cast<std::byte*>(page) + offsetof(PageHeader, crc), &crc, sizeof(crc));
}

bool page_valid(const void* page, PageType type, std::uint64_t number, std::uint64_t newest_generation,
                std::uint32_t seed) {
  return generation_of(page) <= newest_generation && intact(page, type, number, seed);
}

bool page_from_future(const void* page, PageType type, std::uint64_t number, std::uint64_t newest_generation,
                      std::uint32_t seed) {
  return generation_of(page) > newest_generation && intact(page, type, number, seed);
}

namespace {

// What a reader that knows no more of a pool can say of it.
std::string described(const Superblock& super) {
  std::string name(super.name, std::min<std::size_t>(super.name_bytes, sizeof(super.name)));
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return "pool '" + name + "' (" + super.pool_id.to_string() + ")";
}

}  // namespace

void seal_super(Superblock& super) {
  super.crc = super_crc(super);
}

Status check_super(const Superblock& super, std::uint64_t device_bytes) {
  if (super.magic != kSuperMagic) return corrupt("no Pollux pool here");
  // Magic, version, id, name and checksum keep their places in every version, so a damaged version number is not taken
  // for a newer one, and a pool that is refused can be named.
  if (super.crc != super_crc(super)) return corrupt("checksum mismatch");
  if (super.version != kFormatVersion) {
    return fail(ErrorCode::kUnsupported, described(super) + " has format version " + std::to_string(super.version) +
                                             ", this service knows version " + std::to_string(kFormatVersion));
  }
  if (super.incompatible_features != 0) {
    return fail(ErrorCode::kUnsupported, described(super) + " uses features this service does not know: mask " +
                                             std::to_string(super.incompatible_features));
  }
  const std::uint64_t cluster = super.cluster_bytes;
  if (!std::has_single_bit(cluster) || cluster < kMinClusterBytes || cluster > kMaxClusterBytes) {
    return corrupt("cluster size out of range");
  }
  if (super.cluster_count == 0 || super.cluster_count > kMaxClusters || super.cluster_count > device_bytes / cluster) {
    return fail(ErrorCode::kCorrupt, "superblock: the pool has " + std::to_string(super.cluster_count) +
                                         " clusters of " + std::to_string(cluster) + " bytes, the device only " +
                                         std::to_string(device_bytes) + " bytes");
  }
  const std::uint64_t journal_clusters = super.journal_bytes / cluster;
  const std::uint64_t zone_head = div_ceil<std::uint64_t>(kZoneRefcountBytes, cluster);
  if (super.journal_offset != cluster || super.journal_bytes % cluster != 0 || journal_clusters == 0 ||
      journal_clusters + zone_head + 2 > kZoneClusters || 1 + journal_clusters + zone_head >= super.cluster_count) {
    return corrupt("journal out of range");
  }
  if (super.replay_offset >= super.journal_bytes || super.replay_offset % kPageBytes != 0) {
    return corrupt("replay position out of range");
  }
  if (super.name_bytes == 0 || super.name_bytes > kMaxNameBytes) return corrupt("name length out of range");
  if (super.pool_id.is_nil()) return corrupt("pool without id");
  return {};
}

}  // namespace pollux::blob
