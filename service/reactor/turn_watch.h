#pragma once
// TurnWatch: in a debug build, ends the process when a turn of a reactor was too long, and says which poller had most of
// it. Everybody whom a reactor serves waits while a turn lasts.
//
// What counts is the processor time that the reactor's thread has used, so that a machine with other work does not
// matter; and, for a turn that waited instead, a time that no such work explains. Sanitizers make everything slow: their
// builds do not watch, nor do release builds.

#include <cstdint>
#include <typeinfo>

#if !defined(NDEBUG) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define POLLUX_WATCHES_TURNS 1
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#undef POLLUX_WATCHES_TURNS
#endif
#endif
#endif

namespace pollux::reactor {

#ifdef POLLUX_WATCHES_TURNS

class TurnWatch {
 public:
  // Of an unoptimised build: some times what a release build may need.
  static constexpr std::uint64_t kLongestTurnNs = 100'000'000;
  static constexpr std::uint64_t kLongestWaitNs = 10'000'000'000;

  void begin();
  void enter(const std::type_info& poller);
  void end();

 private:
  void leave(std::uint64_t now_ns);

  std::uint64_t began_ns_ = 0;
  std::uint64_t began_wall_ns_ = 0;
  std::uint64_t entered_ns_ = 0;
  // Null: messages.
  const std::type_info* inside_ = nullptr;
  const std::type_info* longest_ = nullptr;
  std::uint64_t longest_ns_ = 0;
};

#else

class TurnWatch {
 public:
  void begin() {}
  void enter(const std::type_info&) {}
  void end() {}
};

#endif

}  // namespace pollux::reactor
