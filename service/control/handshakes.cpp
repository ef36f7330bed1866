#include "control/handshakes.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace pollux::control {

namespace {

// After a refused handshake: how long to let the peer read the alert.
constexpr std::uint64_t kLingerMs = 500;

}  // namespace

void Handshakes::make_room(const std::string& address) {
  std::vector<WaitingClient> waiting;
  for (const auto& client : clients_) waiting.push_back({client.address, !client.stream || client.refused});
  const auto leaving = who_leaves(waiting, address, limits_);
  if (!leaving) return;
  const auto client = std::next(clients_.begin(), static_cast<std::ptrdiff_t>(*leaving));
  if (!client->refused) {
    access_log_.refused(client->peer, "", "its place in the TLS handshake went to another (control.max_handshakes)");
  }
  clients_.erase(client);
}

void Handshakes::take(UniqueFd socket, std::string peer, std::string address) {
  make_room(address);
  clients_.push_back({.socket = std::move(socket),
                      .stream = nullptr,
                      .peer = std::move(peer),
                      .address = std::move(address),
                      .deadline = Deadline::after_ms(timeout_ms_)});
}

void Handshakes::append_to(std::vector<pollfd>& fds) const {
  for (const auto& client : clients_) {
    fds.push_back({client.stream ? client.stream->fd() : client.socket.get(), client.events, 0});
  }
}

int Handshakes::wait_ms(int most_ms) const {
  std::uint64_t wait_ms = static_cast<std::uint64_t>(most_ms);
  for (const auto& client : clients_) wait_ms = std::min(wait_ms, client.deadline.remaining_ms());
  return static_cast<int>(wait_ms);
}

void Handshakes::go_on(std::span<const pollfd> fds) {
  auto fd = fds.begin();
  for (auto client = clients_.begin(); client != clients_.end();) {
    const bool ready = (fd++)->revents != 0;
    Stage stage = ready ? step(*client) : Stage::kUnderWay;
    if (stage == Stage::kUnderWay && client->deadline.passed()) {
      if (!client->refused) access_log_.refused(client->peer, "", "the TLS handshake took too long");
      stage = Stage::kOver;
    }
    client = stage == Stage::kOver ? clients_.erase(client) : std::next(client);
  }
}

Handshakes::Stage Handshakes::step(Client& client) {
  if (client.refused) return client.stream->linger() ? Stage::kOver : Stage::kUnderWay;
  if (!client.stream) client.stream = std::make_unique<TlsStream>(std::move(client.socket), tls_.current());
  switch (client.stream->handshake()) {
    case TlsStream::Step::kDone:
      admit_(std::move(client.stream), client.peer);
      return Stage::kOver;
    case TlsStream::Step::kWantRead:
      client.events = POLLIN;
      return Stage::kUnderWay;
    case TlsStream::Step::kWantWrite:
      client.events = POLLOUT;
      return Stage::kUnderWay;
    case TlsStream::Step::kRefused:
      break;
  }
  access_log_.refused(client.peer, client.stream->subject().common_name, client.stream->refusal());
  client.refused = true;
  client.events = POLLIN;
  client.deadline = Deadline::after_ms(kLingerMs);
  return client.stream->linger() ? Stage::kOver : Stage::kUnderWay;
}

}  // namespace pollux::control
