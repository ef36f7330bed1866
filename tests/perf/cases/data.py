"""The data path: random 4 KiB on a device that does nothing, one in memory, and a volume of a pool in memory."""

from __future__ import annotations

from contextlib import ExitStack

from perf.bench import Bench
from perf.load import Load, Workload
from perf.names import DEPTHS, DIRECTIONS, FIGURES, KINDS, TRANSPORTS
from perf.paired import Series, Side, measure, ratio
from perf.process import Diskhost
from perf.service import MIB, Service

SIZE = 1024 * MIB


def run(bench: Bench) -> None:
    with ExitStack() as stack:
        host = stack.enter_context(
            bench.diskhost(
                [f"null-scsi:0=null:{SIZE}", f"raw-scsi:0=ram:{SIZE}"],
                [f"null-blk=null:{SIZE}", f"raw-blk=ram:{SIZE}"],
            )
        )
        service = stack.enter_context(bench.service())
        load = stack.enter_context(bench.load())
        connect(bench, load, host, service)
        for transport in TRANSPORTS:
            for direction, reads in DIRECTIONS.items():
                for depth in DEPTHS:
                    _cell(bench, load, host, service, transport, direction, reads, depth)


def connect(bench: Bench, load: Load, host: Diskhost, service: Service) -> None:
    """Guests KIND-TRANSPORT, filled."""
    service.ram_pool("ram", 4 * SIZE)
    for transport in TRANSPORTS:
        for kind in ("null", "raw"):
            load.connect(f"{kind}-{transport}", transport, host.socket(f"{kind}-{transport}"), io=1 << 17)
        attached = service.attach(service.volume("ram", SIZE, thick=True), transport)
        load.connect(f"volume-{transport}", transport, attached.socket_path, io=1 << 17, target=attached.target or 0)
        load.fill([f"raw-{transport}", f"volume-{transport}"])


def _cell(
    bench: Bench, load: Load, host: Diskhost, service: Service, transport: str, direction: str, reads: int, depth: int
) -> None:
    def prefix(kind: str) -> str:
        return f"{kind}/{transport}/{direction}{depth}"

    key = transport == "scsi" and depth == 32
    ratio_name = "volume/raw/ratio" if direction == "rr" else "volume/raw/write-ratio"
    kinds = [
        kind
        for kind in KINDS
        if bench.wants(prefix(kind)) or any(bench.wants(f"{prefix(kind)}/{figure}") for figure in FIGURES)
    ]
    if key and bench.wants(ratio_name):
        kinds = sorted({*kinds, "raw", "volume"})
    if not kinds:
        return
    sides = {
        kind: Side(service if kind == "volume" else host, [f"{kind}-{transport}"], Workload(depth, reads))
        for kind in kinds
    }
    # The one that a bound hangs on is measured for longer.
    rounds = bench.options.rounds * (3 if key and {"raw", "volume"} <= set(kinds) else 1)
    series = measure(load, sides, rounds, bench.options.seconds)
    for kind, measured in series.items():
        report(bench, prefix(kind), measured)
    if key and {"raw", "volume"} <= set(series):
        bench.add(ratio_name, ratio(series["volume"], series["raw"]), "IOPS of volume / raw")


def report(bench: Bench, prefix: str, measured: Series) -> None:
    bench.add(f"{prefix}/iops", measured.median("iops"), FIGURES["iops"])
    if measured.cycles:
        bench.add(f"{prefix}/cycles", measured.median("cycles"), FIGURES["cycles"])
    for what in ("p50_us", "p99_us", "p999_us"):
        name = what.replace("_", "-")
        bench.add(f"{prefix}/{name}", measured.median(what), FIGURES[name])
