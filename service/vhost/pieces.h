#pragma once
// Headers, answers and data share a chain's pieces without regard to their borders (VIRTIO 1.2 2.7.4): taking bytes off
// either end of a list of iovecs, and copying into and out of one.

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pollux::vhost {

struct Pieces {
  iovec* items = nullptr;
  std::uint32_t count = 0;

  // Takes `length` bytes off the front and copies them. False, having copied what there was, when there are fewer.
  [[gnu::always_inline]] bool take_front(void* to, std::size_t length) {
    // As nearly all guests send it: a length that the compiler knows, out of one piece.
    if (count == 0 || items->iov_len < length) [[unlikely]]
      return take_front_in_parts(to, length);
    std::memcpy(to, items->iov_base, length);
    advance(length);
    return true;
  }

  // Takes the last byte off; nullptr when there is none.
  std::byte* take_last_byte() {
    while (count > 0 && items[count - 1].iov_len == 0) --count;
    if (count == 0) return nullptr;
    iovec& last = items[count - 1];
    --last.iov_len;
    auto* byte = static_cast<std::byte*>(last.iov_base) + last.iov_len;
    if (last.iov_len == 0) --count;
    return byte;
  }

  // Copies to the front, without taking it off; returns the bytes that found room.
  [[gnu::always_inline]] std::size_t put(const void* from, std::size_t length) const {
    if (count == 0 || items->iov_len < length) [[unlikely]]
      return put_in_parts(from, length);
    std::memcpy(items->iov_base, from, length);
    return length;
  }

  // Takes `length` bytes off the front into another list; false when there are fewer or `to` has no room.
  [[gnu::always_inline]] bool split_front(std::size_t length, Pieces& to, std::uint32_t capacity) {
    if (count == 0 || items->iov_len < length || to.count == capacity) [[unlikely]]
      return split_front_in_parts(length, to, capacity);
    to.items[to.count++] = iovec{items->iov_base, length};
    advance(length);
    return true;
  }

  // To a list with room for all of them; returns their bytes.
  [[gnu::always_inline]] std::uint64_t copy_to(iovec* to) const {
    std::uint64_t sum = 0;
    for (const iovec *piece = items, *end = items + count; piece != end; ++piece, ++to) {
      *to = *piece;
      sum += piece->iov_len;
    }
    return sum;
  }

  std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (std::uint32_t i = 0; i < count; ++i) sum += items[i].iov_len;
    return sum;
  }

 private:
  [[gnu::noinline]] std::size_t put_in_parts(const void* from, std::size_t length) const {
    const auto* in = static_cast<const std::byte*>(from);
    std::size_t done = 0;
    for (std::uint32_t i = 0; i < count && done < length; ++i) {
      const std::size_t part = std::min(length - done, items[i].iov_len);
      std::memcpy(items[i].iov_base, in + done, part);
      done += part;
    }
    return done;
  }

  [[gnu::noinline]] bool split_front_in_parts(std::size_t length, Pieces& to, std::uint32_t capacity) {
    while (length > 0) {
      if (count == 0 || to.count == capacity) return false;
      const std::size_t part = std::min(length, items->iov_len);
      to.items[to.count++] = iovec{items->iov_base, part};
      length -= part;
      advance(part);
    }
    return true;
  }

  [[gnu::noinline]] bool take_front_in_parts(void* to, std::size_t length) {
    auto* out = static_cast<std::byte*>(to);
    while (length > 0) {
      if (count == 0) return false;
      const std::size_t part = std::min(length, items->iov_len);
      std::memcpy(out, items->iov_base, part);
      out += part;
      length -= part;
      advance(part);
    }
    return true;
  }
  void advance(std::size_t part) {
    items->iov_base = static_cast<std::byte*>(items->iov_base) + part;
    items->iov_len -= part;
    if (items->iov_len == 0) {
      ++items;
      --count;
    }
  }
};

}  // namespace pollux::vhost
