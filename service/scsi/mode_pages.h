#pragma once
// ModePages: the mode parameters of a logical unit (SPC-5 7.5, SBC-4 6.5), shared by all nexuses. There are no saved
// pages (SPC-5 5.13): a reset of the logical unit brings the defaults back. A restart of the service is no reset, and
// LogicalUnit keeps the parameters over it.
//
// What a guest can change: D_SENSE and SWP of the control page, WCE of the caching page. With WCE off every write goes
// to the device as one that is durable when it completes.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/result.h"
#include "scsi/sense.h"

namespace pollux::scsi {

class ModePages {
 public:
  // What a guest can change.
  struct Values {
    bool descriptor_sense = false;
    bool software_write_protect = false;
    bool write_cache = true;

    bool operator==(const Values&) const = default;
  };

  bool descriptor_sense() const { return descriptor_sense_.load(std::memory_order_relaxed); }
  bool software_write_protect() const { return software_write_protect_.load(std::memory_order_relaxed); }
  bool write_cache() const { return write_cache_.load(std::memory_order_relaxed); }

  enum class Control : std::uint8_t { kCurrent = 0, kChangeable = 1, kDefault = 2, kSaved = 3 };
  static constexpr std::size_t kMaxPagesBytes = 128;
  // Appends the page (3Fh: all), subpages included for subpage FFh. Nothing: no such page or subpage.
  std::optional<std::size_t> sense(Control control, std::uint8_t page, std::uint8_t subpage,
                                   std::span<std::uint8_t> out) const;

  struct Change {
    std::optional<FieldPointer> refused;  // relative to the first page
    bool truncated = false;               // a page reaches past the end
    bool changed = false;
  };
  // Takes over the pages of a MODE SELECT; all or nothing.
  Change select(std::span<const std::uint8_t> pages);
  Values values() const { return {descriptor_sense(), software_write_protect(), write_cache()}; }
  void set(const Values& values);

  // ---- To keep them: text, so that an operator can read it. Empty for the defaults. ----
  std::string save() const;
  // kCorrupt when it is not what save() wrote.
  Status restore(const std::string& state);

 private:
  std::atomic<bool> descriptor_sense_{false};
  std::atomic<bool> software_write_protect_{false};
  std::atomic<bool> write_cache_{true};
};

}  // namespace pollux::scsi
