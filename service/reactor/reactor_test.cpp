#include "reactor/reactor.h"

#include <boost/test/unit_test.hpp>

#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <random>
#include <set>
#include <thread>

#include "base/clock.h"
#include "reactor/mutex.h"

namespace pollux::reactor {

namespace {

std::unique_ptr<ReactorGroup> start_two(IdlePolicy idle = IdlePolicy::kAdaptive) {
  auto group = ReactorGroup::start({{.id = 0, .idle = idle}, {.id = 1, .idle = idle}});
  BOOST_REQUIRE(group.has_value());
  return std::move(*group);
}

Task<Result<int>> hop_between(Reactor& a, Reactor& b, int rounds) {
  int wrong = 0;
  for (int i = 0; i < rounds; ++i) {
    co_await a.enter();
    wrong += !a.is_current();
    co_await b.enter();
    wrong += !b.is_current();
  }
  co_return wrong;
}

Task<Result<int>> never_finishes_in_time(Reactor& reactor) {
  co_await reactor.sleep_us(300'000);
  co_return 1;
}

Task<Result<std::uint64_t>> nap(Reactor& reactor, std::uint64_t delay_us) {
  const std::uint64_t begin = monotonic_ns();
  co_await reactor.sleep_us(delay_us);
  co_return monotonic_ns() - begin;
}

// Runs a message in `count` turns, one after the other; returns how many turns that took.
Task<Result<std::uint64_t>> turns_of(Reactor& reactor, unsigned count) {
  struct Again : Message {
    Reactor* reactor = nullptr;
    unsigned left = 0;
    Completion<bool> done;
  };
  co_await reactor.enter();
  Again again;
  again.reactor = &reactor;
  again.left = count;
  again.run = [](Message& message) {
    auto& self = static_cast<Again&>(message);
    if (--self.left != 0) return self.reactor->next_turn(self);
    self.done.set(true);
  };
  const std::uint64_t before = reactor.counters().loops;
  reactor.next_turn(again);
  co_await again.done;
  co_return reactor.counters().loops - before;
}

Task<Result<std::uint64_t>> turns_of_yields(Reactor& reactor, unsigned count) {
  const std::uint64_t before = reactor.counters().loops;
  for (unsigned i = 0; i < count; ++i) co_await reactor.yield();
  co_return reactor.counters().loops - before;
}

Task<void> append_in_section(Reactor& reactor, AsyncMutex& mutex, std::vector<int>& order, int id) {
  auto guard = co_await mutex.lock();
  order.push_back(id);
  co_await reactor.yield();
  order.push_back(id);
}

Task<Result<std::vector<int>>> three_in_a_section(Reactor& reactor) {
  AsyncMutex mutex;
  std::vector<int> order;
  int left = 3;
  Completion<bool> all;
  for (int id = 0; id < 3; ++id) {
    spawn(append_in_section(reactor, mutex, order, id), [&] {
      if (--left == 0) all.set(true);
    });
  }
  co_await all;
  co_return order;
}

// Counts descriptor wake-ups the way a virtqueue does: work shows up outside, the eventfd only ends the sleep.
class EventPoller : public Poller {
 public:
  unsigned poll() override {
    const int seen = pending.exchange(0);
    handled += seen;
    return static_cast<unsigned>(seen);
  }
  bool arm() override {
    armed.store(true);
    return pending.load() == 0;
  }

  std::atomic<int> pending{0};
  std::atomic<int> handled{0};
  std::atomic<bool> armed{false};
};

template <typename Condition>
bool eventually(Condition condition) {
  for (int i = 0; i < 5000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

}  // namespace

BOOST_AUTO_TEST_CASE(what_asks_for_the_next_turn_gets_one_turn_after_the_other) {
  auto group = start_two();
  const auto turns = call(group->at(1), turns_of(group->at(1), 1000), 20'000);
  BOOST_REQUIRE(turns.has_value());
  BOOST_TEST(*turns >= 999u);
}

BOOST_AUTO_TEST_CASE(a_task_that_yields_again_and_again_gets_one_turn_after_the_other) {
  auto group = start_two();
  const auto turns = call(group->at(1), turns_of_yields(group->at(1), 1000), 20'000);
  BOOST_REQUIRE(turns.has_value());
  BOOST_TEST(*turns >= 999u);
}

BOOST_AUTO_TEST_CASE(of_running_timers_the_one_that_is_due_first_is_in_front) {
  struct Entry {
    std::uint64_t due_ns_ = 0;
    std::size_t place_ = 0;
    bool running = false;
  };
  std::mt19937 random(1);
  std::vector<Entry> entries(200);
  TimerHeap<Entry> heap;
  std::multiset<std::uint64_t> expected;
  for (int step = 0; step < 20'000; ++step) {
    Entry& entry = entries[random() % entries.size()];
    if (entry.running) {
      heap.remove(entry);
      expected.erase(expected.find(entry.due_ns_));
    } else {
      entry.due_ns_ = random() % 1000;
      heap.add(entry);
      expected.insert(entry.due_ns_);
    }
    entry.running = !entry.running;
    BOOST_REQUIRE(heap.empty() == expected.empty());
    if (!heap.empty()) BOOST_REQUIRE(heap.first().due_ns_ == *expected.begin());
  }
}

BOOST_AUTO_TEST_CASE(a_task_goes_on_where_it_asked_to_be) {
  auto group = start_two();
  auto wrong = call(group->main(), hop_between(group->at(0), group->at(1), 1000));
  BOOST_REQUIRE(wrong.has_value());
  BOOST_TEST(*wrong == 0);
}

BOOST_AUTO_TEST_CASE(messages_of_many_threads_all_arrive_in_order_of_each_sender) {
  auto group = start_two();
  constexpr int kSenders = 4;
  constexpr int kEach = 20'000;
  std::array<int, kSenders> last{};
  std::atomic<int> received{0};
  std::atomic<int> out_of_order{0};
  std::vector<std::thread> senders;
  for (int s = 0; s < kSenders; ++s) {
    senders.emplace_back([&, s] {
      for (int i = 1; i <= kEach; ++i) {
        group->main().post([&, s, i] {
          if (last[s] != i - 1) ++out_of_order;
          last[s] = i;
          ++received;
        });
      }
    });
  }
  for (auto& sender : senders) sender.join();
  BOOST_TEST(eventually([&] { return received == kSenders * kEach; }));
  BOOST_TEST(out_of_order == 0);
}

BOOST_AUTO_TEST_CASE(call_gives_up_at_its_deadline_and_says_retry) {
  auto group = start_two();
  auto result = call(group->main(), never_finishes_in_time(group->main()), 20);
  BOOST_REQUIRE(!result.has_value());
  BOOST_CHECK(result.error().code == ErrorCode::kRetry);
  // The task still runs; the group must not stop before it has ended.
  BOOST_TEST(call(group->main(), nap(group->main(), 400'000)).has_value());
}

BOOST_AUTO_TEST_CASE(a_call_whose_deadline_has_passed_does_not_begin) {
  auto group = start_two();
  bool begun = false;
  const auto begin = [](bool& flag) -> Task<Result<int>> {
    flag = true;
    co_return 0;
  };
  auto result = call(group->main(), begin(begun), 0);
  BOOST_REQUIRE(!result.has_value());
  BOOST_CHECK(result.error().code == ErrorCode::kRetry);
  // Behind it, had it been posted.
  BOOST_TEST(call(group->main(), nap(group->main(), 1)).has_value());
  BOOST_TEST(!begun);
}

BOOST_AUTO_TEST_CASE(timers_fire_after_their_time_polling_and_sleeping) {
  for (auto idle : {IdlePolicy::kPoll, IdlePolicy::kAdaptive}) {
    auto group = start_two(idle);
    auto slept_ns = call(group->at(1), nap(group->at(1), 5'000));
    BOOST_REQUIRE(slept_ns.has_value());
    BOOST_TEST(*slept_ns >= 5'000'000u);
  }
}

BOOST_AUTO_TEST_CASE(a_section_is_entered_one_at_a_time_in_order) {
  auto group = start_two();
  auto order = call(group->main(), three_in_a_section(group->main()));
  BOOST_REQUIRE(order.has_value());
  const std::vector<int> expected{0, 0, 1, 1, 2, 2};
  BOOST_TEST(*order == expected, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(an_idle_reactor_sleeps_and_a_watched_descriptor_wakes_it) {
  auto group = start_two();
  Reactor& reactor = group->at(1);
  EventPoller poller;
  const int fd = eventfd(0, EFD_NONBLOCK);
  BOOST_REQUIRE(fd >= 0);
  std::atomic<bool> watched{false};
  reactor.post([&] {
    reactor.add_poller(poller);
    watched = reactor.watch(fd).has_value();
  });
  BOOST_TEST(eventually([&] { return watched && poller.armed.load(); }));
  for (int round = 1; round <= 100; ++round) {
    poller.pending = 1;
    const std::uint64_t one = 1;
    BOOST_REQUIRE(write(fd, &one, sizeof(one)) == sizeof(one));
    BOOST_REQUIRE(eventually([&] { return poller.handled == round; }));
  }
  std::atomic<bool> removed{false};
  reactor.post([&] {
    reactor.unwatch(fd);
    reactor.remove_poller(poller);
    removed = true;
  });
  BOOST_TEST(eventually([&] { return removed.load(); }));
  close(fd);
}

BOOST_AUTO_TEST_CASE(a_core_that_is_not_there_is_refused) {
  auto group = ReactorGroup::start({{.id = 0, .core = 1000}});
  BOOST_REQUIRE(!group.has_value());
  BOOST_CHECK(group.error().code == ErrorCode::kInvalid);
}

}  // namespace pollux::reactor
