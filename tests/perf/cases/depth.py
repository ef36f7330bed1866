"""Reading a volume with many snapshots below it."""

from __future__ import annotations

from perf.bench import Bench
from perf.cases.mixes import attach
from perf.load import Workload
from perf.names import SNAPSHOT_DEPTHS
from perf.paired import Side, measure, ratio
from perf.service import MIB

SIZE = 128 * MIB
# Between two snapshots, in random places, so that each level owns some of what is read. Each takes a cluster.
_WRITES = 12


def run(bench: Bench) -> None:
    depths = [depth for depth in SNAPSHOT_DEPTHS if bench.wants(f"depth/{depth}/ratio")]
    with bench.service() as service, bench.load() as load:
        service.ram_pool("ram", 16 * 1024 * MIB)
        for depth in (0, *depths):
            name = f"depth{depth}"
            volume = service.volume("ram", SIZE)
            attach(service, load, name, volume)
            load.fill([name])
            for _ in range(depth):
                service.snapshot(volume)
                load.run([name], Workload(4, 0, requests=_WRITES), 60)
        sides = {str(depth): Side(service, [f"depth{depth}"], Workload()) for depth in (0, *depths)}
        series = measure(load, sides, bench.options.rounds * 2, bench.options.seconds)
        for depth in depths:
            bench.add(f"depth/{depth}/ratio", ratio(series[str(depth)], series["0"]), "IOPS / no snapshot")
