#include "blob/journal_queue.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "blob/aligned_buffer.h"

namespace pollux::blob {

namespace {

// What stands before it in the program is in memory before what stands behind: a process that is killed leaves its
// stores in the order in which it made them.
void in_order() {
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

struct File {
  explicit File(const std::string& path) : fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)) {}
  File(const File&) = delete;
  ~File() {
    if (fd >= 0) close(fd);
  }
  const int fd;
};

// Makes it the file that was asked for, unless another process has left one there.
Status prepare(const File& file, const std::string& path, std::size_t bytes) {
  struct statfs system {};
  struct stat there {};
  if (file.fd < 0 || fstatfs(file.fd, &system) != 0 || fstat(file.fd, &there) != 0) {
    return fail(ErrorCode::kIoError, "cannot open " + path + ": " + std::strerror(errno));
  }
  if (static_cast<unsigned long>(system.f_type) != TMPFS_MAGIC) {
    unlink(path.c_str());
    return fail(ErrorCode::kUnsupported, path + " would not be on a tmpfs");
  }
  const auto size = static_cast<std::size_t>(there.st_size);
  if (size == bytes) return {};
  if (size != 0) {
    return fail(ErrorCode::kCorrupt, path + " has " + std::to_string(size) + " bytes, not " + std::to_string(bytes));
  }
  // Room first: a file of the right size can be written everywhere.
  const auto length = static_cast<off_t>(bytes);
  if (fallocate(file.fd, FALLOC_FL_KEEP_SIZE, 0, length) == 0 && ftruncate(file.fd, length) == 0) return {};
  const std::string why = std::strerror(errno);
  unlink(path.c_str());
  return fail(ErrorCode::kNoSpace, "no room for " + path + ": " + why);
}

}  // namespace

JournalQueue::Source JournalQueue::in_folder(std::string folder) {
  return [folder = std::move(folder)](const Uuid& pool_id, std::size_t bytes) -> Result<Memory> {
    const std::string path = folder + "/journal-" + pool_id.to_string();
    const File file(path);
    if (auto prepared = prepare(file, path, bytes); !prepared) return fail(std::move(prepared.error()));
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file.fd, 0);
    if (mapped == MAP_FAILED) return fail(ErrorCode::kIoError, "cannot map " + path + ": " + std::strerror(errno));
    // Swapped out, a store would wait for a disk. Without the right to lock it stays as it is.
    static_cast<void>(mlock(mapped, bytes));
    const auto unmap = [bytes](std::byte* at) { munmap(at, bytes); };
    return Memory{.bytes = std::shared_ptr<std::byte>(static_cast<std::byte*>(mapped), unmap),
                  .name = path,
                  .discard = [path] { unlink(path.c_str()); }};
  };
}

JournalQueue::Source JournalQueue::in_process() {
  return [](const Uuid&, std::size_t bytes) -> Result<Memory> {
    const auto memory = std::make_shared<AlignedBuffer>(bytes);
    return Memory{.bytes = std::shared_ptr<std::byte>(memory, memory->data()), .name = "memory", .discard = nullptr};
  };
}

JournalQueue::JournalQueue(Memory memory, std::size_t chunk_bytes, std::size_t slots)
    : memory_(std::move(memory)), chunk_bytes_(chunk_bytes), slots_(slots) {}

Result<std::unique_ptr<JournalQueue>> JournalQueue::open(Memory memory, const Uuid& pool_id, std::size_t chunk_bytes,
                                         std::size_t slots) {
  std::unique_ptr<JournalQueue> queue(new JournalQueue(std::move(memory), chunk_bytes, slots));
  Header& head = queue->header();
  if (head.magic == 0) {
    head.pool_id = pool_id;
    head.chunk_bytes = chunk_bytes;
    head.slots = slots;
    in_order();
    head.magic = kMagic;
  }
  if (head.magic != kMagic || head.pool_id != pool_id || head.chunk_bytes != chunk_bytes || head.slots != slots) {
    return fail(ErrorCode::kCorrupt, queue->memory_.name + " is of another pool or version of the service");
  }
  return queue;
}

void JournalQueue::discard() {
  clear();
  if (memory_.discard) memory_.discard();
}

