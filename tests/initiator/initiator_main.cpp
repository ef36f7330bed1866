// pollux-initiator: puts load on a vhost-user-blk or -scsi socket and says what came of it.
//
//   pollux-initiator --socket S --blk --queues 2 --depth 32 --seconds 5
//   pollux-initiator --socket S --scsi --target 0 --verify --packed --indirect --requests 100000
//   pollux-initiator --socket S --blk --verify --reconnect --seconds 60     while somebody kills the service
//
// SIGTERM and SIGINT end the load as its clock would.

#include <signal.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <thread>

#include "initiator/capacity.h"
#include "initiator/load.h"

using namespace pollux::initiator;

namespace {

// How often a lost back end is looked for, each time with the patience of a connect.
constexpr unsigned kReconnects = 20;

std::atomic<bool> told_to_end{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

// A process that dies closes its sockets one after the other: what answered may have been one that still listened, and
// be gone before the first reply.
void reconnect(FrontEnd& front_end) {
  for (unsigned attempt = 1;; ++attempt) {
    try {
      front_end.reconnect();
      return;
    } catch (const std::exception&) {
      if (attempt == kReconnects) throw;
    }
  }
}

// Reports when the service answered again, on the clock (CLOCK_MONOTONIC) that the process which killed it has too.
void report_answer(const std::atomic<std::uint64_t>& answers, const std::atomic<bool>& finished) {
  const std::uint64_t before = answers;
  while (answers == before && !finished) std::this_thread::sleep_for(std::chrono::microseconds(100));
  if (answers == before) return;
  const std::chrono::duration<double> now = std::chrono::steady_clock::now().time_since_epoch();
  std::fprintf(stderr, "answered again at %.6f s\n", now.count());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("a vhost-user front end that reads and writes");
  FrontEndOptions front;
  LoadOptions load;
  bool blk = false, scsi = false, reconnect = false, json = false, poll = false, measure = true;
  unsigned target = 0, queues = 1;
  app.add_option("--socket", front.socket_path)->required();
  auto* kind = app.add_option_group("transport");
  kind->add_flag("--blk", blk);
  kind->add_flag("--scsi", scsi);
  kind->require_option(1);
  app.add_option("--target", target, "scsi target; LUN 0 of it");
  app.add_option("--queues", queues, "request queues, one thread each");
  app.add_option("--ring", front.ring.size, "entries of a queue");
  app.add_flag("--packed", front.ring.packed);
  app.add_flag("--indirect", front.ring.indirect);
  app.add_flag("--event-idx", front.ring.event_idx);
  app.add_flag("--inflight", front.inflight);
  app.add_flag("--reconnect", reconnect, "go on when the service dies and comes back, with in-flight tracking");
  app.add_option("--depth", load.queue_depth, "requests in flight on each queue");
  app.add_option("--io", load.io_bytes, "bytes of a request");
  app.add_option("--piece", load.piece_bytes, "bytes of a segment; 0: one segment");
  app.add_option("--reads", load.read_percent, "percent");
  app.add_option("--flush-every", load.flush_every, "one flush in so many requests");
  app.add_flag("--sequential", load.sequential);
  app.add_flag("--verify{true},!--no-verify", load.verify, "check what is read against what was written");
  app.add_option("--requests", load.requests, "of each queue");
  app.add_option("--seconds", load.seconds);
  app.add_option("--seed", load.seed);
  app.add_flag("--poll", poll, "never sleep");
  app.add_flag("--json", json);
  load.verify = false;
  CLI11_PARSE(app, argc, argv);
  measure = !load.verify;
  load.use_calls = !poll;
  front.inflight = front.inflight || reconnect;
  if (load.requests == 0 && load.seconds == 0) load.seconds = 5;
  try {
    front.queues = static_cast<std::uint16_t>(queues + (scsi ? 2 : 0));
    const std::uint64_t buffers = std::uint64_t{queues} * load.queue_depth * (std::max(load.io_bytes, 4096U) + 8192);
    const std::uint64_t rings =
        std::uint64_t{front.queues} * front.ring.size * (front.ring.indirect ? 136 * 16 + 64 : 64);
    front.ram_bytes = (buffers + rings + (4 << 20) + 4095) / 4096 * 4096;
    FrontEnd front_end(front);
    front_end.start();
    std::unique_ptr<Disk> disk;
    if (scsi) {
      const Capacity capacity = scsi_capacity(front_end, target);
      disk = std::make_unique<ScsiDisk>(static_cast<std::uint8_t>(target), 0, capacity.block_bytes);
      load.length_bytes = capacity.size_bytes;
    } else {
      disk = std::make_unique<BlkDisk>();
      load.length_bytes = blk_capacity(front_end);
    }
    std::atomic<bool> finished{false};
    std::atomic<std::uint64_t> answers{0};
    for (const int signal : {SIGTERM, SIGINT}) ::signal(signal, [](int) { told_to_end = true; });
    load.end = &told_to_end;
    load.answers = reconnect ? &answers : nullptr;
    unsigned reconnects = 0;
    std::string lost;
    std::thread keeper([&] {
      try {
        while (reconnect && !finished) {
          if (!front_end.wait_lost(50)) continue;
          ::reconnect(front_end);
          ++reconnects;
          report_answer(answers, finished);
        }
      } catch (const std::exception& error) {
        lost = error.what();
      }
    });
    const LoadResult result = run_load(front_end, *disk, queues, load, load.verify);
    finished = true;
    keeper.join();
    if (!lost.empty()) throw std::runtime_error("cannot reconnect: " + lost);
    front_end.stop();
    if (reconnect) std::fprintf(stderr, "reconnected %u times\n", reconnects);
    const double iops = result.seconds > 0 ? static_cast<double>(result.requests) / result.seconds : 0;
    if (json) {
      std::printf(
          "{\"requests\": %lu, \"iops\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": "
          "%.1f, \"errors\": %lu}\n",
          result.requests, iops, result.p50_us, result.p99_us, result.p999_us, result.max_us, result.errors);
    } else {
      std::printf(
          "%lu requests (%lu reads, %lu writes) in %.2f s: %.0f IOPS; latency p50 %.1f p99 %.1f p99.9 %.1f max %.1f "
          "us; %lu errors%s\n",
          result.requests, result.reads, result.writes, result.seconds, iops, result.p50_us, result.p99_us,
          result.p999_us, result.max_us, result.errors, measure ? "" : "; verified");
    }
    for (const auto& text : result.what) std::fprintf(stderr, "%s\n", text.c_str());
    return result.errors == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pollux-initiator: %s\n", error.what());
    return 1;
  }
}
