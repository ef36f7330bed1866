"""Guests that flush, on a file: one and sixteen that flush after each write, and one that flushes after every eighth.

What is counted are the writes. How long a flush takes is told beside.
"""

from __future__ import annotations

from contextlib import ExitStack

from perf.bench import Bench
from perf.cases.files import OURS, connect, report
from perf.load import Load, Workload
from perf.names import FLUSH_LOADS
from perf.paired import Side, measure
from perf.peers import qsds, spdk
from perf.places import MIB, Place, available, place
from perf.process import Target

GUESTS = 16
# Of a guest's disk.
SIZE = 32 * MIB


def run(bench: Bench) -> None:
    for where in available():
        if any(bench.wants(f"flush/{where}/{load}") for load in FLUSH_LOADS):
            _run_in(bench, where)


def _run_in(bench: Bench, where: str) -> None:
    with ExitStack() as stack:
        at = stack.enter_context(place(where, bench.folder))
        load = stack.enter_context(bench.load(favoured=False))
        targets = _ours(bench, stack, at, load)
        for name, peer in qsds(bench, stack, "io_uring", "native").items():
            targets[name] = peer
            peer.open(name, at.device(name, GUESTS * SIZE))
            for number in range(GUESTS):
                peer.share(f"{name}{number}", name, number * SIZE, SIZE)
            for number, path in enumerate(peer.export_all(f"{name}{number}" for number in range(GUESTS))):
                connect(load, f"{name}{number}", path)
        if spdk_peer := spdk(bench, stack):
            targets["spdk-aio"] = spdk_peer
            with spdk_peer.turn():
                spdk_peer.file("d", at.device("spdk", GUESTS * SIZE))
                spdk_peer.split("d", GUESTS)
                for number in range(GUESTS):
                    connect(load, f"spdk-aio{number}", spdk_peer.export(f"dp{number}"))
        for cell, (guests, depth, every) in FLUSH_LOADS.items():
            workload = Workload(depth, 0, flush_every=every, yields=True)
            sides = {
                name: Side(target, [f"{name}{number}" for number in range(guests)], workload)
                for name, target in targets.items()
            }
            series = measure(load, sides, bench.options.rounds, bench.options.seconds)
            report(bench, f"flush/{where}/{cell}", series, "flush_p50_us")


def _ours(bench: Bench, stack: ExitStack, at: Place, load: Load) -> dict[str, Target]:
    """Guests of one file, all of which have the whole of it, and of volumes of one pool."""
    device = at.device("raw", SIZE)
    raw = stack.enter_context(
        bench.diskhost([], [f"raw{number}=file:{device}" for number in range(GUESTS)], favoured=False)
    )
    service = stack.enter_context(bench.service(favoured=False))
    service.device_pool("pool", at.device("pool", GUESTS * SIZE + 512 * MIB))
    for number in range(GUESTS):
        connect(load, f"raw{number}", raw.socket(f"raw{number}"))
        info = service.attach(service.volume("pool", SIZE, thick=True), "blk")
        connect(load, f"volume{number}", info.socket_path)
    return dict(zip(OURS, (raw, service), strict=True))
