"""The names of all results, and which case measures which."""

from __future__ import annotations

import os
from collections.abc import Iterator

from perf.places import available

KINDS = ("null", "raw", "volume")
TRANSPORTS = ("scsi", "blk")
DEPTHS = (1, 32, 128)
DIRECTIONS = {"rr": 100, "rw": 0}
GUESTS = (1, 8, 32, 64)
SNAPSHOT_DEPTHS = (1, 10, 50, 200)
CONTROL = ("create", "snapshot", "clone", "delete")
CONTROL_CLIENTS = 16
CONTROL_TOGETHER = ("create", "delete")
# In flight, and the part that is read.
FILE_LOADS = {"rr1": (1, 100), "rr32": (32, 100), "rw1": (1, 0), "rw32": (32, 0)}
# Guests, in flight for each, and writes for each flush.
FLUSH_LOADS = {"wf1": (1, 1, 1), "wf16": (16, 1, 1), "w8f": (1, 8, 8)}
FIRST_WRITES = {f"{kind}{depth}": (kind, depth) for kind in ("thin", "clone") for depth in (1, 32)}
MANY_PLACES = ("ram", "file")
FIGURES = {"iops": "1/s", "cycles": "cycles/IO", "p50-us": "us", "p99-us": "us", "p999-us": "us"}


def matrix() -> Iterator[tuple[str, str, str, int]]:
    for transport in TRANSPORTS:
        for direction in DIRECTIONS:
            for depth in DEPTHS:
                for kind in KINDS:
                    yield kind, transport, direction, depth


def cases() -> dict[str, list[str]]:
    """Names by case, in the order in which they are measured."""
    return {
        "data": [
            *(
                f"{kind}/{transport}/{direction}{depth}/{figure}"
                for kind, transport, direction, depth in matrix()
                for figure in FIGURES
            ),
            "volume/raw/ratio",
            "volume/raw/write-ratio",
        ],
        "mixes": [
            *(f"{kind}/{transport}/mix32/iops" for kind in ("raw", "volume") for transport in TRANSPORTS),
            *(f"{kind}/scsi/{direction}/mb-s" for kind in ("raw", "volume") for direction in ("seqread", "seqwrite")),
            *(f"volume/{what}/ratio" for what in ("thin", "clone", "packed", "indirect")),
        ],
        "file": [
            f"file/{place}/{load}/{kind}/{figure}"
            for place in available()
            for load in FILE_LOADS
            for kind in ("raw", "volume")
            for figure in ("iops", "p50-us")
        ],
        "flush": [
            f"flush/{place}/{load}/{kind}/{figure}"
            for place in available()
            for load in FLUSH_LOADS
            for kind in ("raw", "volume")
            for figure in ("iops", "p50-us", "flush-p50-us")
        ],
        "firstwrite-file": [
            f"firstwrite-file/{cell}/volume/{figure}" for cell in FIRST_WRITES for figure in ("iops", "p50-us", "ratio")
        ],
        "many": [f"many/{where}/volume/{figure}" for where in MANY_PLACES for figure in ("iops", "worst", "cycles")],
        "guests": [
            *(f"guests/{count}/iops" for count in GUESTS),
            *(f"guests/{count}/ratio" for count in GUESTS[1:]),
            "idle/neighbour-cycles",
        ],
        "queues": ["queues/2/ratio"] if len(os.sched_getaffinity(0)) > 2 else [],
        "idle": ["memory/base-mb", "memory/session-kb", "idle/cpu-percent", "idle/wake-us"],
        "sleepless": ["sleepless/cpu-percent", "sleepless/wake-us"],
        "depth": [f"depth/{depth}/ratio" for depth in SNAPSHOT_DEPTHS],
        "firstwrite": ["firstwrite/thin/ratio", "firstwrite/clone/ratio"],
        "control": [
            *(f"control/{verb}-ms" for verb in CONTROL),
            *(f"control/{verb}-{CONTROL_CLIENTS}-ms" for verb in CONTROL_TOGETHER),
            "control/flush-ms",
        ],
        "load": ["load/dirty-1tib-s", "load/5000-s"],
    }


def all_names() -> list[str]:
    return [name for names in cases().values() for name in names]
