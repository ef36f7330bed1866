"""Random 4 KiB writes to places never written before, against the same on a volume that was."""

from __future__ import annotations

from perf.bench import Bench
from perf.cases.mixes import attach
from perf.load import Load, Workload
from perf.results import median
from perf.service import MIB, Service

SIZE = 512 * MIB
_UNITS = SIZE // 4096


def run(bench: Bench) -> None:
    with bench.service() as service, bench.load() as load:
        service.ram_pool("ram", 48 * SIZE)
        written = service.volume("ram", SIZE)
        attach(service, load, "written", written)
        load.fill(["written"])
        origin = service.volume("ram", SIZE)
        attach(service, load, "origin", origin)
        load.fill(["origin"])
        snapshot = service.snapshot(origin)
        for kind in ("thin", "clone"):
            if bench.wants(f"firstwrite/{kind}/ratio"):
                ratios = [_ratio(service, load, kind, snapshot, number) for number in range(bench.options.rounds)]
                bench.add(f"firstwrite/{kind}/ratio", median(ratios), "IOPS / a written volume, QD32")


def _ratio(service: Service, load: Load, kind: str, snapshot: str, number: int) -> float:
    """Every place of a new volume once, scattered; as many writes to the other one right after."""
    name = f"{kind}{number}"
    new = service.volume("ram", SIZE) if kind == "thin" else service.clone(snapshot)
    attach(service, load, name, new)
    first = load.run([name], Workload(32, 0, once=True), 600)
    again = load.run(["written"], Workload(32, 0, once=True), 600)
    load.disconnect(name)
    if first.requests != _UNITS or again.requests != _UNITS:
        raise RuntimeError(f"{first.requests} and {again.requests} writes instead of {_UNITS}")
    return first.iops / again.iops