void JournalQueue::begin_anew(std::uint64_t sequence, std::uint32_t previous_crc) {
  clear();
  // Both: what was announced once may end there too, under a number of the chunks of before.
  header().known = header().announced = {.sequence = sequence, .number = 0, .previous_crc = previous_crc};
}

void JournalQueue::clear() {
  for (std::size_t i = 0; i < slots_; ++i) slot(i).number_ = 0;
  in_order();
  header().absorbed_before = header().absorbed_by = 0;
  header().lost = 0;
}

Result<std::vector<JournalQueue::Slot*>> JournalQueue::unwritten(std::uint64_t checkpoint, std::uint64_t sequence,
                                                 std::uint32_t previous_crc) {
  std::vector<Slot*> found;
  for (std::size_t i = 0; i < slots_; ++i) {
    if (slot(i).number_ != 0) found.push_back(&slot(i));
  }
  Header& head = header();
  const auto is_end = [&](const End& end) { return end.sequence == sequence && end.previous_crc == previous_crc; };
  const bool lost = head.lost != 0;
  const bool ours = is_end(head.announced) || is_end(head.known);
  if (lost || !ours) {
    begin_anew(sequence, previous_crc);
    if (found.empty()) return found;
    return fail(ErrorCode::kCorrupt, lost ? "a flush of the device has failed, which may have lost what was written"
                                          : "the pool was changed elsewhere meanwhile");
  }
  if (is_end(head.announced)) arrived();
  std::uint64_t through = head.known.number;
  if (checkpoint >= head.absorbed_by && head.absorbed_before != 0) {
    through = std::max(through, head.absorbed_before - 1);
  }
  std::erase_if(found, [through](const Slot* each) {
    return each->number_ <= through || each->records_ == 0 || each->used_ > kMaxCommitBytes;
  });
  // Numbers start again with a journal that finds nothing.
  if (found.empty()) begin_anew(sequence, previous_crc);
  std::sort(found.begin(), found.end(), [](const Slot* a, const Slot* b) { return a->number_ < b->number_; });
  // Behind one that is missing there are no answers.
  const auto missing = std::find_if(found.begin(), found.end(), [&through](const Slot* each) {
    return each->follows_ > std::exchange(through, each->number_);
  });
  found.erase(missing, found.end());
  for (std::size_t i = 0; i < slots_; ++i) {
    if (std::find(found.begin(), found.end(), &slot(i)) == found.end()) free(slot(i));
  }
  return found;
}

JournalQueue::Slot* JournalQueue::take(std::uint64_t number, std::uint64_t follows) {
  for (std::size_t i = 0; i < slots_; ++i) {
    Slot& each = slot(i);
    if (each.number_ != 0) continue;
    each.used_ = 0;
    each.records_ = 0;
    each.has_data_ = 0;
    each.follows_ = follows;
    in_order();
    each.number_ = number;
    return &each;
  }
  return nullptr;
}

void JournalQueue::set(Slot& slot, std::size_t used, std::uint32_t records, bool has_data) {
  slot.has_data_ = has_data ? 1 : 0;
  slot.used_ = static_cast<std::uint32_t>(used);
  in_order();
  // With the number of records the last of them counts.
  slot.records_ = records;
  in_order();
}

void JournalQueue::free(Slot& slot) {
  in_order();
  slot.number_ = 0;
  in_order();
}

void JournalQueue::announce(const End& end) {
  // From the first of these on it is not where the device's journal ends now.
  End& announced = header().announced;
  announced.sequence = end.sequence;
  in_order();
  announced.previous_crc = end.previous_crc;
  announced.number = end.number;
  in_order();
}

void JournalQueue::arrived() {
  in_order();
  header().known = header().announced;
  in_order();
}

void JournalQueue::absorb(std::uint64_t number, std::uint64_t checkpoint) {
  // Void until both are written: no checkpoint has the largest number.
  header().absorbed_by = UINT64_MAX;
  in_order();
  header().absorbed_before = number;
  in_order();
  header().absorbed_by = checkpoint;
  in_order();
}

void JournalQueue::lose() {
  header().lost = 1;
  in_order();
}

}  // namespace pollux::blob
