// The metadata loader: superblock, journal, pages. An input is a list of changes to the bytes of a pool with something
// of everything in it; the pool is then checked, repaired, opened, used and closed.
//
// Each change: one byte of flags (1: afterwards give the structure a right checksum, as somebody would who means harm),
// two of place among the metadata (superblocks, the journal's first pages, pages), two of offset within it, one of
// length, the bytes.

#include <cstring>
#include <memory>
#include <vector>

#include "base/crc32c.h"
#include "base/log.h"
#include "blob/format.h"
#include "blob/page_codec.h"
#include "fuzz/input.h"
#include "reactor/stepper.h"
#include "volume/rot_harness.h"

namespace {

using namespace pollux;
using namespace pollux::blob;
using fuzz::Input;
using fuzz::require;

constexpr std::size_t kJournalPages = 32;
constexpr std::size_t kMaxChanges = 64;

struct World {
  std::vector<std::byte> image = [] {
    reactor::Stepper reactors(2, 1);
    return volume::test::busy_pool(reactors);
  }();
  std::vector<std::size_t> places;
  Superblock super{};

  World() {
    for (const std::size_t at : {std::size_t{0}, static_cast<std::size_t>(kSuperSlotStride)}) {
      Superblock found;
      std::memcpy(&found, image.data() + at, sizeof(found));
      if (found.magic == kSuperMagic && found.checkpoint >= super.checkpoint) super = found;
      places.push_back(at);
    }
    for (std::size_t i = 0; i < kJournalPages; ++i) places.push_back(super.journal_offset + i * kPageBytes);
    for (const std::size_t page : volume::test::metadata_pages(image)) places.push_back(page);
  }
};

void seal_commit(std::byte* at, std::size_t room, std::uint32_t checksum_seed) {
  CommitHeader header;
  std::memcpy(&header, at, sizeof(header));
  if (header.record_bytes > room - sizeof(header)) return;
  header.crc = 0;
  const std::uint32_t crc = crc32c(&header, sizeof(header), checksum_seed);
  header.crc = crc32c(at + sizeof(header), header.record_bytes, crc);
  std::memcpy(at, &header, sizeof(header));
}

void seal(std::byte* at, std::size_t room, const Superblock& super) {
  std::uint64_t magic = 0;
  std::memcpy(&magic, at, sizeof(magic));
  if (magic == kSuperMagic) {
    Superblock changed;
    std::memcpy(&changed, at, sizeof(changed));
    seal_super(changed);
    std::memcpy(at, &changed, sizeof(changed));
  } else if (magic == kCommitMagic) {
    seal_commit(at, std::min<std::size_t>(room, kMaxCommitBytes), checksum_seed(super.pool_id));
  } else {
    PageHeader header;
    std::memcpy(&header, at, sizeof(header));
    if (header.magic == kPageMagic) {
      seal_page(at, header.type, header.number, header.generation, checksum_seed(super.pool_id));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static World world = [] {
    require(log::init("off", "").has_value(), "logging starts");
    return World();
  }();
  std::vector<std::byte> image = world.image;
  Input input(data, size);
  for (std::size_t change = 0; change < kMaxChanges && !input.empty(); ++change) {
    const bool sealed = (input.byte() & 1) != 0;
    const std::size_t place = world.places[input.word() % world.places.size()];
    const std::size_t offset = input.word() % kPageBytes;
    const std::size_t length = std::min<std::size_t>(input.byte(), kPageBytes - offset);
    input.bytes(image.data() + place + offset, length);
    if (sealed) seal(image.data() + place, image.size() - place, world.super);
  }
  volume::test::survives(image);
  return 0;
}
