"""Guests that do nothing: memory, processor time, and how long the first request after a pause takes."""

from __future__ import annotations

import time

from perf.bench import Bench
from perf.load import Load, Workload
from perf.process import cpu_seconds, private_kb
from perf.service import MIB, Service

GUESTS = 64
SIZE = 64 * MIB
_QUIET_S = 10.0
_GAP_US = 5000
_WAKES = 200
_NAMES = [f"guest{number}" for number in range(GUESTS)]


def run(bench: Bench) -> None:
    """The cores sleep no deeper than polluxd lets them by itself."""
    with bench.service() as service, bench.load() as load:
        bench.add("memory/base-mb", private_kb(service.pid) / 1024, "MiB, private")
        bench.add("memory/session-kb", _connect(service, load), "KiB a connected guest")
        _idle_and_wake(bench, service, load, "idle")


def run_sleepless(bench: Bench) -> None:
    """The kernel spins on a core in place of sleep."""
    with bench.service(resume_latency_us=0) as service, bench.load() as load:
        _connect(service, load)
        _idle_and_wake(bench, service, load, "sleepless")


def _connect(service: Service, load: Load) -> float:
    """All guests; the KiB that one of them takes."""
    service.ram_pool("ram", 2 * GUESTS * SIZE)
    sockets = [service.attach(service.volume("ram", SIZE)) for _ in range(GUESTS)]
    before = _memory_kb(service)
    for name, info in zip(_NAMES, sockets, strict=True):
        load.connect(name, "scsi", info.socket_path, depth=32, ring=128, target=info.target)
    # Every ring slot is used once, so that memory that is there on paper only counts too.
    load.run(_NAMES, Workload(32), 0.2)
    return (_memory_kb(service) - before) / GUESTS


def _idle_and_wake(bench: Bench, service: Service, load: Load, case: str) -> None:
    # What is counted against the service is what it does while nobody asks it for anything.
    time.sleep(0.5)
    begin, used = time.monotonic(), cpu_seconds(service.pid)
    time.sleep(_QUIET_S)
    percent = 100 * (cpu_seconds(service.pid) - used) / (time.monotonic() - begin)
    bench.add(f"{case}/cpu-percent", percent, f"% of a core, {GUESTS} idle guests")
    awake = load.run(_NAMES[:1], Workload(1), 1.0)
    woken = load.run(_NAMES[:1], Workload(1, gap_us=_GAP_US), _WAKES * _GAP_US / 1e6)
    bench.add(f"{case}/wake-us", woken.p50_us - awake.p50_us, "us more after a pause, median")


def _memory_kb(service: Service) -> float:
    """The process's own, and what it took of the heap that it had set aside."""
    return private_kb(service.pid) + service.heap_used_bytes() / 1024
