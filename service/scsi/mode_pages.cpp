#include "scsi/mode_pages.h"

#include <algorithm>
#include <cstring>
#include <sstream>

namespace pollux::scsi {

namespace {

constexpr std::uint8_t kReadWriteErrorRecovery = 0x01;
constexpr std::uint8_t kCaching = 0x08;
constexpr std::uint8_t kControl = 0x0a;
constexpr std::uint8_t kInformationalExceptions = 0x1c;
constexpr std::uint8_t kAllPages = 0x3f;

constexpr std::uint8_t kWce = 0x04;     // caching page, byte 2
constexpr std::uint8_t kDSense = 0x04;  // control page, byte 2
constexpr std::uint8_t kSwp = 0x08;     // control page, byte 4

struct PageSpec {
  std::uint8_t code;
  std::uint8_t length;  // with its two-byte header
};
// In the order in which they are reported, ascending.
constexpr PageSpec kPages[] = {
    {kReadWriteErrorRecovery, 12}, {kCaching, 20}, {kControl, 12}, {kInformationalExceptions, 12}};

constexpr char kStateHeader[] = "pollux-mode-pages-1";

void encode(const PageSpec& page, const ModePages::Values& values, std::uint8_t* out) {
  std::memset(out, 0, page.length);
  out[0] = page.code;
  out[1] = page.length - 2;
  if (page.code == kCaching) {
    if (values.write_cache) out[2] |= kWce;
  } else if (page.code == kControl) {
    if (values.descriptor_sense) out[2] |= kDSense;
    out[3] = 0x10;  // QUEUE ALGORITHM MODIFIER 1h: unrestricted reordering of SIMPLE tasks
    if (values.software_write_protect) out[4] |= kSwp;
    out[8] = 0xff;  // BUSY TIMEOUT PERIOD: unlimited
    out[9] = 0xff;
  }
}

// One bits where a guest may change.
void encode_changeable(const PageSpec& page, std::uint8_t* out) {
  std::memset(out, 0, page.length);
  out[0] = page.code;
  out[1] = page.length - 2;
  if (page.code == kCaching) {
    out[2] = kWce;
  } else if (page.code == kControl) {
    out[2] = kDSense;
    out[4] = kSwp;
  }
}

const PageSpec* find(std::uint8_t code) {
  for (const PageSpec& page : kPages) {
    if (page.code == code) return &page;
  }
  return nullptr;
}

}  // namespace

std::optional<std::size_t> ModePages::sense(Control control, std::uint8_t page, std::uint8_t subpage,
                                            std::span<std::uint8_t> out) const {
  if (subpage != 0x00 && subpage != 0xff) return std::nullopt;
  if (page != kAllPages && find(page) == nullptr) return std::nullopt;
  const Values shown = control == Control::kDefault ? Values{} : values();
  std::size_t length = 0;
  for (const PageSpec& spec : kPages) {
    if (page != kAllPages && page != spec.code) continue;
    if (control == Control::kChangeable) {
      encode_changeable(spec, out.data() + length);
    } else {
      encode(spec, shown, out.data() + length);
    }
    length += spec.length;
  }
  return length;
}

ModePages::Change ModePages::select(std::span<const std::uint8_t> pages) {
  Values selected = values();
  auto refuse = [](std::size_t byte, std::optional<std::uint8_t> bit = {}) {
    return Change{.refused = FieldPointer{false, static_cast<std::uint16_t>(byte), bit}};
  };
  for (std::size_t at = 0; at < pages.size();) {
    if (pages.size() - at < 2) return Change{.truncated = true};
    const std::uint8_t* page = pages.data() + at;
    // PS is reserved here; SPF: there are no subpages.
    if ((page[0] & 0x40) != 0) return refuse(at, 6);
    const PageSpec* spec = find(page[0] & 0x3f);
    if (spec == nullptr) return refuse(at, 5);
    if (page[1] != spec->length - 2) return refuse(at + 1);
    if (pages.size() - at < spec->length) return Change{.truncated = true};
    std::array<std::uint8_t, 32> current{};
    std::array<std::uint8_t, 32> changeable{};
    encode(*spec, selected, current.data());
    encode_changeable(*spec, changeable.data());
    for (std::size_t i = 2; i < spec->length; ++i) {
      const auto wrong = static_cast<std::uint8_t>((page[i] ^ current[i]) & ~changeable[i]);
      if (wrong == 0) continue;
      std::uint8_t bit = 7;
      while ((wrong >> bit & 1) == 0) --bit;
      return refuse(at + i, bit);
    }
    if (spec->code == kCaching) {
      selected.write_cache = (page[2] & kWce) != 0;
    } else if (spec->code == kControl) {
      selected.descriptor_sense = (page[2] & kDSense) != 0;
      selected.software_write_protect = (page[4] & kSwp) != 0;
    }
    at += spec->length;
  }
  const bool changed = selected != values();
  set(selected);
  return Change{.changed = changed};
}

void ModePages::set(const Values& values) {
  descriptor_sense_.store(values.descriptor_sense, std::memory_order_relaxed);
  software_write_protect_.store(values.software_write_protect, std::memory_order_relaxed);
  write_cache_.store(values.write_cache, std::memory_order_relaxed);
}

std::string ModePages::save() const {
  const Values now = values();
  if (now == Values{}) return {};
  std::ostringstream out;
  out << kStateHeader << " wce " << now.write_cache << " d_sense " << now.descriptor_sense << " swp "
      << now.software_write_protect << '\n';
  return std::move(out).str();
}

Status ModePages::restore(const std::string& state) {
  if (state.empty()) return {};
  std::istringstream in(state);
  std::array<std::string, 4> words;
  Values saved;
  if (!(in >> words[0] >> words[1] >> saved.write_cache >> words[2] >> saved.descriptor_sense >> words[3] >>
        saved.software_write_protect) ||
      words != std::array<std::string, 4>{kStateHeader, "wce", "d_sense", "swp"}) {
    return fail(ErrorCode::kCorrupt, "the saved mode parameters cannot be read");
  }
  set(saved);
  return {};
}

}  // namespace pollux::scsi
