#pragma once
// The on-disk format of a pool, version 1. docs/on-disk-format.md tells it in prose; this file is the layout to the
// byte. All integers are little-endian, which is the only byte order Pollux runs on.
//
//   cluster 0         superblock, two copies
//   clusters 1..J     journal ring
//   zone z            starts at cluster z * kZoneClusters (zone 0: after the journal) with the reference counts of its
//                     clusters; everything after that is data clusters and metadata clusters, told apart by their count
//
// Metadata pages are 4 KiB and each has two slots. A checkpoint writes the slot that does not hold the valid version,
// so a crash in the middle of one leaves the last complete state in place.

#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/units.h"
#include "base/uuid.h"

namespace pollux::blob {

static_assert(std::endian::native == std::endian::little);

using ClusterNo = std::uint32_t;  // 0: none; cluster 0 holds the superblock and is never data
using PageNo = std::uint32_t;     // metadata cluster number * pages per metadata cluster + index; 0: none
using VolumeNo = std::uint32_t;   // page number * kRecordsPerPage + index of the volume's record; 0: none

inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::uint32_t kPageBytes = 4096;
inline constexpr std::uint32_t kMinClusterBytes = 64 * kKiB;
inline constexpr std::uint32_t kMaxClusterBytes = 4 * kMiB;
inline constexpr std::uint32_t kDefaultClusterBytes = 256 * kKiB;
inline constexpr std::uint64_t kMinPoolBytes = 16 * kMiB;
// An entry of a leaf has 30 bits for a cluster number in memory.
inline constexpr std::uint64_t kMaxClusters = (1ULL << 30) - 1;
inline constexpr std::size_t kMaxNameBytes = 255;

// One bit of a leaf entry's bitmap stands for one sub-block: the smallest unit that is written at once into a cluster.
constexpr std::uint32_t sub_block_bytes(std::uint32_t cluster_bytes) {
  return cluster_bytes / 64 < kPageBytes ? kPageBytes : cluster_bytes / 64;
}
constexpr std::uint32_t sub_blocks(std::uint32_t cluster_bytes) {
  return cluster_bytes / sub_block_bytes(cluster_bytes);
}

// ---- Superblock ----------------------------------------------------------------------------------------------------

inline constexpr std::uint64_t kSuperMagic = 0x315853554c4c4f50ULL;  // "POLLUSX1" in a hex dump
// Copies: sequence n is written to slot n % 2. Both lie in cluster 0.
inline constexpr std::uint64_t kSuperSlotStride = 32 * kKiB;

struct Superblock {
  std::uint64_t magic;
  std::uint32_t version;
  // Bits that a reader must know to read (and write) this pool at all. None is defined yet.
  std::uint32_t incompatible_features;
  Uuid pool_id;
  std::int64_t created_ms;
  std::uint32_t cluster_bytes;
  std::uint32_t cluster_count;
  // The ring: bytes [journal_offset, + journal_bytes) of the device.
  std::uint64_t journal_offset;
  std::uint64_t journal_bytes;
  // The last complete checkpoint: page slots with a greater generation are leftovers of one that did not finish.
  std::uint64_t checkpoint;
  // Where the records that follow this checkpoint start, the sequence number expected there and the checksum of the
  // commit before it.
  std::uint64_t replay_offset;
  std::uint64_t replay_sequence;
  std::uint32_t replay_previous_crc;
  std::uint32_t name_bytes;
  char name[256];
  // Bits that a reader may leave alone and keeps as they are.
  std::uint32_t compatible_flags;
  std::byte reserved[kPageBytes - 360];
  std::uint32_t crc;  // of the 4092 bytes before it
};
static_assert(sizeof(Superblock) == kPageBytes);

// Freed space is not given back to the device.
inline constexpr std::uint32_t kSuperNoDiscard = 1;

// ---- Owner ---------------------------------------------------------------------------------------------------------

inline constexpr std::uint64_t kOwnerMagic = 0x31726e774f6c6f50ULL;  // "PolOwnr1" in a hex dump
// Between the superblock's copies. Zeros, or anything else that is no record of this pool: nobody has it open, and nobody
// knows who had.
inline constexpr std::uint64_t kOwnerOffset = 16 * kKiB;

// Which service has the pool open, or had it last. See owner.h.
struct OwnerRecord {
  std::uint64_t magic;
  Uuid pool_id;
  Uuid service;  // the installation: its state directory
  Uuid session;  // this opening of the pool
  std::uint64_t beat;
  std::uint32_t beat_ms;  // between two beats
  std::uint16_t host_bytes;
  std::uint16_t device_bytes;
  char host[256];
  // What the owner knows the device as; see Bdev::exclusive_name().
  char device[256];
  // Which service had the pool open for use last: a repair is none. Nil in records of programs that did not tell the
  // two apart: the owner.
  Uuid user;
  std::uint32_t released;  // 1: the owner has closed the pool
  std::byte reserved[kPageBytes - 608];
  std::uint32_t crc;  // of the 4092 bytes before it
};
static_assert(sizeof(OwnerRecord) == kPageBytes);

// ---- Metadata pages ------------------------------------------------------------------------------------------------

inline constexpr std::uint32_t kPageMagic = 0x67506c50;  // "PlPg"

enum class PageType : std::uint16_t {
  kFree = 0,
  kRefcounts = 1,  // number: zone * kRefcountPagesPerZone + index
  kDirectory = 2,  // number: its page number
  kVolumes = 3,
  kIndex = 4,
  kLeaf = 5,
};

// The checksum covers the page with this field zero and is seeded with that of the pool's id, so pages of an earlier
// pool on the same device do not pass.
struct PageHeader {
  std::uint32_t magic;
  PageType type;
  std::uint16_t reserved0;
  std::uint64_t number;
  std::uint64_t generation;  // the checkpoint that wrote it
  std::uint32_t crc;
  std::uint32_t reserved1;
};
static_assert(sizeof(PageHeader) == 32);
inline constexpr std::uint32_t kPagePayloadBytes = kPageBytes - sizeof(PageHeader);
inline constexpr std::uint32_t kWordsPerPage = kPagePayloadBytes / 4;  // 1016

// Reference counts: one word a cluster. For data: how many leaf entries name it. With kMetadataCluster set: this is
// metadata cluster number (word & ~kMetadataCluster). kSystemCluster: superblock, journal or reference counts.
inline constexpr std::uint32_t kMetadataCluster = 0x8000'0000;
inline constexpr std::uint32_t kSystemCluster = 0x7fff'ffff;
inline constexpr std::uint32_t kMaxRefs = 0x7fff'fff0;
inline constexpr std::uint32_t kRefcountPagesPerZone = 64;
inline constexpr std::uint32_t kZoneClusters = kRefcountPagesPerZone * kWordsPerPage;  // 65024
inline constexpr std::uint64_t kZoneRefcountBytes = 2ULL * kRefcountPagesPerZone * kPageBytes;

struct RefcountPage {
  PageHeader header;
  std::uint32_t words[kWordsPerPage];
};
static_assert(sizeof(RefcountPage) == kPageBytes);

// Directory: page 0 of every metadata cluster, one word for each page of it.
// bits 0..25 references, bit 26 the slot that holds the page's valid version, bits 28..30 PageType.
inline constexpr std::uint32_t kDirRefsMask = 0x03ff'ffff;
inline constexpr std::uint32_t kDirSlotBit = 0x0400'0000;
inline constexpr std::uint32_t kDirTypeShift = 28;

constexpr std::uint32_t pages_per_metadata_cluster(std::uint32_t cluster_bytes) {
  return cluster_bytes / (2 * kPageBytes);
}
static_assert(kMaxClusterBytes / (2 * kPageBytes) <= kWordsPerPage);

// An index page holds the page numbers of 1016 leaves; leaves and index pages that are 0 do not exist (all zeros).
struct IndexPage {
  PageHeader header;
  PageNo pages[kWordsPerPage];
};
static_assert(sizeof(IndexPage) == kPageBytes);

// Where a cluster of a volume lies. own == 0: reads as zeros. Sub-block i is in `own` when bit i is set, else in
// `base`, which is the cluster that `own` was split off from, or 0 for zeros. All bits set: base is 0.
struct LeafEntry {
  ClusterNo own;
  ClusterNo base;
  std::uint64_t bits;
};
inline constexpr std::uint64_t kAllBits = ~0ULL;
inline constexpr std::uint32_t kLeafEntries = kPagePayloadBytes / sizeof(LeafEntry);  // 254

struct LeafPage {
  PageHeader header;
  LeafEntry entries[kLeafEntries];
};
static_assert(sizeof(LeafPage) == kPageBytes);

// ---- Volumes -------------------------------------------------------------------------------------------------------

inline constexpr std::uint8_t kVolumeSnapshot = 1;
inline constexpr std::uint8_t kVolumeThick = 2;
inline constexpr std::uint8_t kVolumeDeleting = 4;
inline constexpr std::uint32_t kRoots = 160;
constexpr bool valid_block_shift(std::uint8_t shift) {
  return shift == 0 || shift == 9 || shift == 12;
}

struct Qos {
  std::uint64_t limits[6];  // read, write, total IOPS; read, write, total bytes/s; 0: none
};
// What each of the limits allows for a while, in the same order.
struct Bursts {
  std::uint64_t limits[6];  // 0: no burst
  std::uint16_t lengths_s[6];
  std::uint8_t reserved[4];
};
static_assert(sizeof(Bursts) == 64);

struct VolumeRecord {
  std::uint8_t live;  // 0: this record is free and the rest of it is zero
  std::uint8_t flags;
  std::uint8_t name_bytes;
  // Of its logical blocks, as a power of two: 9 or 12. 0, in records from before there was a choice: those of the
  // pool's device.
  std::uint8_t block_shift;
  std::uint8_t reserved0[4];
  Uuid id;
  Uuid parent_id;
  std::uint64_t size_bytes;
  std::int64_t created_ms;
  Qos qos;
  // Entries with own != 0, and of those how many were allocated by this volume since it last became the source of a
  // snapshot; the second is what a thick volume's reservation has already been used for.
  std::uint32_t mapped;
  std::uint32_t charged;
  std::uint8_t reserved1[8];
  // Of a name of at most kMaxNameWithBurstsBytes the last sizeof(Bursts) bytes here are its volume's Bursts.
  char name[256];
  // Leaves when the volume has at most kRoots of them, else index pages.
  PageNo roots[kRoots];
};
static_assert(sizeof(VolumeRecord) == 1016);
inline constexpr std::size_t kMaxNameWithBurstsBytes = sizeof(VolumeRecord::name) - sizeof(Bursts);
inline constexpr std::uint32_t kRecordsPerPage = kPagePayloadBytes / sizeof(VolumeRecord);  // 4

struct VolumesPage {
  PageHeader header;
  VolumeRecord records[kRecordsPerPage];
};
static_assert(sizeof(VolumesPage) == kPageBytes);

// The greatest number of clusters one volume can have.
inline constexpr std::uint64_t kMaxVolumeClusters = std::uint64_t{kRoots} * kWordsPerPage * kLeafEntries;

// ---- Journal -------------------------------------------------------------------------------------------------------

inline constexpr std::uint64_t kCommitMagic = 0x316c6e724a6c6f50ULL;  // "PolJrnl1" in a hex dump

inline constexpr std::size_t kMaxCommitBytes = 256 * kKiB;

// A commit: this header, the records, zeros up to a multiple of kPageBytes. The checksum covers the header with crc
// zero and the records. Commits follow each other; where the next one would not fit before the end of the ring it is at
// the ring's start. previous_crc chains them, so that a leftover with the right number does not pass.
struct CommitHeader {
  std::uint64_t magic;
  Uuid pool_id;
  std::uint64_t sequence;
  std::uint32_t record_bytes;
  std::uint32_t record_count;
  std::uint32_t previous_crc;
  std::uint32_t crc;
  std::byte reserved[16];
};
static_assert(sizeof(CommitHeader) == 64);

enum class RecordType : std::uint16_t {
  kMapSet = 1,        // MapSetRecord
  kVolumeCreate = 2,  // VolumeCreateRecord
  kFork = 3,          // ForkRecord: snapshot or clone
  kResize = 4,        // ResizeRecord
  kDelete = 5,        // VolumeOnlyRecord: becomes nameless and is emptied in the background
  kDropLeaf = 6,      // DropLeafRecord
  kVolumeFree = 7,    // VolumeOnlyRecord: all leaves are gone; the record becomes free
  kSetQos = 8,        // SetQosRecord
  kMetadataGrow = 9,  // MetadataGrowRecord
  kRevert = 10,       // RevertRecord
  kDetach = 11,       // VolumeOnlyRecord: the volume no longer has a parent
  kSetBursts = 12,    // SetBurstsRecord; only where they change, for older programs do not know it
};

// Records say what became of the state, in absolute terms, and are applied in order by the functions that also apply
// them while running (state.cpp), so replay ends in the same state.
struct RecordHeader {
  RecordType type;
  std::uint16_t bytes;  // with this header; a multiple of 8
  VolumeNo volume;
};
struct MapSetRecord {
  RecordHeader header;
  std::uint32_t index;  // of the cluster within the volume
  std::uint32_t reserved;
  LeafEntry entry;
};
static_assert(sizeof(MapSetRecord) == 32);
struct VolumeCreateRecord {
  RecordHeader header;
  Uuid id;
  std::uint64_t size_bytes;
  std::int64_t created_ms;
  std::uint8_t flags;
  std::uint8_t name_bytes;
  std::uint8_t block_shift;  // as in VolumeRecord
  std::uint8_t reserved[5];
  char name[256];
};
static_assert(sizeof(VolumeCreateRecord) == 304);
struct ForkRecord {
  RecordHeader header;  // the new volume
  VolumeNo source;
  std::uint32_t reserved;
  VolumeCreateRecord create;  // its header is unused
};
static_assert(sizeof(ForkRecord) == 320);
struct ResizeRecord {
  RecordHeader header;
  std::uint64_t size_bytes;
};
// A record of this type with its header filled in and everything else zero.
template <typename Record>
Record make_record(RecordType type, VolumeNo volume) {
  Record record{};
  record.header = {.type = type, .bytes = sizeof(Record), .volume = volume};
  return record;
}

struct VolumeOnlyRecord {
  RecordHeader header;
};
struct DropLeafRecord {
  RecordHeader header;
  std::uint32_t slot;
  std::uint32_t reserved;
};
struct SetQosRecord {
  RecordHeader header;
  Qos qos;
};
struct SetBurstsRecord {
  RecordHeader header;
  Bursts bursts;
};
struct MetadataGrowRecord {
  RecordHeader header;
  std::uint32_t number;
  ClusterNo cluster;
};
struct RevertRecord {
  RecordHeader header;
  VolumeNo snapshot;
  VolumeNo trash;  // a new volume in state deleting that takes over the old map
  Uuid trash_id;
};

}  // namespace pollux::blob
