#pragma once
// CopyResults: how a nexus's last copies ended, until it asks (SPC-4 6.18, RECEIVE COPY STATUS).

#include <array>
#include <cstdint>
#include <optional>
#include <utility>

namespace pollux::scsi {

struct CopyResult {
  std::uint8_t list_id = 0;
  bool failed = false;
  std::uint16_t segments = 0;
  std::uint64_t bytes = 0;
};

class CopyResults {
 public:
  // Replaces the one with the same list identifier, else the oldest when all places are taken.
  void keep(const CopyResult& result) {
    pop(result.list_id);
    places_[next_] = result;
    next_ = (next_ + 1) % places_.size();
  }
  std::optional<CopyResult> pop(std::uint8_t list_id) {
    for (auto& place : places_) {
      if (place && place->list_id == list_id) return std::exchange(place, std::nullopt);
    }
    return std::nullopt;
  }

 private:
  std::array<std::optional<CopyResult>, 8> places_;
  std::size_t next_ = 0;
};

}  // namespace pollux::scsi
