"""Devices in files and block devices: random 4 KiB, one and 32 in flight, of the device and of a volume on it.

Priorities are the ordinary ones here and in the other cases on files: kernel threads that end requests need a core too.
"""

from __future__ import annotations

from contextlib import ExitStack

from perf.bench import Bench
from perf.load import Load, Workload
from perf.names import FILE_LOADS
from perf.paired import Series, Side, measure, ratio
from perf.peers import qsds, spdk
from perf.places import MIB, available, place
from perf.process import Target

SIZE = 256 * MIB
OURS = ("raw", "volume")
_POOL = SIZE + 256 * MIB


def run(bench: Bench) -> None:
    for where in available():
        if any(bench.wants(f"file/{where}/{load}") for load in FILE_LOADS):
            _run_in(bench, where)


def _run_in(bench: Bench, where: str) -> None:
    with ExitStack() as stack:
        at = stack.enter_context(place(where, bench.folder))
        load = stack.enter_context(bench.load(favoured=False))
        targets: dict[str, Target] = {}
        raw = stack.enter_context(bench.diskhost([], [f"raw=file:{at.device('raw', SIZE)}"], favoured=False))
        service = stack.enter_context(bench.service(favoured=False))
        service.device_pool("pool", at.device("pool", _POOL))
        volume = service.attach(service.volume("pool", SIZE, thick=True), "blk")
        for name, target, path in (("raw", raw, raw.socket("raw")), ("volume", service, volume.socket_path)):
            targets[name] = target
            connect(load, name, path)
        for name, peer in qsds(bench, stack, "io_uring", "native").items():
            targets[name] = peer
            peer.open(name, at.device(name, SIZE))
            connect(load, name, peer.export(name))
        if peer := spdk(bench, stack):
            with peer.turn():
                for name in ("spdk-aio", "spdk-uring"):
                    targets[name] = peer
                    peer.file(name, at.device(name, SIZE), uring=name == "spdk-uring")
                    connect(load, name, peer.export(name))
        for cell, (depth, reads) in FILE_LOADS.items():
            workload = Workload(depth, reads, yields=True)
            sides = {name: Side(target, [name], workload) for name, target in targets.items()}
            series = measure(load, sides, bench.options.rounds, bench.options.seconds)
            report(bench, f"file/{where}/{cell}", series)


def connect(load: Load, name: str, path: object, *, fill: bool = True) -> None:
    """A blk guest, and all of its disk written."""
    load.connect(name, "blk", str(path), depth=32, io=1 << 17, ring=128)
    if fill:
        load.fill([name])


def report(bench: Bench, prefix: str, series: dict[str, Series], *others: str) -> None:
    """IOPS and latency of each side, and of ours over each peer."""
    for name, measured in series.items():
        bench.add(f"{prefix}/{name}/iops", measured.median("iops"), "1/s")
        bench.add(f"{prefix}/{name}/p50-us", measured.median("p50_us"), "us")
        for what in others:
            bench.add(f"{prefix}/{name}/{what.replace('_', '-')}", measured.median(what), "us")
    for mine in [name for name in series if name in OURS]:
        for theirs in [name for name in series if name not in OURS]:
            bench.add(f"{prefix}/{mine}-over-{theirs}", ratio(series[mine], series[theirs]), "IOPS / theirs")
