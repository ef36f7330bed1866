#pragma once
// Mailbox: how one thread hands work to a reactor without a lock and without memory of its own.
//
// A Message is part of the sender's object (a request, a coroutine frame), so posting cannot fail and the number of
// messages is bounded by the number of those objects. Many threads post, one reactor takes. Order is kept per sender.
// The queue is Vyukov's intrusive multi-producer single-consumer list.

#include <atomic>

namespace pollux::reactor {

struct Message {
  // Called on the receiving reactor. The message belongs to the receiver from then on.
  void (*run)(Message&) = nullptr;
  std::atomic<Message*> next{nullptr};
};

class Mailbox {
 public:
  Mailbox() : head_(&stub_), tail_(&stub_) {}
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // Any thread.
  void push(Message& message) {
    message.next.store(nullptr, std::memory_order_relaxed);
    // Sequentially consistent, so that a sender who then reads "sleeping" and a receiver who sets it and then reads
    // empty() cannot both miss each other.
    Message* previous = head_.exchange(&message, std::memory_order_seq_cst);
    previous->next.store(&message, std::memory_order_release);
  }

  // The receiver. nullptr: empty, or a sender is half way through push() and its message will be seen next time.
  Message* pop() {
    Message* tail = tail_;
    Message* next = tail->next.load(std::memory_order_acquire);
    if (tail == &stub_) {
      if (next == nullptr) return nullptr;
      tail_ = next;
      tail = next;
      next = next->next.load(std::memory_order_acquire);
    }
    if (next != nullptr) {
      tail_ = next;
      return tail;
    }
    if (tail != head_.load(std::memory_order_acquire)) return nullptr;
    push(stub_);
    next = tail->next.load(std::memory_order_acquire);
    if (next == nullptr) return nullptr;
    tail_ = next;
    return tail;
  }

  // The receiver. False also while a sender is half way through push().
  bool empty() const { return tail_ == &stub_ && head_.load(std::memory_order_seq_cst) == &stub_; }

 private:
  alignas(64) std::atomic<Message*> head_;
  alignas(64) Message* tail_;
  Message stub_;
};

}  // namespace pollux::reactor
