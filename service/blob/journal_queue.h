#pragma once
// JournalQueue: what was answered and is not in the journal on the device yet, in memory that outlives the process.
//
// A write that changed the map must be there after the process was killed, for its guest lives on; it need not be there
// after a power cut until it is flushed. The first takes a store into memory that belongs to a file in memory (tmpfs),
// the second a flush and a write of the device. So the journal queues its records in slots here, and answers at once;
// what is flushed, and what changes the set of volumes, waits for a round on the device as before. The next start applies
// what it finds here after what it finds on the device. With the host's next boot it is gone, as are the guests.
//
// Killed at any instruction, memory holds the stores of before: each slot says how much of it counts after that is
// written. A commit of a slot is announced before it is written, so that afterwards the end of the device's journal says
// whether it is there; when that is neither where it was nor where it was about to be, somebody else has changed the pool
// since, and nothing here may be applied.
//
// Home reactor only; at load, where the pool is loaded.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "blob/format.h"

namespace pollux::blob {

class JournalQueue {
 public:
  // Page-aligned and as large as was asked for; zero, or what the last process that had the pool open left there.
  struct Memory {
    std::shared_ptr<std::byte> bytes;
    // For messages.
    std::string name;
    // Whoever opens the pool next gets zeros.
    std::function<void()> discard;
  };
  // kUnsupported, kNoSpace: there is none, and nothing was left there. Other errors: something may have been.
  using Source = std::function<Result<Memory>(const Uuid& pool_id, std::size_t bytes)>;

  // A file in this folder, which must be on tmpfs (else kUnsupported): on a disk, a store could wait for it.
  static Source in_folder(std::string folder);
  // Memory of this process, for a pool that ends with it.
  static Source in_process();

  // Where the journal on the device ends, and the number of the last chunk that it holds.
  struct End {
    std::uint64_t sequence = 0;
    std::uint64_t number = 0;
    std::uint32_t previous_crc = 0;
  };

  class Slot {
   public:
    std::byte* data() { return reinterpret_cast<std::byte*>(this) + kPageBytes; }
    std::uint64_t number() const { return number_; }
    std::size_t used() const { return used_; }
    std::uint32_t records() const { return records_; }
    bool has_data() const { return has_data_ != 0; }

   private:
    friend class JournalQueue;
    // 0: free.
    std::uint64_t number_;
    // The number of the chunk before it, which may not be in a slot.
    std::uint64_t follows_;
    std::uint32_t used_;
    std::uint32_t records_;
    std::uint32_t has_data_;
  };

  static std::size_t bytes_for(std::size_t chunk_bytes, std::size_t slots) {
    return kPageBytes + slots * (kPageBytes + chunk_bytes);
  }
  // What another process left there stays. kCorrupt: that is of another pool, or of a service that lays it out
  // otherwise.
  static Result<std::unique_ptr<JournalQueue>> open(Memory memory, const Uuid& pool_id, std::size_t chunk_bytes,
                                            std::size_t slots);

  // At load: what the journal on the device, which ends there, does not hold, in order; the rest is freed. kCorrupt: the
  // pool was changed by somebody else meanwhile, or a flush that failed may have lost the data; then there is nothing.
  Result<std::vector<Slot*>> unwritten(std::uint64_t checkpoint, std::uint64_t sequence, std::uint32_t previous_crc);

  // nullptr: none is free. Nothing of it counts until set().
  Slot* take(std::uint64_t number, std::uint64_t follows);
  // So much of it counts from here on.
  static void set(Slot& slot, std::size_t used, std::uint32_t records, bool has_data);
  static void free(Slot& slot);
  // The commit that is written next ends there.
  void announce(const End& end);
  // It is on the device.
  void arrived();
  // Chunks below this number are in the pages of this checkpoint.
  void absorb(std::uint64_t number, std::uint64_t checkpoint);
  // The device may have lost data that these records lead to.
  void lose();
  // The pool was closed, and all of this is on its device.
  void discard();

 private:
  struct Header {
    std::uint64_t magic;
    Uuid pool_id;
    std::uint64_t chunk_bytes;
    std::uint64_t slots;
    std::uint64_t lost;
    // `known` is whole whenever `announced` is not, and the other way round.
    End known;
    End announced;
    std::uint64_t absorbed_before;
    std::uint64_t absorbed_by;
  };
  static_assert(sizeof(Header) <= kPageBytes);
  static constexpr std::uint64_t kMagic = 0x6c69'6174'786c'6c70;

  JournalQueue(Memory memory, std::size_t chunk_bytes, std::size_t slots);
  void clear();
  void begin_anew(std::uint64_t sequence, std::uint32_t previous_crc);

  Header& header() { return *reinterpret_cast<Header*>(memory_.bytes.get()); }
  Slot& slot(std::size_t index) {
    return *reinterpret_cast<Slot*>(memory_.bytes.get() + kPageBytes + index * (kPageBytes + chunk_bytes_));
  }

  const Memory memory_;
  const std::size_t chunk_bytes_;
  const std::size_t slots_;
};

}  // namespace pollux::blob
