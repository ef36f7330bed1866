#include "vhost/endpoint.h"

#include <algorithm>
#include <iterator>

namespace pollux::vhost {

std::shared_ptr<Connection> Endpoint::on_connect() {
  std::lock_guard lock(mutex_);
  std::erase_if(sessions_, [](const auto& session) { return session->closed(); });
  std::vector<std::shared_ptr<Session>> predecessors;
  std::ranges::copy_if(sessions_, std::back_inserter(predecessors), [](const auto& other) { return other->leaving(); });
  auto session = std::make_shared<Session>(path_, *device_, placement_, memory_share_, limiter_, std::move(predecessors));
  sessions_.push_back(session);
  return session;
}

std::vector<std::shared_ptr<Session>> Endpoint::living() const {
  std::lock_guard lock(mutex_);
  return sessions_;
}

void Endpoint::config_changed() {
  for (const auto& session : living()) session->config_changed();
}

void Endpoint::rebalance() {
  for (const auto& session : living()) session->rebalance();
}

SessionInfo Endpoint::info() const {
  SessionInfo info;
  info.socket_path = path_;
  for (const auto& session : living()) {
    const Session::Totals totals = session->totals();
    info.connected = info.connected || !session->leaving();
    info.active_queues += totals.active_queues;
    info.requests += totals.requests;
    info.errors += totals.errors;
  }
  return info;
}

}  // namespace pollux::vhost
