#pragma once
// Which of the clients that wait to be let in has to leave when there is no place for one more. Refusing the newest
// would shut a port to everybody for the price of some connections that say nothing; so one of those that wait goes,
// and a client that means to be served, which is done in a moment, keeps its place.

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace pollux {

struct WaitingClient {
  std::string_view address;
  bool silent = true;  // has not said anything yet
};

struct WaitingLimits {
  std::size_t clients = 64;
  std::size_t clients_per_address = 16;
};

// `waiting` in order of arrival. The index of the one that leaves for a client from `newcomer`; none when there is
// room. Of the newcomer's own address when that has all its places, else of the address that has most; there the oldest
// that is silent, else the oldest.
inline std::optional<std::size_t> who_leaves(std::span<const WaitingClient> waiting, std::string_view newcomer,
                                             const WaitingLimits& limits) {
  const auto count = [&](std::string_view address) {
    return std::ranges::count(waiting, address, &WaitingClient::address);
  };
  const bool own = count(newcomer) >= static_cast<std::ptrdiff_t>(limits.clients_per_address);
  if (!own && waiting.size() < limits.clients) return {};
  std::ptrdiff_t most = 0;
  for (const auto& client : waiting) most = std::max(most, count(client.address));
  std::optional<std::size_t> leaving;
  for (std::size_t i = 0; i < waiting.size(); ++i) {
    const auto& client = waiting[i];
    if (own ? client.address != newcomer : count(client.address) != most) continue;
    if (!leaving || (client.silent && !waiting[*leaving].silent)) leaving = i;
  }
  return leaving;
}

}  // namespace pollux
