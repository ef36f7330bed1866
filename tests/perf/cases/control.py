"""Control operations over TLS, on a pool in a file: each is durable when it answers. One after the other, and those of
several clients at a time."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from perf.bench import Bench
from perf.names import CONTROL, CONTROL_CLIENTS, CONTROL_TOGETHER
from perf.results import median
from perf.service import MIB, Service

_COUNT = 200
_COUNT_A_CLIENT = 40
_PATIENCE_S = 600
_SIZE = 1024 * MIB
_T = TypeVar("_T")


def run(bench: Bench) -> None:
    times: dict[str, list[float]] = {verb: [] for verb in CONTROL}

    def timed(verb: str, what: Callable[[], _T]) -> _T:
        begin = time.perf_counter()
        result = what()
        times[verb].append((time.perf_counter() - begin) * 1000)
        return result

    with bench.service() as service:
        service.file_pool("file", 64 * 1024 * MIB)
        for _ in range(_COUNT):
            volume = timed("create", lambda: service.volume("file", _SIZE))
            snapshot = timed("snapshot", lambda volume=volume: service.snapshot(volume))
            clone = timed("clone", lambda snapshot=snapshot: service.clone(snapshot))
            timed("delete", lambda clone=clone: service.delete(clone))
        for verb in CONTROL:
            bench.add(f"control/{verb}-ms", median(times[verb]), "ms, median")
        together = _together(service)
        for verb in CONTROL_TOGETHER:
            what = f"ms, median, {CONTROL_CLIENTS} clients at a time"
            bench.add(f"control/{verb}-{CONTROL_CLIENTS}-ms", median(together[verb]), what)
        bench.add("control/flush-ms", _flush_ms(service.folder), "ms: write of 4 KiB and fdatasync there, median")


def _together(service: Service) -> dict[str, list[float]]:
    """What each call took. The clients are processes: threads of one would wait for each other, not for the service."""
    processes = multiprocessing.get_context("fork")
    answers, start = processes.Queue(), processes.Barrier(CONTROL_CLIENTS)
    clients = [processes.Process(target=_client, args=(service, start, answers)) for _ in range(CONTROL_CLIENTS)]
    for client in clients:
        client.start()
    each = [answers.get(timeout=_PATIENCE_S) for _ in clients]
    for client in clients:
        client.join(_PATIENCE_S)
    return {verb: [took for one in each for took in one[verb]] for verb in CONTROL_TOGETHER}


def _client(service: Service, start: Any, answers: Any) -> None:
    service.connect()
    times: dict[str, list[float]] = {verb: [] for verb in CONTROL_TOGETHER}
    volumes = []
    start.wait(_PATIENCE_S)
    for _ in range(_COUNT_A_CLIENT):
        begin = time.perf_counter()
        volumes.append(service.volume("file", _SIZE))
        times["create"].append((time.perf_counter() - begin) * 1000)
    start.wait(_PATIENCE_S)
    for volume in volumes:
        begin = time.perf_counter()
        service.delete(volume)
        times["delete"].append((time.perf_counter() - begin) * 1000)
    answers.put(times)


def _flush_ms(folder: Path) -> float:
    """What the disk itself takes, to compare with."""
    descriptor = os.open(folder / "flush", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(descriptor, bytes(1 << 20))
        os.fsync(descriptor)
        took = []
        for number in range(_COUNT):
            begin = time.perf_counter()
            os.pwrite(descriptor, bytes(4096), number % 256 * 4096)
            os.fdatasync(descriptor)
            took.append((time.perf_counter() - begin) * 1000)
        return median(took)
    finally:
        os.close(descriptor)
