"""Somebody else's target and ours in turns, under the same loads."""

from __future__ import annotations

from contextlib import ExitStack

from perf.bench import Bench
from perf.cases.data import report
from perf.load import Load, Workload
from perf.names import DEPTHS, DIRECTIONS
from perf.paired import Side, measure, ratio
from perf.process import Diskhost, Peer
from perf.service import Service


def run(bench: Bench) -> None:
    """Ours gets as large a disk as theirs."""
    options = bench.options
    assert options.against
    with ExitStack() as stack:
        load = stack.enter_context(bench.load())
        peer = Peer(options.against, options.against_rpc)
        stack.callback(peer.close)
        size = load.connect("theirs", peer.transport, options.against, io=1 << 17)
        target: Diskhost | Service
        if options.like == "volume":
            target = stack.enter_context(bench.service())
            target.ram_pool("ram", 2 * size)
            info = target.attach(target.volume("ram", size, thick=True), peer.transport)
            load.connect("ours", peer.transport, info.socket_path, target=info.target or 0, io=1 << 17)
        else:
            disk = f"{'null' if options.like == 'null' else 'ram'}:{size}"
            scsi = peer.transport == "scsi"
            target = stack.enter_context(
                bench.diskhost([f"ours:0={disk}"] if scsi else [], [] if scsi else [f"ours={disk}"])
            )
            load.connect("ours", peer.transport, target.socket("ours"), io=1 << 17)
        if options.like != "null":
            load.fill(["theirs", "ours"])
        peer.set_clock(load.run(["theirs"], Workload(1), 0.05).tsc_hz)
        for direction, reads in DIRECTIONS.items():
            for depth in DEPTHS:
                _cell(bench, load, target, peer, direction, reads, depth)


def _cell(
    bench: Bench, load: Load, target: Diskhost | Service, peer: Peer, direction: str, reads: int, depth: int
) -> None:
    workload = Workload(depth, reads)
    sides = {"ours": Side(target, ["ours"], workload), "theirs": Side(peer, ["theirs"], workload)}
    series = measure(load, sides, bench.options.rounds * 2, bench.options.seconds)
    prefix = f"against/{bench.options.like}/{peer.transport}/{direction}{depth}"
    for side, measured in series.items():
        report(bench, f"{prefix}/{side}", measured)
    for what in ("iops", "cycles", "p50_us", "p99_us"):
        unit = f"{what.replace('_', ' ')}, ours / theirs"
        bench.add(f"{prefix}/ratio-{what.replace('_', '-')}", ratio(series["ours"], series["theirs"], what), unit)
