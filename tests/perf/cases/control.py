"""Control operations one after the other, over TLS, on a pool in a file: each is durable when it answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from perf.bench import Bench
from perf.names import CONTROL
from perf.results import median
from perf.service import MIB

_COUNT = 200
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
        bench.add("control/flush-ms", _flush_ms(service.folder), "ms: write of 4 KiB and fdatasync there, median")


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
