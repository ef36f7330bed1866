"""Runs the cases that were asked for and prints what came of them."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path

from allinone.progress import Progress

from perf import names
from perf.bench import Bench, prepare
from perf.cases import (
    against,
    control,
    data,
    depth,
    files,
    firstwrite,
    firstwrite_file,
    flush,
    guests,
    idle,
    load_time,
    many,
    mixes,
    queues,
)
from perf.load import LoadFailed
from perf.options import REPO, Options, options
from perf.process import favour

_CASES: dict[str, Callable[[Bench], None]] = {
    "data": data.run,
    "mixes": mixes.run,
    "file": files.run,
    "flush": flush.run,
    "firstwrite-file": firstwrite_file.run,
    "many": many.run,
    "guests": guests.run,
    "queues": queues.run,
    "idle": idle.run,
    "sleepless": idle.run_sleepless,
    "depth": depth.run,
    "firstwrite": firstwrite.run,
    "control": control.run,
    "load": load_time.run,
}


def measure(arguments: argparse.Namespace) -> int:
    """The exit status: 0 when everything that was asked for was measured."""
    progress = Progress()
    build = (arguments.build_dir or REPO / "build" / "release").resolve()
    try:
        chosen = options(arguments, build)
        _check(chosen)
    except (ValueError, FileNotFoundError) as error:
        progress.plain(f"tests/perf/run: {error}")
        return 2
    # What is timed from here, calls above all, shall not wait for other work either.
    favour()
    failed = []
    with prepare(chosen, progress) as bench:
        progress.plain(_machine(chosen))
        for name, case in _cases(chosen).items():
            try:
                with progress.step(name):
                    case(bench)
            except (LoadFailed, RuntimeError, OSError) as error:
                failed.append(name)
                progress.plain(f"{name}: {error}")
        progress.plain("\n" + bench.results.table())
        if chosen.json:
            bench.results.write(chosen.json)
        if chosen.plot:
            from perf.plot import draw

            draw(bench.results, chosen.plot)
        missing = (
            [] if chosen.against or chosen.peers else [name for name in names.all_names() if _missing(bench, name)]
        )
    if failed or missing:
        progress.plain(f"not measured: {' '.join([*failed, *missing][:20])}")
        return 1
    return 0


def _missing(bench: Bench, name: str) -> bool:
    return bench.wants(name) and bench.results.value(name) is None


def _cases(chosen: Options) -> dict[str, Callable[[Bench], None]]:
    if chosen.against:
        return {"against": against.run}
    # What a peer is measured beside.
    known = ("file", "flush", "firstwrite-file", "many") if chosen.peers else tuple(_CASES)
    wanted = {case for case, each in names.cases().items() if any(chosen.wants(name) for name in each)}
    return {name: case for name, case in _CASES.items() if name in wanted and name in known}


def _check(chosen: Options) -> None:
    for name in ("service/polluxd", "tests/initiator/pollux-bench", "tests/initiator/pollux-diskhost"):
        if not (chosen.build / name).exists():
            raise FileNotFoundError(f"{chosen.build / name} is missing: build it, or leave --build-dir out")
    unavailable = set(chosen.cores) - os.sched_getaffinity(0)
    if unavailable:
        raise ValueError(f"this process may not use core {min(unavailable)}")
    if chosen.only and not chosen.against and not _cases(chosen):
        raise ValueError(f"no result begins with {' or '.join(chosen.only)}; see --list")


def _machine(chosen: Options) -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}; "
        f"serving on core {chosen.cores[0]}, load from core {chosen.cores[1]}; {chosen.build}"
    )
