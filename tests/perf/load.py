"""The load generator: a pollux-bench of our own, on a core of its own."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf.process import CHILD, favour, unfavour


class LoadFailed(Exception):
    """The load generator died, refused a line, or saw requests fail."""


@dataclass(frozen=True)
class Workload:
    """What to do; see tests/initiator/bench_main.cpp for the words."""

    depth: int = 32
    reads: int = 100
    io: int = 4096
    sequential: bool = False
    once: bool = False
    gap_us: int = 0
    length: int = 0
    requests: int = 0
    flush_every: int = 0
    skip: int = 0
    yields: bool = False

    def words(self) -> str:
        return (
            f"depth={self.depth} reads={self.reads} io={self.io} sequential={int(self.sequential)} "
            f"once={int(self.once)} gap={self.gap_us} length={self.length} requests={self.requests} "
            f"flush={self.flush_every} skip={self.skip} yield={int(self.yields)}"
        )


@dataclass(frozen=True)
class LoadResult:
    requests: int
    seconds: float
    iops: float
    tsc_cycles: int
    tsc_hz: float
    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    flushes: int
    flush_p50_us: float
    flush_p99_us: float
    worst_share: float


class Load:
    """Guests by name. A context manager; not for several threads. `favoured`: see perf.process.favour."""

    def __init__(self, build: Path, core: int, *, favoured: bool = True) -> None:
        self._process = subprocess.Popen(
            [*CHILD, str(build / "tests" / "initiator" / "pollux-bench")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: (os.sched_setaffinity(0, {core}), favour() if favoured else unfavour()),
        )
        self._seed = 0

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def connect(self, name: str, transport: str, socket: str | Path, **options: int) -> int:
        """Connect guest `name`; the size of its disk."""
        words = " ".join(f"{key}={value}" for key, value in options.items())
        return int(self._ask(f"connect {name} {transport} {socket} {words}")["size_bytes"])

    def disconnect(self, *names: str) -> None:
        for name in names:
            self._ask(f"disconnect {name}")

    def run(self, names: list[str], workload: Workload, seconds: float) -> LoadResult:
        """Load all of them at once. A request that fails is an error."""
        self._seed += 1
        answer = self._ask(f"run {','.join(names)} seconds={seconds} seed={self._seed} {workload.words()}")
        if answer.pop("errors"):
            raise LoadFailed(f"{names[0]}: a request failed: {answer['first_error']}")
        answer.pop("first_error")
        return LoadResult(**answer)

    def fill(self, names: list[str], length: int = 0) -> None:
        """Write all of the disks once, in order, from several requests at a time."""
        for name in names:
            size = length or self._sizes(name)
            self.run([name], Workload(4, 0, 1 << 17, True, length=size, requests=size >> 17), 600)

    def _sizes(self, name: str) -> int:
        return int(self._ask(f"size {name}")["size_bytes"])

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LoadFailed(f"pollux-bench died before: {line}") from None
        answer = self._process.stdout.readline()
        if not answer:
            raise LoadFailed(f"pollux-bench died of: {line}")
        decoded: dict[str, Any] = json.loads(answer)
        if "error" in decoded:
            raise LoadFailed(f"{line.split(' seconds')[0]}: {decoded['error']}")
        return decoded
