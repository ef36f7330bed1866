#include "virtio/bus_fault.h"

#include <signal.h>
#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <mutex>

namespace pollux::virtio {
namespace {

// More than 1024 sessions of 8 regions; the handler scans it, which only a fault pays for.
constexpr std::size_t kMaxMappings = 16384;

// `begin` is published last and cleared first, so the handler never sees half an entry. All of it is lock-free because
// it is read from a signal handler.
struct Mapping {
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};
  std::atomic<std::atomic<bool>*> lost{nullptr};
};
static_assert(std::atomic<std::uintptr_t>::is_always_lock_free);

std::array<Mapping, kMaxMappings> mappings;
std::mutex mappings_mutex;
bool handler_installed = false;
struct sigaction previous_action;

void on_bus_error(int signal_number, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Mapping& mapping : mappings) {
    const std::uintptr_t begin = mapping.begin.load(std::memory_order_acquire);
    const std::uintptr_t end = mapping.end.load(std::memory_order_acquire);
    if (begin == 0 || address < begin || address >= end) continue;
    void* replaced = ::mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (replaced == MAP_FAILED) break;
    if (auto* lost = mapping.lost.load(std::memory_order_acquire)) lost->store(true, std::memory_order_release);
    return;
  }
  if ((previous_action.sa_flags & SA_SIGINFO) && previous_action.sa_sigaction) {
    previous_action.sa_sigaction(signal_number, info, context);
    return;
  }
  // Returning repeats the access, now with the action that was there before.
  ::sigaction(SIGBUS, &previous_action, nullptr);
}

void install_handler_locked() {
  if (handler_installed) return;
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  handler_installed = ::sigaction(SIGBUS, &action, &previous_action) == 0;
}

}  // namespace

BusFaultGuard::BusFaultGuard(void* base, std::size_t length, std::atomic<bool>& lost) {
  std::lock_guard lock(mappings_mutex);
  install_handler_locked();
  if (!handler_installed) return;
  for (std::size_t i = 0; i < mappings.size(); ++i) {
    Mapping& mapping = mappings[i];
    if (mapping.begin.load(std::memory_order_relaxed) != 0) continue;
    mapping.lost.store(&lost, std::memory_order_relaxed);
    mapping.end.store(reinterpret_cast<std::uintptr_t>(base) + length, std::memory_order_relaxed);
    mapping.begin.store(reinterpret_cast<std::uintptr_t>(base), std::memory_order_release);
    slot_ = static_cast<int>(i);
    return;
  }
}

BusFaultGuard::~BusFaultGuard() {
  if (slot_ < 0) return;
  std::lock_guard lock(mappings_mutex);
  Mapping& mapping = mappings[static_cast<std::size_t>(slot_)];
  mapping.begin.store(0, std::memory_order_release);
  mapping.end.store(0, std::memory_order_release);
  mapping.lost.store(nullptr, std::memory_order_release);
}

}  // namespace pollux::virtio
