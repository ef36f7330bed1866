#pragma once
// One client of a data socket. Two threads serve it: one reads requests and hands them to a reactor, one sends the
// answers. Data goes through buffers of the connection; how many requests and bytes are under way is bounded, and a
// client that does not read its answers is not read from any more.
//
// Requests cross to the reactor and back as messages inside their slots, so the reactor neither locks nor allocates.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "bdev/bdev.h"
#include "bdev/path_wait.h"
#include "control/nbd_negotiation.h"
#include "reactor/mailbox.h"
#include "reactor/reactor.h"

namespace pollux::control::nbd {

class Connection {
 public:
  Connection(UniqueFd socket, std::shared_ptr<bdev::Bdev> device, reactor::Reactor& reactor, Export exported);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // From greeting to the end, when no request is in flight any more. A failure is the client's breach of the protocol,
  // or a device without channel. Once, on a thread that may block.
  Status run();
  // Any thread: ends the connection. Requests that have arrived are carried out, and do not wait for the volume's
  // limits any more. A channel that is still being opened is not waited for.
  void interrupt();
  // Any thread: whether the client has yet to ask for the export.
  bool negotiating() const { return negotiating_.load(); }

 private:
  struct Slot;
  // Sent to the reactor again and again while requests of a client that is gone wait for the volume's limits.
  struct Hurry : reactor::Message {
    Connection* connection = nullptr;
    std::atomic<bool> under_way{false};
  };
  struct Request {
    std::uint16_t flags = 0;
    std::uint16_t type = 0;
    std::uint64_t cookie = 0;
    std::uint64_t offset_bytes = 0;
    std::uint32_t length_bytes = 0;
  };

  Result<std::unique_ptr<bdev::Channel>> open_channel();
  Status transmit();
  Status read_requests();
  // What the protocol answers to the request instead of carrying it out; kOk when it is to be carried out.
  std::uint32_t judge(const Request& request) const;
  Status take(const Request& request);
  Slot* acquire(const Request& request);
  void release(Slot& slot);
  void submit(Slot& slot);
  void answer(Slot& slot, std::uint32_t error);
  void send_answers();
  void hurry();
  bool all_answered();
  bool send_answer(Slot& slot);
  bool send_chunk(const Slot& slot);

  UniqueFd socket_;
  const std::shared_ptr<bdev::Bdev> device_;
  reactor::Reactor& reactor_;
  const Export export_;
  Agreement agreed_;
  // Made, used and destroyed on the reactor.
  std::unique_ptr<bdev::Channel> channel_;
  std::unique_ptr<bdev::PathWait> path_wait_;

  std::vector<std::unique_ptr<Slot>> slots_;
  std::mutex free_mutex_;
  std::condition_variable free_changed_;
  std::vector<Slot*> free_;         // under free_mutex_
  std::uint64_t bytes_in_use_ = 0;  // under free_mutex_
  reactor::Mailbox answers_;        // from the reactor and the reading thread to the sending one
  UniqueFd answers_event_;
  std::atomic<bool> reading_done_{false};
  Hurry hurry_;
  std::atomic<bool> negotiating_{true};
  std::atomic<bool> interrupted_{false};
};

}  // namespace pollux::control::nbd
