#pragma once
// DirtyPages: which metadata pages differ from the last checkpoint, and how a checkpoint gets an exact image of one
// instant while changes go on.
//
// Code that changes a page calls touch() before the change. cut() fixes the instant: the pages dirty then are the
// checkpoint's. A touch of such a page before its image was written first saves the image. Home reactor only.

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "blob/aligned_buffer.h"
#include "blob/format.h"

namespace pollux::blob {

// A metadata page by its number, or a page of the reference counts by its own.
struct PageKey {
  std::uint32_t value = 0;
  static PageKey metadata(PageNo page) { return {page}; }
  static PageKey refcounts(std::uint32_t page) { return {page | kMetadataCluster}; }
  bool is_refcounts() const { return (value & kMetadataCluster) != 0; }
  std::uint32_t number() const { return value & ~kMetadataCluster; }
};

using PageImage = AlignedBuffer;

// Fills in the payload of a page as it is now; the header is the checkpoint's business.
class PageSource {
 public:
  virtual ~PageSource() = default;
  virtual void serialize(PageKey key, std::byte* page) const = 0;
};

class DirtyPages {
 public:
  explicit DirtyPages(const PageSource& source) : source_(source) {}

  void touch(PageKey key) {
    std::uint8_t& flags = flags_of(key);
    if (flags == kDirty) return;
    if (flags & kCut) {
      saved_.emplace(key.value, render(key));
      flags &= static_cast<std::uint8_t>(~kCut);
    }
    if (!(flags & kDirty)) {
      flags |= kDirty;
      dirty_.push_back(key);
    }
  }

  // The pages of the checkpoint that starts now. The caller writes an image() of each before the next cut.
  std::vector<PageKey> cut() {
    std::vector<PageKey> pages;
    pages.swap(dirty_);
    for (PageKey key : pages) flags_of(key) = kCut;
    return pages;
  }

  // The page as it was at the cut.
  PageImage image(PageKey key) {
    if (auto found = saved_.find(key.value); found != saved_.end()) {
      PageImage image = std::move(found->second);
      saved_.erase(found);
      return image;
    }
    flags_of(key) &= static_cast<std::uint8_t>(~kCut);
    return render(key);
  }

  // A page of the cut that turned out to need no writing.
  void forget(PageKey key) {
    saved_.erase(key.value);
    flags_of(key) &= static_cast<std::uint8_t>(~kCut);
  }

  // Grows while pages are touched.
  const std::vector<PageKey>& pending() const { return dirty_; }

 private:
  static constexpr std::uint8_t kDirty = 1;
  static constexpr std::uint8_t kCut = 2;

  std::uint8_t& flags_of(PageKey key) {
    auto& flags = key.is_refcounts() ? refcount_flags_ : metadata_flags_;
    if (key.number() >= flags.size()) flags.resize(std::size_t{key.number()} + key.number() / 2 + 64);
    return flags[key.number()];
  }
  PageImage render(PageKey key) const {
    PageImage image(kPageBytes);
    source_.serialize(key, image.data());
    return image;
  }

  const PageSource& source_;
  std::vector<std::uint8_t> metadata_flags_;
  std::vector<std::uint8_t> refcount_flags_;
  std::vector<PageKey> dirty_;
  std::unordered_map<std::uint32_t, PageImage> saved_;
};

}  // namespace pollux::blob
