"""Many guests on one core, and what one that does nothing costs the others."""

from __future__ import annotations

import time

from perf.bench import Bench
from perf.load import Workload
from perf.names import GUESTS
from perf.paired import Side, measure, ratio
from perf.process import Diskhost
from perf.results import median
from perf.service import MIB

DEPTH = 16
SIZE = 64 * MIB
IDLE = 64
_LOOK_S = 0.2


def run(bench: Bench) -> None:
    if any(bench.wants(f"guests/{count}/{what}") for count in GUESTS for what in ("iops", "ratio")):
        _totals(bench)
    if bench.wants("idle/neighbour-cycles"):
        bench.add("idle/neighbour-cycles", _neighbour_cycles(bench), "cycles/poll of an idle guest")


def _totals(bench: Bench) -> None:
    with bench.service() as service, bench.load() as load:
        service.ram_pool("ram", 2 * max(GUESTS) * SIZE)
        names = [f"guest{number}" for number in range(max(GUESTS))]
        for name in names:
            info = service.attach(service.volume("ram", SIZE, thick=True))
            load.connect(name, "scsi", info.socket_path, depth=DEPTH, io=1 << 17, ring=128, target=info.target)
            load.fill([name])
        # All guests touch as much memory as one: what is compared is the serving of guests, not the cache.
        sides = {str(count): Side(service, names[:count], Workload(DEPTH, length=SIZE // count)) for count in GUESTS}
        series = measure(load, sides, bench.options.rounds * 2, bench.options.seconds)
        for count in GUESTS:
            bench.add(f"guests/{count}/iops", series[str(count)].median("iops"), "1/s, all guests together")
            if count > 1:
                bench.add(f"guests/{count}/ratio", ratio(series[str(count)], series["1"]), "IOPS / one guest")


def _neighbour_cycles(bench: Bench) -> float:
    """Turns of a poll loop that never sleeps, without and with idle guests: what they add, for each."""
    disks = [f"guest{number}:0=null:{SIZE}" for number in range(IDLE)]
    with bench.diskhost(disks, [], poll=True) as host, bench.load() as load:
        info = {name: host.socket(name) for name in (disk.split(":")[0] for disk in disks)}
        first = next(iter(info))
        load.connect(first, "scsi", info[first], depth=1, io=4096, ring=128)
        tsc_hz = load.run([first], Workload(1), 0.05).tsc_hz
        alone = _cycles_per_turn(bench, host, tsc_hz)
        for name in list(info)[1:]:
            load.connect(name, "scsi", info[name], depth=1, io=4096, ring=128)
        together = _cycles_per_turn(bench, host, tsc_hz)
        return (together - alone) / (IDLE - 1)


def _cycles_per_turn(bench: Bench, host: Diskhost, tsc_hz: float) -> float:
    # A turn takes its time by the clock: when the core is taken away the figure rises, so the lower half counts.
    looks: list[float] = []
    for _ in range(bench.options.rounds * 2):
        begin, before = time.perf_counter(), host.counters()
        time.sleep(_LOOK_S)
        after, end = host.counters(), time.perf_counter()
        looks.append((end - begin) * tsc_hz / (after.loops - before.loops))
    return median(sorted(looks)[: max(1, len(looks) // 2)])
